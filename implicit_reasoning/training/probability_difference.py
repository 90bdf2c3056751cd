"""A measure for tasks in which several tokens are right: the probability difference.

The probability difference of a row is the probability of the right tokens minus the probability of
the wrong tokens. It is 1 if the model predicts only right tokens. Tokens that are neither, such as
tokens of another kind, count as nothing.

Source: Hanna et al. 2023, section 2 ("probability difference").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.worlds import Dataset

COLUMN = "probability_difference"
"""Name of a column of `metrics.jsonl`: `probability_difference/test_years`."""

RANGES = ("right_first", "right_last", "wrong_first", "wrong_last")
"""Truth columns of such tasks: the first and the last right token, and the same for wrong ones."""


def answer_ranges(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> Int[np.ndarray, "row 4"] | None:
    """Return the ranges of right and of wrong tokens; None if answers are single tokens.

    Args:
      dataset: the dataset.
      rows: row numbers.
    """
    if not dataset.truth.keys() >= set(RANGES):
        return None
    return np.column_stack([dataset.truth[name][rows] for name in RANGES])


def probability_difference(
    logits: Float[Array, "row d_vocab"], ranges: Int[Array | np.ndarray, "row 4"]
) -> Float[Array, " row"]:
    """Return the probability of the right tokens minus that of the wrong tokens, from -1 to 1.

    Args:
      logits: the logits at the position that predicts the answer.
      ranges: first and last right token, and first and last wrong token, of each row. In a row
        without right and wrong tokens, all four are -1, and the difference is 0.
    """
    token = jnp.arange(logits.shape[-1])[None]
    right, last_right, wrong, last_wrong = jnp.asarray(ranges).T[..., None]
    is_right, is_wrong = (
        (first <= token) & (token <= last)
        for first, last in ((right, last_right), (wrong, last_wrong))
    )
    probability = jax.nn.softmax(logits, axis=-1)
    difference: Array = (probability * is_right - probability * is_wrong).sum(-1)
    return difference
