"""Token numbers from outside: a gather clamps those that do not exist, so they are refused."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Int

from implicit_reasoning.errors import InputError


def check_tokens(tokens: Int[Array | np.ndarray, "*batch pos"], d_vocab: int) -> None:
    """Raise an `InputError` if a token is none of a model's; nothing where tokens are traced.

    A compiled program does not look at its tokens, as that would make it wait: whoever calls one
    checks them here, on the host.

    Args:
      tokens: the prompts.
      d_vocab: number of tokens of the model.
    """
    if isinstance(tokens, jax.core.Tracer):
        return
    values = np.asarray(tokens)
    wrong = (values < 0) | (values >= d_vocab)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise InputError(
            f"token {int(values[place])} (first at row {', '.join(map(str, place[:-1])) or 0}, "
            f"position {place[-1]}) does not exist: the model has {d_vocab:,} tokens, from 0 to "
            f"{d_vocab - 1:,}"
        )
