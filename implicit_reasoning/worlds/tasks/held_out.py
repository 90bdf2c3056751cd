"""Contexts that a task holds out, and a check that what they ask occurs in training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.world import Stream, stream


def hold_out(seed: int, count: int, fraction: float) -> Bool[np.ndarray, " context"]:
    """Choose `round(fraction * count)` contexts at random; True if a context is held out.

    For the same seed, the contexts of a smaller fraction are a subset of those of a larger one.

    Args:
      seed: random seed of the world.
      count: number of contexts.
      fraction: fraction of the contexts that are held out, from 0 to 1.
    """
    chosen = np.zeros(count, bool)
    chosen[stream(seed, Stream.HELD_OUT).permutation(count)[: round(fraction * count)]] = True
    return chosen


def check_answers_are_trained(
    trained: Int[np.ndarray, " train"], tested: Int[np.ndarray, " test"], vocab: tuple[str, ...]
) -> None:
    """Check that every answer of a test row is also the answer of a training row.

    Args:
      trained: answers of the training rows.
      tested: answers of the test rows.
      vocab: names of the tokens, for the error message.

    Raises:
      InputError: a test row has another answer. The message names the answer.
    """
    missing = np.setdiff1d(tested, trained)
    if len(missing):
        raise InputError(
            f"{len(missing)} answers of test rows are never trained on, for example "
            f"{vocab[missing[0]]}: raise n_train, or lower holdout"
        )
