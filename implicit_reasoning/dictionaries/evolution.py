"""Compare features across checkpoints and seeds, and find when features appear.

A feature is compared with the nearest feature of a second dictionary, by the cosine of decoder
rows. For the null control, all decoder rows of the second dictionary are rotated by the same random
rotation.

A feature stands for a value of a ground-truth variable if the feature predicts the value with a
sufficient F1. The median over seeds of this F1 must be at least `MIN_F1`, which is far above the
null control. F1 is computed on facts that were not used to choose the feature
(`measures/matching.py`). The birth of a value is the first step at which a feature stands for the
value. Births are unbiased only with a cold start, which initializes the dictionaries of every
checkpoint at random. With a warm start, a dictionary begins with the features of an earlier or
later checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from implicit_reasoning.analysis.instrument import BaseInstrument
from implicit_reasoning.dictionaries.measures.absorption import MIN_F1
from implicit_reasoning.dictionaries.results import member_coords
from implicit_reasoning.dictionaries.store import ALL_STEPS, TRAINED, Dictionaries

_SEED = 0


class Evolution(BaseInstrument):
    """The name, definition and null controls of the results of `over_training`.

    The class only describes results. The function `over_training` computes the results.
    """

    name = "evolution"
    definition = (
        "For every active feature, the highest cosine with a feature of the dictionary of the "
        "checkpoint before (kept) and of other seeds (agreement), mean over features; nulls: "
        "features of the other dictionary, rotated at random. drift: the cosine of a value's "
        "best feature with its best feature at the checkpoint before."
    )
    outputs = {
        "kept": (),
        "kept_null": (),
        "agreement": (),
        "agreement_null": (),
        "drift": ("concept", "value"),
    }
    nulls = {
        "rotated, checkpoint before": "kept_null",
        "rotated, other seeds": "agreement_null",
    }


def over_training(made: Dictionaries, found: xr.Dataset) -> xr.Dataset:
    """Compare the features of each dictionary across checkpoints and seeds.

    Args:
      made: the set of dictionaries.
      found: measured results with the variable `density` [member, feature]. If the task has
        concepts, `best_feature` and `f1` [member, concept, value] are also needed.

    Returns:
      A dataset with the dimension `member`. `kept` compares each dictionary with the dictionary of
      the previous checkpoint. `kept` is the highest cosine of an active feature with a feature of
      the previous checkpoint, averaged over active features. `agreement` is the same mean for
      dictionaries with different seeds. `kept_null` and `agreement_null` are the null controls.
      `drift` [member, concept, value] is the cosine between a value's best feature and the best
      feature at the previous checkpoint. If there is no dictionary to compare with, the entry is
      nan.
    """
    n = len(made)
    rows = [made.directions(number) for number in range(n)]
    # A baseline may have more features than the dictionaries; its additional columns are cut off.
    alive = found["density"].values[:, : len(rows[0])] > 0
    scores = np.full((4, n), np.nan, np.float32)
    best = found["best_feature"].values if "best_feature" in found else None
    drift = None if best is None else np.full(best.shape, np.nan, np.float32)
    for number in range(n):
        own = rows[number][alive[number]]
        before = _before(made, number)
        if before is not None:
            scores[:2, number] = _nearest(own, rows[before][alive[before]])
            if drift is not None and best is not None:
                pairs = rows[number][best[number]] * rows[before][best[before]]
                drift[number] = pairs.sum(-1)
        others = [_nearest(own, rows[other][alive[other]]) for other in _seeds(made, number)]
        if others:
            scores[2:, number] = np.mean(others, axis=0)
    names = ("kept", "kept_null", "agreement", "agreement_null")
    variables: dict[str, Any] = {
        name: ("member", values) for name, values in zip(names, scores, strict=True)
    }
    if drift is not None:
        # A value that the variable lacks or that has too few states has no meaningful best feature.
        there = found["f1"].notnull().values
        variables["drift"] = ("member", "concept", "value"), np.where(there, drift, np.nan)
    coords = member_coords(made.members, [TRAINED] * n)
    if drift is not None:
        coords |= {dim: found[dim].values for dim in ("concept", "value") if dim in found.coords}
    return xr.Dataset(variables, coords)


def births(result: xr.Dataset, threshold: float = MIN_F1) -> xr.Dataset:
    """Find the training step at which a feature first stands for each value.

    Args:
      result: measured results with the variable `f1` [member, concept, value] for several
        checkpoints.
      threshold: a feature stands for a value if the median F1 over seeds is at least `threshold`.

    Returns:
      A dataset with the dimensions site, sparsity, concept and value. `birth` is the first step at
      which a feature stands for the value, or nan if there is no such step. `kept` is 1 if a
      feature stands for the value at the last step, nan if `birth` is nan, and 0 otherwise.
      `standing` has the additional dimension step. The entries of `standing` are 1 if a feature
      stands for the value at the step, nan if F1 is unknown, and 0 otherwise.
    """
    keys = ["site", "sparsity", "step"]
    median = result["f1"].groupby(keys).median("member", skipna=True)
    known = median.notnull()
    standing = (median >= threshold).where(known)
    steps = xr.DataArray(median["step"].values, dims="step")
    at = xr.where(standing == 1, steps, np.inf).min("step")
    birth = at.where(np.isfinite(at))
    kept = standing.isel(step=-1).where(birth.notnull())
    return xr.Dataset({"birth": birth, "kept": kept, "standing": standing})


def _before(made: Dictionaries, number: int) -> int | None:
    """Return the index of the same dictionary for the previous checkpoint.

    The result is None if there is no such dictionary.
    """
    member = made.members[number]
    like = {"sites": member.sites, "sparsity": member.sparsity, "seed": member.seed}
    earlier = [other for other in made.numbers(**like) if made.members[other].step < member.step]
    none = member.step == ALL_STEPS or not earlier
    return None if none else max(earlier, key=lambda other: made.members[other].step)


def _seeds(made: Dictionaries, number: int) -> Iterator[int]:
    """Yield the indices of the dictionaries that differ only in the seed."""
    member = made.members[number]
    like = {"sites": member.sites, "sparsity": member.sparsity, "steps": member.steps}
    return (other for other in made.numbers(**like) if other != number)


def _nearest(
    own: Float[np.ndarray, "feature width"], other: Float[np.ndarray, "other width"]
) -> tuple[float, float]:
    """Return the highest cosine with rows of `other`, averaged over `own`, and a null control."""
    if not len(own) or not len(other):
        return np.nan, np.nan
    random = np.random.default_rng(_SEED).normal(size=(own.shape[1], own.shape[1]))
    turned = other @ np.linalg.qr(random)[0]
    mean, null = ((own @ of.T).max(1).mean() for of in (other, turned))
    return float(mean), float(null)
