"""The update of ROME equals a direct computation of the published formula in PyTorch.

PyTorch computes in float64. The second moment of few prompts is nearly singular, so that float32
gives about four digits of its inverse. With a larger ridge, the same formula has six digits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.rank_one import (
    exact_keys,
    memory,
    rank_one_changes,
    second_moment,
)
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.model.surgery import output_matrix, write_change
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

CASES = ("untied, gelu_new", "no norm, relu", "looped, tied", "trained")
RIDGES = {"as used": 0.0, "larger ridge": 1.0}
LAYER = 1


@functools.partial(jax.jit, static_argnames="model")
def edit(model, params, rows, added, ridge):
    """Return what PyTorch reads, and the changed matrices of this package."""
    prompts = FactPrompts(rows[:5, None], jnp.ones((5, 1), bool), jnp.zeros(5, jnp.int32))
    keys = exact_keys(model, params, prompts, LAYER)
    moment = second_moment(model, params, rows, jnp.ones(rows.shape), LAYER)[0]
    moment += ridge * jnp.trace(moment) / len(moment) * jnp.eye(len(moment))
    changes = rank_one_changes(keys, memory(moment).solve(keys), added)
    before = output_matrix(model, params, LAYER)

    def changed(change):
        return output_matrix(model, write_change(model, params, LAYER, change), LAYER)

    values = jnp.matmul(keys, before, precision="highest") + added
    given = {"keys": keys, "moment": moment, "W_out": before, "values": values}
    return given, jax.vmap(changed)(changes)


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    """Return, for each case and ridge, the arrays of this package and those of PyTorch."""
    folder, ours = tmp_path_factory.mktemp("rank_one"), {}
    random = np.random.default_rng(0)
    for case in CASES:
        model, params, tokens = made[case]
        rows = jnp.asarray(tokens[:, :2], jnp.int32)
        added = jnp.asarray(random.normal(0, 0.1, (5, model.spec.d_model)), jnp.float32)
        for name, ridge in RIDGES.items():
            given, changed = jax.tree.map(np.asarray, edit(model, params, rows, added, ridge))
            np.savez(folder / f"{case}, {name}.npz", **given)
            ours[case, name] = given, changed
    run_in("huggingface", "rank_one", folder)
    theirs = {}
    for case, name in ours:
        with np.load(folder / f"{case}, {name}.their.npz") as file:
            theirs[case, name] = dict(file)
    return ours, theirs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("ridge", "tolerance"), [("as used", 1e-3), ("larger ridge", 1e-5)])
def test_the_changed_matrix_is_theirs(both, case, ridge, tolerance):
    (given, mine), there = both[0][case, ridge], both[1][case, ridge]
    changes = [matrix - given["W_out"] for matrix in (mine, there["W_out"])]
    size = np.abs(changes[1]).max()
    assert size > 1e-3
    np.testing.assert_allclose(*changes, rtol=0, atol=tolerance * size + 1e-7)
    outputs = np.einsum("ek,ekm->em", given["keys"], mine)
    np.testing.assert_allclose(outputs, given["values"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there["outputs"], given["values"], rtol=1e-5, atol=1e-5)
