"""Small task configurations, and their datasets."""

from types import SimpleNamespace

import pytest

from implicit_reasoning.worlds import build

DEFAULTS = {
    "name": "composition",
    "world_seed": 0,
    "n_entities": 20,
    "n_relations": 6,
    "out_degree": 4,
    "ood_fraction": 0.2,
    "phi": 1.5,
    "hops": 2,
    "holdout": 0.1,
    "probes": 3000,
    "mixed_chains": True,
    "order": "e r r",
    "names": 0,
    "end_token": False,
    "held_out_fraction": 0.1,
    "restricted_fraction": 0.1,
    "identity": "",
    "facts_per_rung": 2,
    "facts_per_count": 1,
}


@pytest.fixture(scope="session")
def settings():
    """`settings(phi=5)` returns a complete task configuration with some values changed."""

    def change(**changes):
        assert not changes.keys() - DEFAULTS.keys()
        return SimpleNamespace(**(DEFAULTS | changes))

    return change


@pytest.fixture(scope="session")
def make(settings):
    """`make(phi=5)` returns the dataset of such a configuration."""
    return lambda **changes: build(settings(**changes))
