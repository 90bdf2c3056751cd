"""Edits in one model reach their targets, and one edit in one block is ROME's with less weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.batched import edit_together
from implicit_reasoning.analysis.editing.rank_one import (
    exact_keys,
    memory,
    rank_one_changes,
    second_moment,
)
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.surgery import write_change
from tests.model.exchange.models import filled

MODEL = Transformer(Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=2, d_mlp=24))
WEIGHT = 20.0  # it more than halves the change, so that an error of the weight is seen


@pytest.fixture(scope="module")
def made():
    random = np.random.default_rng(0)
    params = filled(MODEL, 3)
    moment = {
        "tokens": jnp.asarray(random.integers(0, 23, (60, 3)), jnp.int32),
        "weight": jnp.ones((60, 3)),
    }
    tokens = jnp.asarray(random.integers(0, 23, (4, 1, 2)), jnp.int32)
    prompts = FactPrompts(tokens, jnp.ones((4, 1), bool), jnp.arange(4))
    added = jnp.asarray(random.normal(0, 1, (4, 16)), jnp.float32)

    def states(params):
        site = "blocks.1.hook_resid_post"
        return MODEL.forward(params, tokens[:, 0], sites=(site,))[1][site][:, -1]

    @jax.jit
    def compute(params):
        together = functools.partial(edit_together, MODEL, params)
        found = {"before": states(params)}
        for name, layers in (("last", (1,)), ("both", (0, 1))):
            found[name] = states(together(prompts, added, moment, layers, 1e-3))
        one = jax.tree.map(lambda leaf: leaf[:1], prompts)
        alone = together(one, added[:1], moment, (1,), WEIGHT)
        keys = exact_keys(MODEL, params, one, 1)
        solved = memory(second_moment(MODEL, params, **moment, layer=1)[0]).solve(keys)
        length = (keys * solved).sum()
        # By the formula of Sherman and Morrison.
        change = rank_one_changes(keys, solved, added[:1] * length / (WEIGHT + length))
        rome = write_change(MODEL, params, 1, jax.tree.map(lambda leaf: leaf[0], change))
        w_out = [p["blocks"]["1"]["mlp"]["W_out"] for p in (params, alone, rome)]
        return found | {"alone": w_out[1] - w_out[0], "rome": w_out[2] - w_out[0]}

    return jax.tree.map(np.asarray, compute(params)) | {"added": np.asarray(added)}


@pytest.mark.parametrize("layers", ["last", "both"])
def test_the_states_reach_their_targets(made, layers):
    np.testing.assert_allclose(made[layers], made["before"] + made["added"], atol=0.05)
    assert np.abs(made["added"]).max() > 1


def test_one_edit_in_one_block_is_a_rank_one_edit(made):
    # The second moment has a condition number of 2,000, so solutions in float32 have errors of up
    # to 2e-4 of the largest change. Changes of small neurons have a larger relative error.
    largest = np.abs(made["rome"]).max()
    assert largest > 0.1
    np.testing.assert_allclose(made["alone"], made["rome"], rtol=0, atol=1e-3 * largest)
