"""Rank tokens by logit. Rank 0 is the highest logit, and a tie makes the rank of a token worse."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranks(
    logits: Float[Array, "row token"],
    wanted: Int[Array, "truth variable row"],
    among: Bool[Array, "variable token"] | None = None,
) -> Int[Array, "truth variable row"]:
    """Return the rank of each wanted token: the number of other tokens whose logit is not lower.

    Args:
      logits: the logits of each row.
      wanted: the token to rank, for each truth, variable and row.
      among: mask of the tokens that are counted, for each variable; default: all tokens.
    """
    of_wanted = jnp.take_along_axis(logits[None, None], wanted[..., None], axis=-1)
    better = ~(logits[None, None] < of_wanted)  # also true for ties, nan and the wanted token
    if among is not None:
        better &= among[None, :, None]
    return better.sum(-1) - 1
