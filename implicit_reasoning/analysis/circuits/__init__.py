"""Circuits: which edges of the model the answer is computed through.

scores.py          effects of patching each edge, exact or estimated from gradients
edge_patching.py   the instrument that patches each edge alone
edge_figures.py    its figures
"""
