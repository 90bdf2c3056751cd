"""Sums by cluster, computed on the device, give the same intervals as outcomes by example."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import Examples, Instrument, measure, sums
from implicit_reasoning.errors import InputError
from tests.analysis.subjects import random_checkpoints

UNITS, POSITIONS, EXAMPLES = 6, 3, 700


class Many(Instrument):
    """Random outcomes of every kind, shifted by a constant of the checkpoint."""

    name, definition = "many", "For tests."
    outputs = {
        "number": ("unit", "pos", "example"),
        "fraction": ("pos", "unit", "example"),
        "hit": ("unit", "pos", "example"),
        "certain": ("unit", "example"),
        "flat": ("unit", "example"),
        "count": ("unit", "example"),
        "known": ("unit", "example"),
        "where": ("unit", "pos", "example"),
        "some": ("unit", "pos", "example"),
        "plain": ("unit",),
    }
    given = {"hit": "known", "some": "where"}

    def examples(self, model, dataset):
        rng = np.random.default_rng(0)
        clusters = rng.integers(0, [[9], [14], [30]], (POSITIONS, EXAMPLES))
        clusters[rng.random(clusters.shape) < 0.1] = -1  # these do not count at that position
        group = np.sort(rng.integers(0, 2, EXAMPLES))
        group[:5] = 2  # a group that may be too small for an interval
        inputs = {
            "noise": rng.normal(size=(UNITS, POSITIONS, EXAMPLES)).astype(np.float32),
            "uniform": rng.random((UNITS, POSITIONS, EXAMPLES)).astype(np.float32),
            "shift": np.array([0, 1000, -3, 0.1, 0, 7], np.float32),
        }
        return Examples(inputs, ("a", "b", "few"), group, clusters, "pos")

    def coords(self, model, dataset):
        return {"unit": range(UNITS), "pos": ["e1", "r1", "r2"]}

    def measure(self, model, params, inputs, key):
        own = params["embed"]["W_E"][0, 0]
        shift = inputs["shift"][:, None, None]
        uniform = inputs["uniform"]
        return {
            "number": inputs["noise"] * (shift != 0.1) + shift + own,
            "fraction": uniform.swapaxes(0, 1),
            "hit": uniform < 0.3 + own / 10,
            "certain": jnp.broadcast_to((jnp.arange(UNITS) < 3)[:, None], (UNITS, EXAMPLES)),
            "flat": jnp.full((UNITS, EXAMPLES), 0.1),
            "count": (uniform[:, 0] * 9).astype(jnp.int32),
            "known": uniform[:, 1] < 0.7,
            "where": inputs["noise"] < 0,
            # Outcomes that do not count may have any value.
            "some": jnp.where(inputs["noise"] < 0, uniform * 5, jnp.nan),
            "plain": uniform[:, 0, 0],
        }


@pytest.fixture
def summed(monkeypatch):
    """Treat every output as large."""
    monkeypatch.setattr(sums, "MIN_OUTCOMES", 1)
    monkeypatch.setattr(sums, "_BLOCK", 3 * EXAMPLES)  # several blocks


def test_sums_have_the_intervals_of_outcomes(monkeypatch, summed):
    subject, seen = random_checkpoints(3), []
    original = sums.sum_by_cluster
    monkeypatch.setattr(
        sums, "sum_by_cluster", lambda *given: seen.append(given[0].shape) or original(*given)
    )
    found = measure(Many(), subject, progress=False)
    assert len(seen) >= 8  # all outputs by example except integers; traced once or twice
    monkeypatch.setattr(sums, "MIN_OUTCOMES", 10**9)
    seen.clear()
    expected = measure(Many(), subject, progress=False)
    assert not seen and set(found) == set(expected)
    for name in expected:
        assert found[name].dims == expected[name].dims and found[name].dtype == expected[name].dtype
    # The tolerance is relative to the numbers, about 1000. Without that offset it is 1e-6.
    xr.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    level = dict(unit=[0, 2, 4, 5])
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(
            found[f"number{end}"].isel(level), expected[f"number{end}"].isel(level), atol=1e-6
        )
    # Equal outcomes have an interval of no width, but outcomes that are all certain have a width.
    flat = found.isel(step=0, group=0)
    assert (flat.flat_low == flat.flat_high).all()
    assert (flat.number_low == flat.number_high).isel(unit=3).all()
    assert (flat.certain_low < flat.certain_high).all()


def test_what_counts_and_is_not_finite_is_refused_as_without_sums(summed):
    class Infinite(Many):
        outputs = {"flat": ("unit", "example")}
        given = {}

        def measure(self, model, params, inputs, key):
            value = inputs["uniform"][:, 0]
            return {"flat": value.at[2, 40].set(jnp.inf)}

    with pytest.raises(InputError, match="1 outcomes are not finite"):
        measure(Infinite(), random_checkpoints(1), progress=False)


def test_what_is_not_as_declared_is_refused(summed):
    class Odd(Many):
        outputs = {"flat": ("pos", "example")}
        given = {}

        def measure(self, model, params, inputs, key):
            return {"flat": inputs["uniform"][:, 0]}

    with pytest.raises(InputError, match=r"'flat' has shape \(6, 700\)"):
        measure(Odd(), random_checkpoints(1), progress=False)


def test_outcomes_without_sums_keep_the_examples_that_count(monkeypatch, summed):
    """Integers are not summed, so the outcomes that select their examples are not either."""

    class Counted(Many):
        outputs = {name: Many.outputs[name] for name in ("count", "known")}
        given = {"count": "known"}

        def measure(self, *given):
            found = super().measure(*given)
            return {name: found[name] for name in self.outputs}

    found = measure(Counted(), random_checkpoints(1), progress=False)
    monkeypatch.setattr(sums, "MIN_OUTCOMES", 10**9)
    xr.testing.assert_allclose(found, measure(Counted(), random_checkpoints(1), progress=False))


def test_outputs_are_summed_where_that_is_less():
    """A large output is summed if there are at most half as many sums as outcomes."""
    layout = sums.SumsLayout(n_sums=128, n_groups=2, cluster_dim=None)

    def chosen(**sizes):
        return sums.outputs_to_sum(Many(), {"pos": 3, **sizes}, layout)

    assert chosen(unit=4096, example=255) == ()
    # `hit` and `some` need cluster sizes in addition to sums.
    assert chosen(unit=4096, example=256) == tuple(
        name for name in Many.outputs if name not in ("hit", "some", "plain")
    )
    assert {"hit", "some"} <= set(chosen(unit=4096, example=512))
    assert chosen(unit=10, example=512) == ()


def test_examples_are_numbered_by_group_then_cluster():
    examples = Examples({}, ("a", "b"), np.array([1, 0, 0, 1]), np.array([5, 7, 5, -1]))
    pairs, layout = sums.find_pairs(examples)
    assert layout.n_sums == 64  # rounded up, so that other worlds use the same program
    assert pairs.pair.tolist() == [[2, 1, 0, 64]] and pairs.group.tolist() == [[1, 0, 0, 2]]


class Neurons(Instrument):
    """An output as large as that of an instrument of neurons: one per neuron and position."""

    name, definition = "neurons", "For tests."
    outputs = {"effect": ("neuron", "pos", "example")}
    neurons, n_examples = 4096, 2000

    def examples(self, model, dataset):
        rows = np.arange(self.n_examples)
        values = np.random.default_rng(0).normal(size=self.n_examples).astype(np.float32)
        return Examples({"x": values}, ("a", "b"), rows % 2, rows % 100)

    def coords(self, model, dataset):
        return {"neuron": range(self.neurons), "pos": ["e1", "r1", "r2"]}

    def measure(self, model, params, inputs, key):
        scale = params["embed"]["W_E"][0, 0] + jnp.arange(self.neurons)[:, None, None]
        return {"effect": jnp.sin(scale + jnp.arange(3)[None, :, None]) * inputs["x"][None, None]}


PROGRAM = """
import resource, threading, time, jax
from tests.analysis.test_sums import Neurons, measure, random_checkpoints
subject = random_checkpoints(20)
class Small(Neurons):
    neurons = 16
measure(Small(), subject, progress=False)  # libraries are loaded, and the machinery has run
jax.clear_caches()
def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before, peak, done = used(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], used())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
class Large(Neurons):
    neurons = NEURONS
found = measure(Large(), subject, progress=False)
done.set()
watcher.join()
assert found.effect.shape == (20, 2, NEURONS, 3)
print("MB", (peak[0] - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize(("neurons", "most"), [(1024, 150), (4096, 300)])
def test_many_cells_do_not_fill_the_memory(neurons, most):
    """Outcomes of 4,096 neurons, three positions, 2,000 examples and 20 checkpoints take 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("NEURONS", str(neurons))],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("MB")[1]) < most
