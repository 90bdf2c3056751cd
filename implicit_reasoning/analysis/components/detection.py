"""Patterns of attention that name a head, and the similarity of a head's attention to them.

The patterns are those of TransformerLens's `head_detector`: a previous-token head attends to the
token before the query, a duplicate-token head to earlier occurrences of the query's token, and an
induction head to the tokens after these occurrences.

Sources: Elhage et al. 2021 and Olsson et al. 2022 (induction heads); Wang et al. 2022 (duplicate
token heads); TransformerLens (the patterns and the similarity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.errors import InputError

Tokens = Int[Array, "batch pos"]
Detection = Bool[Array, "batch query_pos key_pos"]


def previous_token(tokens: Tokens) -> Detection:
    """Return true at the key just before each query."""
    n_pos = tokens.shape[1]
    before = jnp.arange(n_pos)[:, None] == jnp.arange(n_pos)[None] + 1
    return jnp.broadcast_to(before[None], (len(tokens), n_pos, n_pos))


def duplicate_token(tokens: Tokens) -> Detection:
    """Return true at all earlier keys with the token of the query."""
    equal = tokens[:, :, None] == tokens[:, None]
    return equal & jnp.tril(jnp.ones(equal.shape[1:], bool), -1)[None]


def induction(tokens: Tokens) -> Detection:
    """Return true at all keys that come just after an earlier key with the token of the query."""
    duplicate = duplicate_token(tokens)
    return jnp.concatenate([jnp.zeros_like(duplicate[..., :1]), duplicate[..., :-1]], axis=-1)


DETECTIONS: Mapping[str, Callable[[Tokens], Detection]] = {
    "previous token": previous_token,
    "duplicate token": duplicate_token,
    "induction": induction,
}
"""The patterns by name."""


def similarity(
    pattern: Float[Array, "*cell query_pos key_pos"],
    detection: Float[Array, "*#cell query_pos key_pos"] | Bool[Array, "*#cell query_pos key_pos"],
    *,
    exclude_first: bool = False,
    exclude_current: bool = False,
    measure: Literal["mul", "abs"] = "mul",
) -> Float[Array, "*cell"]:
    """Return TransformerLens's similarity of attention patterns and detection patterns.

    Args:
      pattern: attention patterns.
      detection: the pattern that a head of a type would have.
      exclude_first: ignore the attention to the first position (TransformerLens: `exclude_bos`).
      exclude_current: ignore the attention of positions to themselves.
      measure: "mul" is the share of attention at the true entries of `detection`. "abs" is 1 minus
        the mean over query positions of the summed absolute differences.

    Raises:
      InputError: `measure` is neither "mul" nor "abs".
    """
    n_pos = pattern.shape[-1]
    kept = jnp.ones((n_pos, n_pos), bool)
    if exclude_first:
        kept &= (jnp.arange(n_pos) > 0)[None]
    if exclude_current:
        kept &= ~jnp.eye(n_pos, dtype=bool)
    kept = jnp.broadcast_to(kept, pattern.shape)
    wanted = jnp.broadcast_to(detection, pattern.shape).astype(pattern.dtype)
    if measure == "mul":
        counted = jnp.where(kept, pattern, 0.0)
        return (counted * wanted).sum((-2, -1)) / counted.sum((-2, -1))
    if measure == "abs":
        return 1 - jnp.where(kept, jnp.abs(pattern - wanted), 0.0).sum((-2, -1)) / n_pos
    raise InputError(f"measure is {measure!r}; choose 'mul' or 'abs'")


def attention_to(
    pattern: Float[Array, "batch head query_pos key_pos"], detection: Detection
) -> tuple[Float[Array, "head batch"], Float[Array, "head batch"]]:
    """Return the mean attention at the true entries of `detection`, and at other entries.

    Both are means over the queries that have a true entry. The second value is the null: the
    attention to as many other keys, of which the query has seen all equally often. A query that
    has no other key does not count.

    Args:
      pattern: attention patterns.
      detection: the keys that a head of a type attends to.

    Returns:
      `(score, null)`; 0 for rows without a query that counts.
    """
    seen = jnp.tril(jnp.ones(detection.shape[1:], bool))[None]
    wanted = detection & seen
    n_wanted, n_other = wanted.sum(-1), (seen & ~wanted).sum(-1)
    counted = (n_wanted > 0) & (n_other > 0)
    at = jnp.einsum("bhqk,bqk->hbq", pattern, wanted.astype(pattern.dtype), precision="highest")
    rest = jnp.where(seen & ~wanted, 1.0, 0.0)
    elsewhere = jnp.einsum("bhqk,bqk->hbq", pattern, rest, precision="highest")
    elsewhere = elsewhere * (n_wanted / jnp.maximum(n_other, 1))[None]
    n_queries = jnp.maximum(counted.sum(-1), 1)[None]

    def mean(values: Array) -> Array:
        return jnp.where(counted[None], values, 0.0).sum(-1) / n_queries

    return mean(at), mean(elsewhere)


def has_queries(detection: Detection) -> Bool[Array, " batch"]:
    """Return whether a row has a query that `attention_to` counts."""
    seen = jnp.tril(jnp.ones(detection.shape[1:], bool))[None]
    wanted = (detection & seen).any(-1)
    return (wanted & (seen & ~detection).any(-1)).any(-1)
