"""A baseline, such as all neurons or class means, may have more features than a dictionary."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.dictionaries.dashboards.histories import Histories
from implicit_reasoning.dictionaries.evolution import over_training
from tests.dictionaries.planted import dimensions


def densities(n_features, width=4):
    """Return densities of two dictionaries, nan for features that only a baseline has."""
    values = np.full((2, n_features), np.nan)
    values[:, :width] = [[0.5, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.0]]
    return xr.Dataset({"density": (("member", "feature"), values)})


@pytest.mark.parametrize("n_features", [5, 22, 400])
def test_features_of_a_baseline_are_none_of_the_dictionary(n_features):
    made = dimensions(4)
    xr.testing.assert_identical(
        over_training(made, densities(n_features)), over_training(made, densities(4))
    )


@pytest.mark.parametrize("n_features", [5, 400])
def test_histories_have_features_of_the_dictionary_only(n_features):
    made = dimensions(4)
    wide, narrow = (Histories(made, 0, densities(n)).of(0, None, "") for n in (n_features, 4))
    assert wide is not None and wide == narrow
