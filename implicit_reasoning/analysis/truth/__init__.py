"""Truth: models whose mechanism is known, and how often an instrument says what is so.

known.py   the models: built by hand, and trained on worlds where only one way is open
score.py   instrument x model: right, wrong or silent
"""
