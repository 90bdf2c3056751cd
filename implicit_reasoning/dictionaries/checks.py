"""Check sparsities and nested widths of dictionaries before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from implicit_reasoning.dictionaries.activations import ActivationFn
from implicit_reasoning.dictionaries.architectures import Architecture
from implicit_reasoning.errors import InputError


def check_sparsities(
    sparsities: Sequence[float],
    batch_size: int,
    architecture: Architecture,
    name: str,
    activation_fn: ActivationFn,
) -> None:
    """Check sparsities and nested widths against the activation function.

    The coefficient of a sparsity penalty must be finite and at least 0. For `topk`, a sparsity must
    be a whole number from 1 to d_sae. For all other functions whose `sparsity_kind` is "k", a
    sparsity must be at most d_sae, and `sparsity * batch_size` must be at least 1. The nested
    widths of `matryoshka` must be smaller than d_sae.

    Args:
      sparsities: sparsities of the dictionaries to train.
      batch_size: number of states per training step.
      architecture: architecture of the dictionaries.
      name: name of the activation function in the error message.
      activation_fn: the activation function of the dictionaries.

    Raises:
      InputError: a sparsity or a nested width is invalid.
    """
    for sparsity in map(float, sparsities):
        if fault := _fault(sparsity, architecture.d_sae, activation_fn, batch_size):
            raise InputError(
                f"sparsities contains {sparsity:g}; for activation function {name!r}, {fault}"
            )
    widths = getattr(activation_fn, "widths", ())
    if widths and widths[-1] >= architecture.d_sae:
        raise InputError(
            f"options.widths is {tuple(widths)}; all nested widths must be smaller than the width "
            f"of the dictionary, which is {architecture.d_sae}"
        )


def _fault(sparsity: float, width: int, activation_fn: ActivationFn, batch: int) -> str:
    """Return what a sparsity must be, or "" if the sparsity is valid."""
    if activation_fn.sparsity_kind != "k":
        good = math.isfinite(sparsity) and sparsity >= 0
        why = "a sparsity is the coefficient of a penalty and must be finite and at least 0"
        return "" if good else why
    if activation_fn.saelens_architecture == "topk":
        good = 1 <= sparsity <= width and float(sparsity).is_integer()
        why = f"a sparsity is k and must be a whole number from 1 to the width, {width}"
        return "" if good else why
    # BatchTopK: the mean of k over a batch, which may be a fraction.
    good = 0 < sparsity <= width and math.floor(sparsity * batch) >= 1
    why = (
        f"a sparsity is the mean number of active features per input; it must be at most the "
        f"width, {width}, and at least 1 / batch_size, {1 / batch:g}"
    )
    return "" if good else why
