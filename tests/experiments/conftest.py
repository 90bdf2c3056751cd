"""One run of experiments/smoke.py, for all tests of scripts that read a run."""

import pytest

from implicit_reasoning.training import train
from tests.compile_counts import uncounted
from tests.experiments.scripts import load


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Return the finished run."""
    with uncounted():
        return train(load("smoke").get_config(), tmp_path_factory.mktemp("smoke") / "run")
