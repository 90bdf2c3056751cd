"""Validation of instruments on models whose mechanism is known.

known.py   models with known mechanisms: planted, untrained, or trained on worlds that allow only
           one mechanism
score.py   the verdict (right, wrong or silent) of each instrument on each model
"""
