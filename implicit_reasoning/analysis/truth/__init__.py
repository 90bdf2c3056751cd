"""Check instruments on models whose mechanism is known.

known.py       makes the models: planted, untrained, or trained on worlds that allow one mechanism
by_answers.py  decides from the answers of a trained model which claims are true of it
score.py       judges the claims of each instrument on each model as right, wrong or silent
"""
