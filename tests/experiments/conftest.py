"""One run of experiments/smoke.py, for all tests of scripts that read a run."""

import pytest

from implicit_reasoning.runs import Run
from implicit_reasoning.training import train
from tests import shared
from tests.experiments.scripts import load


@pytest.fixture(scope="session")
def smoke_run():
    """Return the finished run, which all workers share. Tests must not change it."""
    return Run(shared.made_once("smoke", lambda to: train(load("smoke").get_config(), to)))
