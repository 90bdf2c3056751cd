"""One small run and one set of dictionaries for all tests of this folder."""

import pytest

from implicit_reasoning.dictionaries import train_dictionaries
from implicit_reasoning.training import train
from tests.dictionaries.small import SITE, config
from tests.training.tiny import tiny


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return train(tiny(steps=60, checkpoints__every=20), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def made(run):
    return train_dictionaries(run, config())


@pytest.fixture(scope="session")
def beaten(run):
    """Of one site, to be measured beside baselines."""
    return train_dictionaries(run, config(name="beaten", read=(SITE,), baselines=True))
