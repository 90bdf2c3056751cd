"""Masks of edges that are trained: few live edges, and a metric close to the full model.

Every edge has a gate between 0 and 1 with the hard-concrete distribution: a stretched and clipped
concrete variable, which is exactly 0 or exactly 1 with positive probability. The loss is the mean
metric of a run with drawn gates, plus a weight times the expected share of gates that are not 0.
The whole training is one `lax.scan`, and `jax.vmap` runs all weights together.

Sources: Louizos et al. 2018, "Learning sparse neural networks through L0 regularization", sections
2.2 and 4 (distribution, its constants, expected number of gates); Cao et al. 2021, "Low-complexity
probing via finding subnetworks" (masks as a probe); Bhaskar et al. 2024, "Finding transformer
circuits with edge pruning", section 3 (masks of edges; it reaches a given size by a Lagrangian, and
this module has a fixed weight instead).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis.circuits.scores import Metric, Runs
from implicit_reasoning.analysis.circuits.selection import selectable
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges

TEMPERATURE = 2 / 3
"""The temperature of the concrete distribution."""

STRETCH = (-0.1, 1.1)
"""The interval to which the concrete variable is stretched before it is clipped to [0, 1]."""

START = 2.0
"""The logit of all gates at the start; a gate is then 1 with probability 0.56."""


class LearnedMasks(NamedTuple):
    """Trained masks, for each weight of the penalty.

    Attributes:
      masks: the gates without noise, from 0 to 1. They are 0 where the edge is not alive.
      gate_logits: the trained logits of the gates, which rank the edges also where masks are equal.
      loss: the loss at each step.
      metric: the mean metric of the run with drawn gates at each step.
    """

    masks: Float[Array, "weight edge pos"]
    gate_logits: Float[Array, "weight edge pos"]
    loss: Float[Array, "weight step"]
    metric: Float[Array, "weight step"]


def learn_masks(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    weights: Float[Array | np.ndarray, " weight"],
    key: Key[Array, ""],
    *,
    steps: int = 500,
    learning_rate: float = 0.1,
    by_position: bool = True,
) -> LearnedMasks:
    """Train the masks of all edges with Adam.

    Args:
      model: the model.
      params: the parameters of one model. They do not change.
      graph: the edge graph of the model.
      runs: the clean run, and the values of edges whose gate is 0.
      metric: the metric to keep low, such as `acdc.divergence_from` of the clean logits. It must be
        differentiable.
      weights: the weights of the expected share of live edges. A larger weight leaves fewer edges.
      key: the key of the gates. All weights draw the same noise.
      steps: the number of steps.
      learning_rate: the learning rate of Adam.
      by_position: whether each position of an edge has a gate. Otherwise an edge has one gate for
        all positions, and the axis `pos` of the masks has length 1.
    """
    alive = jnp.asarray(selectable(graph, graph.n_pos if by_position else 1))
    optimizer = optax.adam(learning_rate)

    def loss(gate_logits: Array, weight: Array, key: Array) -> tuple[Array, Array]:
        live = jnp.where(alive, draw_gates(gate_logits, key), 1)
        logits, _ = forward_edges(model, params, runs.tokens, graph, live, runs.other)
        value = metric(logits[:, 0]).mean()
        share = expected_live(gate_logits).mean(where=alive)
        return value + weight * share, value

    def train(weight: Array) -> LearnedMasks:
        def step(
            state: tuple[Array, optax.OptState], number: Array
        ) -> tuple[tuple[Array, optax.OptState], tuple[Array, Array]]:
            gate_logits, moments = state
            drawn = jax.random.fold_in(key, number)
            both, gradient = jax.value_and_grad(loss, has_aux=True)(gate_logits, weight, drawn)
            updates, moments = optimizer.update(gradient, moments)
            return (gate_logits + updates, moments), both

        start = jnp.full(alive.shape, START)
        state = start, optimizer.init(start)
        (gate_logits, _), curves = jax.lax.scan(step, state, jnp.arange(steps))
        return LearnedMasks(jnp.where(alive, gates(gate_logits), 0), gate_logits, *curves)

    return jax.vmap(train)(jnp.asarray(weights))


def draw_gates(gate_logits: Float[Array, "*gate"], key: Key[Array, ""]) -> Float[Array, "*gate"]:
    """Draw gates from the hard-concrete distribution.

    Args:
      gate_logits: the logits of the gates (log alpha).
      key: the key of the draw.
    """
    uniform = jax.random.uniform(key, gate_logits.shape, minval=1e-6, maxval=1 - 1e-6)
    noise = jnp.log(uniform) - jnp.log1p(-uniform)
    return _clipped(jax.nn.sigmoid((noise + gate_logits) / TEMPERATURE))


def gates(gate_logits: Float[Array, "*gate"]) -> Float[Array, "*gate"]:
    """Return the gates without noise (Louizos et al. 2018, equation 13)."""
    return _clipped(jax.nn.sigmoid(gate_logits))


def expected_live(gate_logits: Float[Array, "*gate"]) -> Float[Array, "*gate"]:
    """Return the probability that a gate is not 0 (Louizos et al. 2018, equation 12)."""
    low, high = STRETCH
    return jax.nn.sigmoid(gate_logits - TEMPERATURE * np.log(-low / high))


def _clipped(value: Array) -> Array:
    low, high = STRETCH
    return jnp.clip(value * (high - low) + low, 0, 1)
