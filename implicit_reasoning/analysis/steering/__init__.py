"""Steering: adding directions that stand for a value of a variable to a state.

directions.py       fits directions: class means, discriminants, probes, aligned subspaces
steering_cases.py   chooses chains to steer, and unrelated chains for side effects
steering.py         measures how many answers follow, and the side effects
steering_figures.py draws the results, and compares directions at equal side effects
"""
