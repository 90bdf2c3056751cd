"""Test instruments on models whose mechanism is known.

known.py       makes the models, which are planted, untrained or trained
by_answers.py  decides from the answers of a trained model which claims are true of the model
score.py       judges the claims of each instrument about each model
"""
