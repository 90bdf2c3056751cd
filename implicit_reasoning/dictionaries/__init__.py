"""Sparse dictionaries: trained on a model's states at every checkpoint, and held against truth.

kinds.py        what is read and written: autoencoders, transcoders, crosscoders
variants/       what makes activations few
sparse.py       products with active features only
dictionary.py   a kind and a variant in training; a finished dictionary

states.py       distinct states of a run, to train and to measure on
steps.py        steps of training, one compiled loop
population.py   many dictionaries in one program
plan.py         from a configuration to what is trained
defaults.py     the configuration
train.py        train a set of dictionaries of a run, resumable
store.py        where they are kept

measure.py      all of what follows, for a set of dictionaries
measures/       how well, with how few, for what, and whether the model goes on; a file each
baselines.py    what has to be beaten
evolution.py    features over training and seeds
splice.py       a dictionary in its model
figures/        for the report
dashboards/     a page of features for the report
synthetic.py    data whose directions are known
exchange/       from and for other tools
"""

from implicit_reasoning.dictionaries.dictionary import Dictionary, Finished
from implicit_reasoning.dictionaries.measure import measured
from implicit_reasoning.dictionaries.store import Dictionaries, Member, load, names
from implicit_reasoning.dictionaries.train import train_dictionaries

__all__ = [
    "Dictionaries",
    "Dictionary",
    "Finished",
    "Member",
    "load",
    "measured",
    "names",
    "train_dictionaries",
]
