"""A check of token indices. Without this check, a gather clamps invalid tokens without an error."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Int

from implicit_reasoning.errors import InputError


def check_tokens(tokens: Int[Array | np.ndarray, "*batch pos"], d_vocab: int) -> None:
    """Check that all tokens are in the vocabulary of a model; traced tokens are not checked.

    A compiled program cannot raise an error for its tokens. Call this function before a compiled
    program, with the tokens as concrete arrays.

    Args:
      tokens: the prompts, `[*batch, pos]`.
      d_vocab: the size of the vocabulary.

    Raises:
      InputError: a token is negative, or at least `d_vocab`.
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
