"""The cost of a step is compared with the matrix products that JAX traces."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.blocks import GPT2Block, attention
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.training.cost import step_cost
from implicit_reasoning.training.step import answer_loss

BATCH, POSITIONS, SLOTS = 3, 4, 2
SHAPES = {
    "untied": {"n_layers": 2},
    "tied": {"n_layers": 1, "tied": True},
    "looped": {"n_layers": 1, "n_loops": 3},
    "bare": {"n_layers": 3, "normalization": "none", "act_fn": "relu"},
}


def make_spec(**changes):
    sizes = {"d_model": 12, "n_heads": 3, "d_mlp": 20, "d_vocab": 17, "n_ctx": POSITIONS}
    return Spec(**(sizes | changes))


def traced_flops(jaxpr):
    """Return the FLOPs of every `dot_general` in a jaxpr, including inner jaxprs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        total += sum(map(traced_flops, jaxprs_in_params(equation.params)))
    return total


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_flops_are_those_of_the_traced_step(changes, monkeypatch):
    # Attention over few positions is written as sums. It is written as products here, which can be
    # counted.
    monkeypatch.setattr(attention, "_FEW_PAIRS", 0)
    spec = make_spec(**changes)
    model, tokens = Transformer(spec), jnp.zeros((BATCH, POSITIONS), int)
    positions, answers = jnp.zeros((BATCH, SLOTS), int), jnp.zeros((BATCH, SLOTS), int)

    def loss(params):
        return answer_loss(forward_at(model, params, tokens, positions)[0], answers)

    params = jax.eval_shape(model.init, jax.random.key(0))
    cost = step_cost(spec, batch_size=BATCH, n_pos=POSITIONS, n_slots=SLOTS)
    assert cost.forward == traced_flops(jax.make_jaxpr(loss)(params).jaxpr)
    assert cost.step == traced_flops(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_trimmed_block_costs_less():
    """At the published size with three positions and one answer, keys and values are computed for
    all positions, and everything else for a third of them.
    """
    spec = make_spec(d_model=768, n_heads=12, d_mlp=3072, n_layers=8)
    whole, trimmed = GPT2Block.flops(spec, 3, 3), GPT2Block.flops(spec, 3, 1)
    assert 0.4 < trimmed / whole < 0.45  # (2 * 3 + 10) / (12 * 3), plus some attention
