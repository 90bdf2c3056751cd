"""Changes of W_out as edits, as written weights and as a continued pass are the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.surgery import (
    LowRankChange,
    change_edits,
    change_point,
    changed_depths,
    logits_after_change,
    write_change,
)
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import SPEC, filled, tokens_for

PLAIN = Transformer(SPEC)
LOOPED = Transformer(dataclasses.replace(SPEC, n_loops=2))
COUNT, RANK = 3, 2


def changes(spec, seed=0):
    """Return a stack of random changes."""
    random = np.random.default_rng(seed)
    shapes = (COUNT, RANK, spec.d_mlp), (COUNT, RANK, spec.d_model)
    return LowRankChange(*(random.normal(0, 0.3, shape).astype(np.float32) for shape in shapes))


@pytest.mark.parametrize(
    "model, layers",
    [
        pytest.param(PLAIN, (0, 1), id="plain"),
        pytest.param(LOOPED, (0, 3), id="looped", marks=pytest.mark.slow),
    ],
)
def test_edits_written_weights_and_a_continued_pass_are_the_same(model, layers):
    """Also for a stack of changes: the edits are vmapped over their factors."""
    params, tokens = filled(model), tokens_for(model.spec)
    positions = jnp.asarray(np.arange(len(tokens))[:, None] % tokens.shape[1])
    stack = changes(model.spec)

    @jax.jit
    def compute(params, stack):
        def of_change(change, layer):
            edits = change_edits(model, layer, change)
            start = change_point(model, params, tokens, layer)
            return (
                forward_at(model, params, tokens, positions, edits=edits)[0],
                forward_at(model, write_change(model, params, layer, change), tokens, positions)[0],
                logits_after_change(model, params, start, layer, change, positions),
                logits_after_change(model, params, start, layer, change),
                model.forward(params, tokens, edits=edits)[0],
            )

        unchanged = forward_at(model, params, tokens, positions)[0]
        found = {layer: jax.vmap(lambda one, n=layer: of_change(one, n))(stack) for layer in layers}
        return unchanged, found

    unchanged, found = jax.tree.map(np.asarray, compute(params, stack))
    for edited, written, continued, at_end, whole in found.values():
        np.testing.assert_allclose(edited, written, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(continued, written, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(at_end[:, :, 0], whole[:, :, -1], rtol=1e-4, atol=1e-4)
        assert np.abs(edited - unchanged).max() > 0.1


def test_all_loops_of_a_block_are_changed():
    assert [changed_depths(PLAIN, layer) for layer in (0, 1)] == [(0,), (1,)]
    assert [changed_depths(LOOPED, layer) for layer in (0, 3)] == [(0, 2), (1, 3)]


def test_the_norm_is_that_of_the_product():
    one = LowRankChange(*(leaf[0] for leaf in changes(SPEC)))
    np.testing.assert_allclose(
        jax.jit(LowRankChange.norm)(one), np.linalg.norm(one.keys.T @ one.values), rtol=1e-5
    )


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"layer is 2; the model has the blocks 0 to 1"):
        changed_depths(PLAIN, 2)
    other = dataclasses.replace(SPEC, block="tests.own_block:GatedRecurrence")
    with pytest.raises(InputError, match="a change of W_out needs"):
        changed_depths(Transformer(other), 0)
