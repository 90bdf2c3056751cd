"""Instruments that measure dictionaries, one per file.

reconstruction.py   reconstruction quality and sparsity (computed by metrics.py)
answers.py          the model's answers with the dictionary spliced in
concepts.py         features that stand for values of truth variables (matched by matching.py)
roles.py            activity of a bridge's feature on facts in and out of distribution
absorption.py       whether features of single facts absorb the feature of a bridge
superposition.py    number and overlap of directions, compared with the number of dimensions
use.py              whether the model's answers follow edits of features

bridges.py          the states at the first position that determines a chain's bridge
"""
