"""The runner returns the values of an explicit loop over checkpoints, and it compiles once."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import Examples, Instrument, Runner, measure
from implicit_reasoning.analysis.runner import chunk_size
from implicit_reasoning.analysis.storage import check_identity, identity_of, merge
from implicit_reasoning.errors import InputError
from tests.analysis.subjects import random_checkpoints


class Probabilities(Instrument):
    """Measures the probability of the answer by position, and the sum of one weight matrix."""

    name = "probabilities"
    definition = "softmax(logits)[answer]"
    outputs = {"probability": ("pos", "example"), "weights": ("width",), "drawn": ()}

    def examples(self, model, dataset):
        rows = np.concatenate([dataset.probes("test_ii")[:7], dataset.probes("test_oi")[:5]])
        inputs = {"tokens": dataset.tokens[rows], "answer": dataset.truth["answer"][rows]}
        # At the first position clusters are entities. At the last one, odd examples do not count.
        by_row = np.where(np.arange(12) % 2, -1, np.arange(12))
        clusters = np.stack([dataset.truth["e1"][rows], dataset.truth["fact1"][rows], by_row])
        return Examples(inputs, ("ii", "oi"), np.repeat([0, 1], [7, 5]), clusters, "pos")

    def coords(self, model, dataset):
        return {**super().coords(model, dataset), "width": range(model.spec.d_model)}

    def measure(self, model, params, inputs, key):
        logits, _ = model.forward(params, inputs["tokens"])
        probability = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
        of_answer = jnp.take_along_axis(probability, inputs["answer"][:, None, None], -1)[..., 0]
        sums = params["embed"]["W_E"].sum(0)
        return {"probability": of_answer.T, "weights": sums, "drawn": jnp.sum(sums) * 0 + 1}


@pytest.fixture(scope="module")
def subject():
    return random_checkpoints(11)


@pytest.fixture(scope="module")
def result(subject):
    return measure(Probabilities(), subject, progress=False)


def test_numbers_are_those_of_every_checkpoint_by_itself(subject, result):
    instrument = Probabilities()
    examples = instrument.examples(subject.model, subject.dataset)
    assert result.step.values.tolist() == list(subject.steps)
    measured = jax.jit(instrument.measure, static_argnums=0)
    for step in subject.steps:
        alone = measured(subject.model, subject.checkpoints[step], examples.inputs, None)
        by_hand = np.asarray(alone["probability"])
        one = result.sel(step=step)
        for number, group in enumerate(examples.groups):
            for place, pos in enumerate(subject.dataset.positions):
                counted = (examples.group == number) & (examples.clusters[place] >= 0)
                cell = one.sel(group=group, pos=pos)
                values = by_hand[place, counted]
                np.testing.assert_allclose(cell.probability, values.mean(), rtol=1e-5)
                assert cell.probability_low <= cell.probability <= cell.probability_high
                assert cell.n_examples == counted.sum()
                assert cell.n_states == len(set(examples.clusters[place, counted]))
        np.testing.assert_allclose(one.weights, alone["weights"], rtol=1e-6)


def test_it_is_traced_once_for_all_chunks_and_not_again_for_more(subject):
    runner = Runner(Probabilities(), subject.model)
    measure(runner.instrument, subject, runner=runner, progress=False)
    assert len(subject.steps) > chunk_size(len(subject.steps)) and runner.traces == 1
    measure(runner.instrument, subject, runner=runner, progress=False)
    assert runner.traces == 1


@pytest.mark.parametrize("together", [1, 2, 6])
def test_how_many_go_together_does_not_matter(subject, result, together):
    runner = Runner(Probabilities(), subject.model, together=together)
    again = measure(runner.instrument, subject, runner=runner, progress=False)
    xr.testing.assert_allclose(again, result, rtol=1e-5)


def test_as_many_go_together_as_fit_into_memory(subject, result, monkeypatch):
    """With little memory, checkpoints are measured one at a time and the values stay the same."""
    roomy = Runner(Probabilities(), subject.model, together=4)
    measure(roomy.instrument, subject, runner=roomy, progress=False)
    assert (roomy.together, roomy.at_once(11)) == (4, 6)
    monkeypatch.setattr("implicit_reasoning.analysis.runner.memory_per_program", lambda: 1)
    tight = Runner(Probabilities(), subject.model, together=4)
    again = measure(tight.instrument, subject, runner=tight, progress=False)
    assert (tight.together, tight.at_once(11)) == (1, 1)
    xr.testing.assert_allclose(again, result, rtol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (8, 8), (9, 5), (16, 8), (17, 6), (20, 5)])
def test_chunks_leave_little_to_fill_up(count, size):
    assert chunk_size(count) == size


def test_parameters_come_to_the_device_once(subject):
    """Parameters are loaded with the sharding of the program and used directly.

    The reference is loaded only once.
    """

    class Compared(Probabilities):
        reference = True

        def measure(self, model, params, inputs, key):
            found = super().measure(model, params, inputs, key)
            return found | {"drawn": inputs["reference"]["embed"]["W_E"].sum()}

    class Spied:
        model, dataset, steps = subject.model, subject.dataset, subject.steps
        asked, given = [], []

        def params(self, steps=None, sharding=None):
            found = subject.params(steps, sharding)
            self.asked.append((tuple(steps), sharding))
            self.given.append(found)
            return found

    class Watched(Runner):
        used = []

        def _program(self, params, material):
            self.used.append((params, material.inputs["reference"]))
            return super()._program(params, material)

    spied, runner = Spied(), Watched(Compared(), subject.model)
    result = measure(runner.instrument, spied, runner=runner, progress=False)
    assert spied.asked[0] == ((10,), None)
    assert [sharding for _, sharding in spied.asked[1:]] == [runner.stacked] * 2
    for (used, reference), given in zip(runner.used, spied.given[1:], strict=True):
        for one, other in zip(jax.tree.leaves(used), jax.tree.leaves(given), strict=True):
            assert one.unsafe_buffer_pointer() == other.unsafe_buffer_pointer()
        assert jax.tree.leaves(reference)[0] is jax.tree.leaves(runner.used[0][1])[0]
        assert jax.tree.leaves(reference)[0].sharding.is_fully_replicated
    last = subject.checkpoints[10]["embed"]["W_E"].sum()
    np.testing.assert_allclose(result.drawn, [last] * 11, rtol=1e-5)


def test_new_steps_are_merged_into_what_is_there(subject, result):
    first = measure(Probabilities(), subject, subject.steps[5:9], progress=False)
    rest = measure(Probabilities(), subject, subject.steps[:6], progress=False)
    xr.testing.assert_allclose(merge(first, rest), result.sel(step=list(subject.steps[:9])))


def test_what_was_measured_otherwise_is_not_mixed(subject, result):
    check_identity(result, identity_of(Probabilities(), subject))
    newer = Probabilities()
    newer.version = 2
    with pytest.raises(InputError, match=r"has version 1, expected 2; rerun with --again"):
        check_identity(result, identity_of(newer, subject))
    with pytest.raises(InputError, match="has model"):
        check_identity(result, identity_of(Probabilities(), random_checkpoints(1, d_mlp=4)))


def test_options_are_kept_and_not_mixed(subject, result):
    class Sharper(Probabilities):
        def __init__(self, *powers):
            self.powers = powers

        def options(self):
            return {"powers": self.powers}

    assert result.attrs["options"] == {}
    old = result.drop_attrs().assign_attrs(without("options", result))
    check_identity(old, identity_of(Probabilities(), subject))
    kept = measure(Sharper(1, 2), subject, subject.steps[:1], progress=False)
    assert kept.attrs["options"] == {"powers": [1, 2]}  # as in a file
    check_identity(kept, identity_of(Sharper(1, 2), subject))
    said = r"has options .'powers': .1, 2..*, expected .'powers': .3..; rerun with --again"
    with pytest.raises(InputError, match=said):
        check_identity(kept, identity_of(Sharper(3), subject))
    with pytest.raises(InputError, match="has options"):
        check_identity(result, identity_of(Sharper(3), subject))


def without(name, result):
    """Return the attributes of a result that was saved before `name` was introduced."""
    return {key: value for key, value in result.attrs.items() if key != name}


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"probability": ("pos", "example")}, "declares the outputs .'probability'., but measure"),
        ({**Probabilities.outputs, "weights": ("head",)}, "'weights' has the dimension 'head'"),
        ({**Probabilities.outputs, "weights": ("layer",)}, r"has shape \(8,\), but the declared"),
    ],
)
def test_what_is_not_as_declared_is_said(subject, outputs, said):
    class Odd(Probabilities):
        pass

    Odd.outputs = outputs
    with pytest.raises(InputError, match=said):
        measure(Odd(), subject, subject.steps[:1], progress=False)


@pytest.mark.slow
def test_eight_devices_measure_the_same(result):
    """Each device takes its share of the checkpoints; eleven are padded to sixteen."""
    program = (
        "import json, jax; from tests.analysis.test_runner import *\n"
        "assert jax.device_count() == 8\n"
        "found = measure(Probabilities(), random_checkpoints(11), progress=False)\n"
        "print(json.dumps(found.probability.values.tolist()))"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, result.probability, rtol=1e-5)
