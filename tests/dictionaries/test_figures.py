"""Figures of dictionaries need only the measurements that they show."""

import numpy as np
import xarray as xr

from implicit_reasoning.dictionaries.figures.matches import bridges, matches
from implicit_reasoning.dictionaries.figures.training import superposition, training
from implicit_reasoning.dictionaries.figures.use import uses
from implicit_reasoning.dictionaries.store import TRAINED


def test_what_was_not_measured_is_not_drawn():
    """With --instruments=reconstruction, a set has no other measurements."""
    coords = {
        name: ("member", np.array([value]))
        for name, value in (("step", 100), ("sparsity", 4.0), ("seed", 0), ("site", "x"))
    }
    result = xr.Dataset({"explained_variance": ("member", [0.5])}, coords)
    result = result.assign_coords(what=("member", [TRAINED]))
    for make in (matches, bridges, uses, training, superposition):
        assert make("autoencoder", result) is None, make.__name__
