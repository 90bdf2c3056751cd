"""Instruments that measure dictionaries, one per file.

reconstruction.py   reconstruction quality and sparsity (computed by metrics.py)
answers.py          the model's answers with the dictionary spliced in
concepts.py         features that stand for values of truth variables (matched by matching.py)
roles.py            activity of a bridge's feature, in and out of distribution
absorption.py       bridge features that are absorbed by features of single facts
superposition.py    number and overlap of directions, compared with the number of dimensions
use.py              whether the model's answers follow edits of features

bridges.py          the states in which a chain's bridge is first known
"""
