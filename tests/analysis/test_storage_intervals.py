"""Results with intervals of an earlier version open, and are never merged with new results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import Examples, Instrument, analyze
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.statistics import INTERVALS
from tests.analysis.subjects import random_checkpoints


class Signs(Instrument):
    name, definition = "signs", "Whether the first logit is positive."
    outputs = {"positive": ("example",)}

    def examples(self, model, dataset):
        rows = dataset.probes("train_ii")[:8]
        return Examples(dataset.tokens[rows], ("train_ii",), np.zeros(len(rows), int), rows)

    def measure(self, model, params, inputs, key):
        return {"positive": jnp.ravel(model.forward(params, inputs)[0][:, -1, 0] > 0)}


@pytest.fixture(scope="module")
def subject():
    return random_checkpoints(2)


@pytest.fixture
def run(subject, tmp_path):
    """Return a run with a result of step 0 from before results named their intervals."""

    class Stored:
        steps = (0, 1)

        def params(self, step):
            return jax.tree.map(lambda leaf: np.asarray(leaf[0]), subject.params([step]))

    class Made(Run):
        def __init__(self):
            self.files, self.store = Layout(tmp_path), Stored()
            self.model, self.dataset = subject.model, subject.dataset
            self._fingerprints = {}

    made = Made()
    old = analyze(made, Signs(), steps=[0], progress=False)
    assert old.attrs["intervals"] == INTERVALS
    attrs = {name: value for name, value in old.attrs.items() if name != "intervals"}
    made.save_result("signs", (old * 0 + 0.5).drop_attrs().assign_attrs(attrs))
    return made


def test_old_intervals_are_read_as_they_are_and_measured_anew_by_analyze(run, capsys):
    assert (run.result("signs")["positive_low"] == 0.5).all()
    new = analyze(run, Signs(), steps=[1])
    assert "intervals of an earlier version; measuring them again" in capsys.readouterr().err
    assert new.step.values.tolist() == [0, 1] and new.attrs["intervals"] == INTERVALS
    assert (new["positive_low"] != 0.5).all()


def test_a_result_whose_checkpoint_is_gone_is_not_lost(run):
    run.store.steps = (1,)
    with pytest.raises(InputError, match=r"has intervals 1, expected 2; rerun with --again"):
        analyze(run, Signs(), progress=False)
    assert run.result("signs").step.values.tolist() == [0]
