"""Instruments that say which part of a model wrote a state: heads, neurons, directions.

attention.py       attention patterns, and the knock-out of attention edges
knock_out.py       knocks out attention edges
head_moves.py      the variable that each head copies to a later position
moved_vectors.py   the vectors that heads copy, and the values that they identify
rows.py            chooses rows whose answers are at the same position
"""
