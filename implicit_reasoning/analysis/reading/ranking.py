"""Rank tokens by logit, and score binary predictors by F1.

Rank 0 is the highest logit, and ties count against a token.
"""

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


def f1_score(
    both: Float[Array, "*any"], n_value: Float[Array, "*#any"], n_active: Float[Array, "*#any"]
) -> Float[Array, "*any"]:
    """Compute F1 from counts of states.

    The predictor is "the feature is active", and the target is "the state has the value". F1 is 0
    if all counts are 0.

    Args:
      both: number of states that activate the feature and have the value.
      n_value: number of states that have the value.
      n_active: number of states that activate the feature.
    """
    return 2 * both / jnp.maximum(n_value + n_active, 1)
