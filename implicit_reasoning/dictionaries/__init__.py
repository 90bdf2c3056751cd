"""Sparse dictionaries: trained on a model's activations at several checkpoints, and evaluated.

architectures.py  autoencoders, transcoders and crosscoders: their parameters and linear maps
activations/    activation functions that make feature activations sparse
sparse.py       matrix products with active features only
dictionary.py   a dictionary for training (architecture and activation function) and for inference

states.py       the distinct states of a run, split into training and held-out states
steps.py        training steps in one compiled loop
population.py   many dictionaries trained by one program
resolved.py     turns a configuration into members, shapes and training settings
defaults.py     the default configuration
train.py        trains a set of dictionaries of a run; training can be resumed
store.py        saves and loads sets of dictionaries

instrument.py   base class of the instruments that measure dictionaries
measures/       the instruments
measure.py      runs several instruments in one program
api.py          `measure_dictionaries`: measures missing results; the table of instruments
results.py      reads measured results
baselines.py    baselines that dictionaries are compared with
evolution.py    compares features across checkpoints and seeds
splice.py       splices a dictionary into its model
figures/        figures for the report
dashboards/     feature dashboards for the report
synthetic.py    synthetic data with known ground-truth directions
exchange/       import from and export to other tools
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
