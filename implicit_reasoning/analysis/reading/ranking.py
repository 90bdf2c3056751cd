"""Rank tokens by logit. Rank 0 is the highest logit, and ties count against a token."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranks(
    logits: Float[Array, "row token"],
    wanted: Int[Array, "truth variable row"],
    among: Bool[Array, "variable token"] | None = None,
) -> Int[Array, "truth variable row"]:
    """Return the rank of each wanted token. Rank 0 is the highest logit.

    The rank is the number of other tokens whose logit is higher or equal.

    Args:
      logits: the logits of each row.
      wanted: the tokens to rank. The axis `truth` can contain true and shuffled tokens.
      among: for each variable, a mask of the tokens with which a wanted token is compared; default:
        all tokens.
    """
    of_wanted = jnp.take_along_axis(logits[None, None], wanted[..., None], axis=-1)
    better = ~(logits[None, None] < of_wanted)  # also true for ties, nan and the wanted token
    if among is not None:
        better &= among[None, :, None]
    return better.sum(-1) - 1
