"""Parameters that overflow float32: the error names the step, and the parameters are not saved.

The rates of the first two steps are 0 and a fifth (warm-up). The second update multiplies every
weight by 6e37. Weights above 5.7 then overflow float32, while loss, gradient and rates are finite.
"""

import jax
import numpy as np
import pytest

from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import NonFiniteLoss, loop, train
from implicit_reasoning.training.population import train_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny

OVERFLOWS = {"optimizer__learning_rate": 3e30, "optimizer__weight_decay": 1e8}
SPARSE = {
    "model__init_std": 3.0,
    "evaluation__every": 60,
    "evaluation__per_doubling": 0,
    "checkpoints__per_doubling": 0,
    "resume_every": 60,
    "writers__tensorboard": False,
}


def assert_finite(run):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params()))


def test_the_step_is_named_where_a_chunk_goes_on_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 1e9)  # the second chunk ends at the next row
    config = tiny(**SPARSE, **OVERFLOWS)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 1\.") as caught:
        train(config, tmp_path / "run")
    assert caught.value.step == 1
    run = Run(tmp_path / "run")
    assert max(run.steps) <= 1
    assert_finite(run)


@pytest.mark.slow
def test_a_trial_keeps_the_parameters_from_before_the_step(tmp_path):
    """Each step ends a chunk, so the state after the second step could be saved by mistake."""
    changes = ({}, OVERFLOWS)
    configs = [tiny(**SPARSE, **change, checkpoints__every=1, steps=4) for change in changes]
    made = [
        Trial(config, build(config.task), Layout(tmp_path / f"trial{number}"))
        for number, config in enumerate(configs)
    ]
    records = train_population(made, Layout(tmp_path / "population"), 4, ShutdownRequest())
    assert [record.diverged for record in records] == [None, 1]
    healthy, lost = (Run(trial.files.workdir) for trial in made)
    assert healthy.steps == (0, 1, 2, 3, 4)
    assert lost.steps == (0, 1)
    assert_finite(healthy)
    assert_finite(lost)
