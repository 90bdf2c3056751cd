"""Distributed alignment search (DAS): learn a subspace that represents a variable.

In an interchange, the component of a base state in the subspace is replaced by the component of a
source state. The subspace is optimized so that the model then gives the right answer for the value
of the variable in the source.

Source: Geiger et al. 2024, *Finding alignments between interpretable causal variables and
distributed neural representations*. The isolation criterion is from Huang et al. 2024, RAVEL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.model import Params, Transformer


class SearchSettings(NamedTuple):
    """Settings of the optimization.

    Attributes:
      rank: the dimension of each subspace.
      steps: the number of optimization steps of Adam.
      batch: the number of pairs per step.
      learning_rate: the learning rate of Adam.
    """

    rank: int
    steps: int
    batch: int = 64
    learning_rate: float = 5e-3


def orthonormal(weights: Float[Array, "*cell d_model rank"]) -> Float[Array, "*cell d_model rank"]:
    """Return an orthonormal basis of the span of the columns.

    The basis is computed by a QR decomposition. The search optimizes `weights` without constraints,
    and applies the basis.
    """
    return jnp.linalg.qr(weights)[0]


def interchange(
    base: Float[Array, "pair d_model"],
    source: Float[Array, "pair d_model"],
    basis: Float[Array, "d_model rank"],
) -> Float[Array, "pair d_model"]:
    """Replace the component of base states in a subspace by the component of the source states.

    Args:
      base: the states to edit.
      source: the states whose component is inserted.
      basis: an orthonormal basis of the subspace.
    """
    inside = jnp.matmul(source - base, basis, precision="highest")
    return base + jnp.matmul(inside, basis.T, precision="highest")


class AlignmentData(NamedTuple):
    """Training pairs of the search, with the states of all rows.

    Attributes:
      states: the residual stream in some dataset rows.
      place: the indices of the positions at which subspaces are learned.
      base: the base of each pair, as an index along the axis `row` of `states`.
      source: the source of each pair at each position, as an index along the axis `row` of
        `states`.
      expected: the expected answer token after the interchange; -1 if the base has no source at the
        position.
    """

    states: Float[Array, "layer row n_pos d_model"]
    place: Int[Array, " pos"]
    base: Int[Array, " pair"]
    source: Int[Array, "pos pair"]
    expected: Int[Array, "pos pair"]


def start(
    model: Transformer, n_places: int, rank: int, key: Key[Array, ""]
) -> Float[Array, "layer pos d_model rank"]:
    """Return random initial weights for the search.

    Args:
      model: the model.
      n_places: the number of positions at which subspaces are learned.
      rank: the dimension of each subspace.
      key: the random key.
    """
    d_model = model.spec.d_model
    shape = (model.spec.depth + 1, n_places, d_model, rank)
    return jax.random.normal(key, shape) / d_model**0.5


def align(
    model: Transformer,
    params: Params,
    material: AlignmentData,
    weights: Float[Array, "layer pos d_model rank"],
    settings: SearchSettings,
    key: Key[Array, ""],
    *,
    layers: Sequence[int] | None = None,
) -> Float[Array, "layer pos d_model rank"]:
    """Learn one subspace for each layer and position.

    The loss of a subspace is the mean of -log p(expected answer) over pairs of states. The sum of
    the losses of all subspaces is minimized.

    Args:
      model: the model.
      params: the parameters of the model, which are not changed.
      material: the training pairs.
      weights: the initial weights, from `start`.
      settings: the settings of the optimization.
      key: the random key for the choice of batches.
      layers: the layers of `material.states` and `weights`; default: 0 to `depth`.

    Returns:
      The learned weights, which `orthonormal` converts to bases.
    """
    optimizer = optax.adam(settings.learning_rate)
    chosen = tuple(range(model.spec.depth + 1)) if layers is None else tuple(layers)
    loss = _loss(model, params, material, chosen)

    def step(index: Any, carry: Any) -> Any:
        weights, state = carry
        batch = jax.random.randint(
            jax.random.fold_in(key, index), (settings.batch,), 0, len(material.base)
        )
        updates, state = optimizer.update(jax.grad(loss)(weights, batch), state)
        return optax.apply_updates(weights, updates), state

    first = (weights, optimizer.init(weights))
    found: Array = jax.lax.fori_loop(0, settings.steps, step, first)[0]
    return found


def _loss(
    model: Transformer, params: Params, material: AlignmentData, layers: tuple[int, ...]
) -> Callable[[Array, Array], Array]:
    def at_place(number: int, weights: Array, place: Array, pairs: tuple[Array, ...]) -> Array:
        base, source, expected = pairs
        rest, states = material.states[number][base], material.states[number][source, place]
        new = interchange(rest[:, place], states, orthonormal(weights))
        patched = rest.at[:, place].set(new)
        logits = logits_from_layer(model, params, patched, layers[number])
        chance = jax.nn.log_softmax(logits)
        wanted = jnp.take_along_axis(chance, jnp.maximum(expected, 0)[:, None], axis=1)[:, 0]
        return -jnp.where(expected >= 0, wanted, 0).mean()

    def loss(weights: Array, batch: Array) -> Array:
        total = jnp.zeros(())
        for number in range(len(layers)):
            for index in range(len(material.place)):
                pairs = (
                    material.base[batch],
                    material.source[index][batch],
                    material.expected[index][batch],
                )
                total += at_place(number, weights[number, index], material.place[index], pairs)
        return total

    return loss
