"""One small run and one set of dictionaries for all tests of this folder.

They are made once per session, by the first worker. Every worker has its own copy, because tests
add files to it.
"""

import os
import shutil

import pytest
from filelock import FileLock

from implicit_reasoning.dictionaries import load, measure_dictionaries, train_dictionaries
from implicit_reasoning.dictionaries.resolved import resolve
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.runs import Run
from implicit_reasoning.training import train
from tests.compile_counts import uncounted
from tests.dictionaries.planted import trace_only
from tests.dictionaries.small import SITE, config
from tests.training.tiny import tiny


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """Return the folder of the run that all workers copy; use it only while holding its lock."""
    base = tmp_path_factory.getbasetemp()
    # The base folders of the pytest-xdist workers are inside the folder of the session.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dictionaries_run"


def lock(common):
    return FileLock(f"{common}.lock")


@pytest.fixture(scope="session")
def run(common, tmp_path_factory):
    finished = common.with_suffix(".finished")
    with lock(common), uncounted():
        if not finished.exists():
            train(tiny(steps=60, checkpoints__every=20), common)
            finished.touch()
    own = tmp_path_factory.mktemp("dictionaries") / "run"
    shutil.copytree(common, own, ignore=shutil.ignore_patterns("dictionaries"))
    return Run(own)


def copied(run, common, asked, *, measure=False):
    """Train (and measure) dictionaries in the common run, and copy them to a worker's run."""
    with lock(common), uncounted():
        made = train_dictionaries(Run(common), asked)
        if measure:
            measure_dictionaries(Run(common), made)
    shutil.copytree(Files.of(Run(common), asked.name).folder, Files.of(run, asked.name).folder)
    return load(run, asked.name)


@pytest.fixture(scope="session")
def made(run, common):
    return copied(run, common, config())


@pytest.fixture(scope="session")
def beaten(run, common):
    """Return dictionaries of one site, measured beside baselines.

    The measures of baselines that have another shape are zeros.
    """
    asked = config(name="beaten", read=(SITE,), baselines=True)
    own = resolve(run, asked).recipe.dictionary.for_inference()
    with pytest.MonkeyPatch.context() as patch:
        trace_only(patch, computed=lambda finished: finished == own)
        return copied(run, common, asked, measure=True)
