"""The vectors that heads copy between positions, and the values that the vectors identify."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runtime.lapack import one_at_a_time, triangle

_NAMES = ("attn.hook_pattern", "attn.hook_v", "hook_resid_mid")


def moved_sites(model: Transformer) -> tuple[str, ...]:
    """Return the names of the sites of patterns, values and the residual after attention."""
    return tuple(f"blocks.{block}.{name}" for block in range(model.spec.depth) for name in _NAMES)


class MovedVectors(NamedTuple):
    """What each head adds to the residual stream on each route.

    Attributes:
      vectors: the vectors `A v W_O`, in an orthonormal basis of the rows of W_O.
      mass: the attention of the target to the source.
      size: the length of the vectors, relative to the residual stream.
    """

    vectors: Float[Array, "block head route row d_head"]
    mass: Float[Array, "block head route row"]
    size: Float[Array, "block head route"]


def moved_vectors(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "row pos"],
    source: Int[Array, " route"],
    target: Int[Array, " route"],
) -> MovedVectors:
    """Return what each head adds to the residual stream on each route.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      tokens: the prompts.
      source: the index of the earlier position of each route.
      target: the index of the later position of each route.
    """
    _, found = model.forward(params, tokens, sites=moved_sites(model))
    blocks = []
    for number in range(model.spec.depth):
        pattern, v, resid = (found[f"blocks.{number}.{name}"] for name in _NAMES)
        weight = params["blocks"][str(number % model.spec.n_layers)]["attn"]["W_O"]
        # W_O = (lower triangular) @ (orthonormal rows), so these coordinates preserve lengths.
        root = one_at_a_time(triangle, weight.mT).mT
        written = jnp.einsum("bkhe,hef->bkhf", v, root, precision="highest")
        mass = jnp.moveaxis(pattern, 0, -1)[:, target, source]  # [head, route, row]
        vectors = mass[..., None] * jnp.transpose(written[:, source], (2, 1, 0, 3))
        whole = _spread(jnp.swapaxes(resid, 0, 1))[target][None]
        length = _spread(vectors)
        blocks.append(MovedVectors(vectors, mass, jnp.where(whole > 0, length / whole, 0.0)))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *blocks)


def _spread(x: Float[Array, "*cell row width"]) -> Float[Array, "*cell"]:
    """Return the root mean square of the distance from the mean over rows."""
    return jnp.sqrt(jnp.square(x - x.mean(-2, keepdims=True)).sum(-1).mean(-1))


def identify(
    vectors: Float[Array, "row width"],
    labels: Int[Array, " row"],
    fits: Float[Array, " row"],
    classes: Int[Array, " value"],
) -> Bool[Array, " row"]:
    """Return whether the mean of its own value is the nearest one to each vector.

    Args:
      vectors: the vectors.
      labels: the value of a variable in each row.
      fits: 1 for rows that contribute to the means, otherwise 0. Such a row is compared with the
        mean of its value over all other rows.
      classes: the numbers of all values.
    """
    weight = (labels[None] == classes[:, None]) * fits[None]
    count = weight.sum(1)
    means = _dot(weight, vectors) / jnp.maximum(count, 1)[:, None]
    distance = _distances(vectors, means)
    own = labels[:, None] == classes[None]
    other = jnp.where(own | (count == 0)[None], jnp.inf, distance).min(1)
    mine = jnp.where(own, distance, 0.0).sum(1)
    size = count[labels]
    # Without the row itself, the difference from the mean is n / (n - 1) times as long.
    without = jnp.square(size / jnp.maximum(size - 1, 1)) * mine
    return jnp.where(fits > 0, (without < other) & (size > 1), (mine < other) & (size > 0))


def identify_pairs(
    vectors: Float[Array, "row width"],
    others: Float[Array, "row width"],
    labels: Int[Array, " row"],
    wanted: Int[Array, " row"],
) -> Bool[Array, " row"]:
    """Return whether the mean vector of the wanted class is the nearest one to each other vector.

    Args:
      vectors: the vectors from which the means are computed.
      others: the vectors that are compared with the means.
      labels: the class of each of `vectors`.
      wanted: the class of each of `others`.
    """
    classes = jnp.arange(len(labels))
    weight = (labels[None] == classes[:, None]).astype(vectors.dtype)
    count = weight.sum(1)
    means = _dot(weight, vectors) / jnp.maximum(count, 1)[:, None]
    distance = jnp.where((count == 0)[None], jnp.inf, _distances(others, means))
    own = wanted[:, None] == classes[None]
    mine = jnp.where(own, distance, 0.0).sum(1)
    return mine < jnp.where(own, jnp.inf, distance).min(1)


def _distances(
    x: Float[Array, "row width"], means: Float[Array, "value width"]
) -> Float[Array, "row value"]:
    """Return squared distances."""
    lengths = jnp.square(x).sum(1)[:, None] + jnp.square(means).sum(1)[None]
    return jnp.maximum(lengths - 2 * _dot(x, means.T), 0.0)


def _dot(x: Float[Array, "a b"], y: Float[Array, "b c"]) -> Float[Array, "a c"]:
    return jnp.matmul(x, y, precision="highest")
