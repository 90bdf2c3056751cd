"""Check of token numbers; a gather would clamp invalid ones to the valid range without an error."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Int

from implicit_reasoning.errors import InputError


def check_tokens(tokens: Int[Array | np.ndarray, "*batch pos"], d_vocab: int) -> None:
    """Check that a model has all tokens; traced tokens are not checked.

    A compiled program does not check its tokens, because it would have to wait for the result. The
    caller of such a program checks the tokens here, on the host.

    Args:
      tokens: the prompts, `[*batch, pos]`.
      d_vocab: number of tokens of the model.

    Raises:
      InputError: a token is negative, or `d_vocab` or more.
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
