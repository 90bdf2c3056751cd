"""Validation of instruments on models whose mechanism is known.

known.py   models with known mechanisms: planted, untrained, or trained on worlds that allow only
           one mechanism
score.py   a verdict for each instrument and model: right, wrong or silent
"""
