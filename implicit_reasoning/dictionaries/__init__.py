"""Sparse dictionaries: trained on a model's states at every checkpoint, and held against truth.

architectures.py  what is read and written: autoencoders, transcoders, crosscoders
activations/    what makes activations few
sparse.py       products with active features only
dictionary.py   an architecture and an activation function in training; a finished dictionary

states.py       distinct states of a run, to train and to measure on
steps.py        steps of training, one compiled loop
population.py   many dictionaries in one program
resolved.py     a configuration, resolved: all that is trained
defaults.py     the configuration
train.py        train a set of dictionaries of a run, resumable
store.py        where they are kept

instrument.py   what an instrument of dictionaries is
measures/       the instruments: how well, with how few, for what, and whether the model goes on
measure.py      several instruments in one program
api.py          `measure_dictionaries`: what is missing of a set, and the table of instruments
results.py      reading what was measured
baselines.py    what has to be beaten
evolution.py    features over training and seeds
splice.py       a dictionary in its model
figures/        for the report
dashboards/     a page of features for the report
synthetic.py    data whose directions are known
exchange/       from and for other tools
"""

from implicit_reasoning.dictionaries.api import INSTRUMENTS, measure_dictionaries
from implicit_reasoning.dictionaries.dictionary import Dictionary, InferenceDictionary
from implicit_reasoning.dictionaries.instrument import DictionaryInstrument
from implicit_reasoning.dictionaries.store import Dictionaries, Member, load, names
from implicit_reasoning.dictionaries.train import train_dictionaries

__all__ = [
    "INSTRUMENTS",
    "Dictionaries",
    "Dictionary",
    "DictionaryInstrument",
    "InferenceDictionary",
    "Member",
    "load",
    "measure_dictionaries",
    "names",
    "train_dictionaries",
]
