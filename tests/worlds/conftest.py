"""Settings of small worlds, and small worlds to draw from."""

from types import SimpleNamespace

import pytest

from implicit_reasoning.worlds import build


def settings(**changes):
    """A complete task configuration: 100/10/10 with 5% of facts `O`, phi 7."""
    values = {
        "name": "composition",
        "world_seed": 0,
        "n_entities": 100,
        "n_relations": 10,
        "out_degree": 10,
        "ood_fraction": 0.05,
        "phi": 7.0,
        "hops": 2,
        "holdout": 0.05,
        "probes": 3000,
        "mixed_chains": True,
        "end_token": False,
    }
    assert not changes.keys() - values.keys()
    return SimpleNamespace(**(values | changes))


@pytest.fixture
def task():
    """`task(phi=5)`: settings with some changed."""
    return settings


@pytest.fixture
def make():
    """`make(phi=5)`: the dataset of settings with some changed."""
    return lambda **changes: build(settings(**changes))
