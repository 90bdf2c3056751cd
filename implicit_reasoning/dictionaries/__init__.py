"""Train and evaluate sparse dictionaries on a model's activations at several checkpoints.

architectures.py  defines the linear maps of autoencoders, transcoders and crosscoders
activations/    defines activation functions that make feature activations sparse
sparse.py       computes matrix products with active features only
dictionary.py   combines architecture and activation function, for training and for inference

states.py       finds the distinct states of a run, and splits off held-out states
steps.py        runs training steps in one compiled loop
population.py   trains many dictionaries in one program
resolved.py     finds the dictionaries and settings that a configuration specifies
defaults.py     defines the default configuration
train.py        trains a set of dictionaries, with resuming
store.py        saves and loads sets of dictionaries

instrument.py   defines the base class of the instruments that measure dictionaries
measures/       contains these instruments
measure.py      runs several instruments in one program
api.py          defines `measure_dictionaries`, which computes missing results
results.py      reads measured results
baselines.py    makes baselines with which dictionaries are compared
evolution.py    compares features across checkpoints and seeds
splice.py       splices a dictionary into its model
figures/        draws the figures of the report
dashboards/     makes the feature dashboards of the report
synthetic.py    draws synthetic data with known directions
exchange/       imports and exports dictionaries in the formats of other tools
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
