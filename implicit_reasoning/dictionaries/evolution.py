"""Follow features over training: their persistence, agreement across seeds, and births.

A feature of one dictionary is matched with the feature of a second dictionary whose decoder row has
the highest cosine with the decoder row of the first feature. The null control applies one random
rotation to all features of the second dictionary.

A feature stands for a value of a truth variable if it predicts the value with an F1 of at least
`MIN_F1`, as the median over seeds. `MIN_F1` is far above the null. F1 is computed on facts that
were not used to choose the feature (`measures/matching.py`). The birth of a value is the first step
at which a feature stands for the value. Births are unbiased only with a cold start, which
initialises the dictionaries of every checkpoint anew. With a warm start, a dictionary begins with
the features of an earlier or later checkpoint.
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
    """Name, definition and null controls of the comparison of features over training.

    The function `over_training` computes the results.
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
    """Compare each dictionary with the dictionaries of the previous checkpoint and of other seeds.

    Args:
      made: the dictionaries.
      found: measured results: `density` [member, feature] and, if there are concepts,
        `best_feature` [member, concept, value] and `f1` of the same shape.

    Returns:
      A dataset with the dimension `member`. `kept` is the mean, over active features, of the
      highest cosine with a feature of the previous checkpoint's dictionary. `agreement` is the mean
      of the same quantity over the dictionaries of other seeds. `kept_null` and `agreement_null`
      are the null controls. `drift` [member, concept, value] is the cosine of a value's best
      feature with the value's best feature at the previous checkpoint. An entry is nan if there is
      no dictionary for the comparison.
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
    """Find when features begin to stand for each value, and whether they do at the last step.

    Args:
      result: `f1` [member, concept, value] of dictionaries of several checkpoints.
      threshold: minimum of the median F1 over seeds.

    Returns:
      A dataset with the dimensions site, sparsity, concept and value. `birth` is the first step at
      which a feature stands for the value; nan if no feature ever does. `kept` is whether a feature
      stands for the value at the last step; nan if there is no birth. `standing` also has the
      dimension step, and is whether a feature stands for the value at the step; nan if the value's
      F1 is unknown.
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
