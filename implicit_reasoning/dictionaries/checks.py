"""What can be wrong with the numbers of a configuration of dictionaries, said before training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from implicit_reasoning.dictionaries.kinds import Kind
from implicit_reasoning.dictionaries.variants import Variant
from implicit_reasoning.errors import InputError


def check_values(name: str, sparsities: Sequence[float]) -> None:
    """Raise one `InputError` that lists what is wrong with the name and the sparsities."""
    faults = []
    # A folder of the run, beside others.
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        faults.append(f"name is {name!r}; it must be the name of a folder, without / or \\")
    if not sparsities:
        faults.append("sparsities is empty; it must have at least one number")
    if faults:
        raise InputError(f"the dictionaries cannot be trained: {'; '.join(faults)}")


def check_sparsities(
    sparsities: Sequence[float], batch_size: int, kind: Kind, name: str, variant: Variant
) -> None:
    """Refuse sparsities that mean nothing for a variant, or nested widths that do not fit.

    Args:
      sparsities: of the dictionaries.
      batch_size: states of a step.
      kind: of the dictionaries.
      name: of the variant, for the message.
      variant: whose `knob` says what a sparsity is.

    Raises:
      InputError: a number of features that is not whole, below 1 or above the width, or a negative
        coefficient; it is named.
    """
    for sparsity in map(float, sparsities):
        if fault := _fault(sparsity, kind.d_sae, variant, batch_size):
            raise InputError(f"sparsities has {sparsity:g}; for variant {name!r} {fault}")
    widths = getattr(variant, "widths", ())
    if widths and widths[-1] >= kind.d_sae:
        raise InputError(
            f"options.widths is {tuple(widths)}; nested dictionaries must be smaller than the "
            f"whole one, whose width is {kind.d_sae}"
        )


def _fault(sparsity: float, width: int, variant: Variant, batch: int) -> str:
    """What a sparsity must be, in words; nothing where it is that."""
    if variant.knob != "k":
        good = math.isfinite(sparsity) and sparsity >= 0
        return "" if good else "it is the coefficient of a penalty, 0 or more"
    if variant.architecture == "topk":
        good = 1 <= sparsity <= width and float(sparsity).is_integer()
        return "" if good else f"it is k, a whole number between 1 and the width, {width}"
    # Of a whole batch: the mean of k, which may be a fraction.
    good = 0 < sparsity <= width and math.floor(sparsity * batch) >= 1
    why = f"it is the mean of k, at most the width, {width}, with one active feature in a batch"
    return "" if good else why
