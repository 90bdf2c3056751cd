"""Instruments of dictionaries, a file each.

reconstruction.py   how well states are written, with how few features (numbers: metrics.py)
answers.py          what the model answers with the dictionary in it
concepts.py         features that stand for values of truth variables (matching.py)
roles.py            the same feature in and out of distribution?
absorption.py       bridges that a fact's feature speaks for
superposition.py    directions against dimensions
use.py              does the model go on with what a feature says?

bridges.py          states that first know the bridge
"""
