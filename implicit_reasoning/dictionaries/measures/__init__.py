"""Instruments that measure dictionaries, one per file.

reconstruction.py   measures reconstruction quality and sparsity (computed by metrics.py)
answers.py          measures the model's answers with the dictionary spliced in
concepts.py         finds features for values of ground-truth variables (with matching.py)
roles.py            measures a bridge's feature on facts in and out of distribution
absorption.py       measures whether features of single facts absorb the feature of a bridge
superposition.py    compares the number of directions with the number of dimensions
use.py              measures whether answers change as predicted when features are changed

bridges.py          chooses states in which the bridge of a chain is determined
"""
