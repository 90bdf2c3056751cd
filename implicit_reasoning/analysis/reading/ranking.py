"""Ranks of tokens by logit: rank 0 is the highest logit, and ties count against the token."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranks(
    logits: Float[Array, "row token"],
    wanted: Int[Array, "truth variable row"],
    among: Bool[Array, "variable token"] | None = None,
) -> Int[Array, "truth variable row"]:
    """Return the number of other tokens whose logit is not below that of the wanted token.

    Args:
      logits: the logits of each row.
      wanted: the token to rank, for each truth, variable and row.
      among: tokens that are compared, for each variable; default: all tokens.
    """
    of_wanted = jnp.take_along_axis(logits[None, None], wanted[..., None], axis=-1)
    better = ~(logits[None, None] < of_wanted)  # also true of ties, nans and the token itself
    if among is not None:
        better &= among[None, :, None]
    return better.sum(-1) - 1
