"""Features over training: which last, which another seed finds again, when bridges get theirs.

A feature of one dictionary is matched with the feature of another that points most nearly the same
way: the highest cosine of what both write. Beside it stands the null, the same for features of the
other dictionary turned at random, all together. A value of a truth variable is born when a feature
stands for it: F1 on facts that it was not chosen on (`measures/matching.py`) of at least `MIN_F1`,
far above the null, in the median of cold seeds. Warm starts bias this: a feature that was there
before, or comes later, is where the next dictionary begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Float

from implicit_reasoning.analysis.instrument import BaseInstrument
from implicit_reasoning.dictionaries.measures.absorption import MIN_F1
from implicit_reasoning.dictionaries.store import ALL_STEPS, TRAINED, Dictionaries

_SEED = 0


class Evolution(BaseInstrument):
    """What `over_training` finds of a set of dictionaries."""

    name: ClassVar[str] = "evolution"
    definition: ClassVar[str] = (
        "Of every active feature the highest cosine with a feature of the dictionary of the "
        "checkpoint before (kept) and of other seeds (agreement), mean over features; nulls: "
        "features of the other dictionary, rotated at random. drift: the cosine of a value's best "
        "feature with its best feature at the checkpoint before."
    )
    outputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "kept": (),
        "kept_null": (),
        "agreement": (),
        "agreement_null": (),
        "drift": ("concept", "value"),
    }
    nulls: ClassVar[dict[str, Mapping[str, Any] | str]] = {
        "rotated, checkpoint before": "kept_null",
        "rotated, other seeds": "agreement_null",
    }


def over_training(made: Dictionaries, found: xr.Dataset) -> xr.Dataset:
    """Compare every dictionary with that of the checkpoint before, and with those of other seeds.

    Args:
      made: the dictionaries.
      found: `density` [member, feature], and where there are concepts `best_feature` [member,
        concept, value].

    Returns:
      By member: `kept` (mean over active features of the highest cosine with the checkpoint
      before), `agreement` (with other seeds, mean), their nulls, and `drift` [member, concept,
      value], the cosine of a value's best features; nan where there is nothing to compare with.
    """
    n = len(made)
    rows = [made.directions(number) for number in range(n)]
    # A baseline may have more features than a dictionary is wide; those are none of its own.
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
        # Values that a variable does not have, or that too few states have, have no feature.
        there = found["f1"].notnull().values
        variables["drift"] = ("member", "concept", "value"), np.where(there, drift, np.nan)
    members: dict[str, Any] = {
        name: ("member", [getattr(member, name) for member in made.members])
        for name in ("step", "site", "sparsity", "seed")
    }
    coords = {**members, "what": ("member", [TRAINED] * n)}
    if drift is not None:
        coords |= {dim: found[dim].values for dim in ("concept", "value") if dim in found.coords}
    return xr.Dataset(variables, coords)


def births(result: xr.Dataset, threshold: float = MIN_F1) -> xr.Dataset:
    """When values of truth variables get a feature, and whether they keep it.

    Args:
      result: `f1` [member, concept, value] of dictionaries of several checkpoints.
      threshold: of the median F1 over seeds.

    Returns:
      By site, sparsity, concept and value: `birth`, the first step at which a feature stands for
      the value (nan: never), and `kept`, whether one does at the last (nan: never born). By step,
      too: `standing`, whether one does (nan: nothing is known of the value).
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
    """The same dictionary of the checkpoint before, if there is one."""
    member = made.members[number]
    like = {"sites": member.sites, "sparsity": member.sparsity, "seed": member.seed}
    earlier = [other for other in made.numbers(**like) if made.members[other].step < member.step]
    none = member.step == ALL_STEPS or not earlier
    return None if none else max(earlier, key=lambda other: made.members[other].step)


def _seeds(made: Dictionaries, number: int) -> Iterator[int]:
    """The same dictionaries of other seeds."""
    member = made.members[number]
    like = {"sites": member.sites, "sparsity": member.sparsity, "steps": member.steps}
    return (other for other in made.numbers(**like) if other != number)


def _nearest(
    own: Float[np.ndarray, "feature width"], other: Float[np.ndarray, "other width"]
) -> tuple[float, float]:
    """Mean highest cosine with another dictionary's features, and with those turned at random."""
    if not len(own) or not len(other):
        return np.nan, np.nan
    random = np.random.default_rng(_SEED).normal(size=(own.shape[1], own.shape[1]))
    turned = other @ np.linalg.qr(random)[0]
    mean, null = ((own @ of.T).max(1).mean() for of in (other, turned))
    return float(mean), float(null)
