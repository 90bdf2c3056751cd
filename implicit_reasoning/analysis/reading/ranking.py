"""Where a token stands among the others: rank 0 is the top, and a tie counts against it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranks(
    logits: Float[Array, "row token"],
    wanted: Int[Array, "truth variable row"],
    among: Bool[Array, "variable token"] | None = None,
) -> Int[Array, "truth variable row"]:
    """How many other tokens (of those `among`, by default all) are not below the wanted one."""
    of_wanted = jnp.take_along_axis(logits[None, None], wanted[..., None], axis=-1)
    better = ~(logits[None, None] < of_wanted)  # ties, nans and the token itself too
    if among is not None:
        better &= among[None, :, None]
    return better.sum(-1) - 1
