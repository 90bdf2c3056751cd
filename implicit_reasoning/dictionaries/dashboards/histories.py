"""Describe how features change over the checkpoints of a run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from implicit_reasoning.dictionaries.architectures import Crosscoder
from implicit_reasoning.dictionaries.dashboards.labels import Label
from implicit_reasoning.dictionaries.store import ALL_STEPS, Dictionaries


class Line(NamedTuple):
    """A named sequence of numbers, one per checkpoint. Undefined numbers are nan."""

    name: str
    values: tuple[float, ...]


class History(NamedTuple):
    """Training steps of the checkpoints, and lines that describe one feature over these steps."""

    steps: tuple[int, ...]
    lines: tuple[Line, ...]


class Histories:
    """Histories of the features of one dictionary over checkpoints.

    A history compares a feature with one dictionary per checkpoint. All these dictionaries have the
    same sites, sparsity and seed as the feature's dictionary.
    """

    def __init__(self, made: Dictionaries, number: int, result: xr.Dataset):
        """Read the dictionary's counterparts at all checkpoints.

        Args:
          made: the set of dictionaries.
          number: number of the dictionary in the set.
          result: the measured results of the set.
        """
        member = made.members[number]
        like = {"sites": member.sites, "sparsity": member.sparsity, "seed": member.seed}
        numbers = sorted(made.numbers(**like), key=lambda one: made.members[one].step)
        self._steps = tuple(made.members[one].step for one in numbers)
        result = result.isel(member=numbers)
        self._result = result if "best_feature" in result else None
        self._rows = [made.directions(one) for one in numbers]
        # A baseline may have more features than the dictionaries; its additional columns are cut
        # off.
        self._alive = result["density"].values[:, : len(self._rows[0])] > 0
        self._own = self._rows[numbers.index(number)]
        self._norms: Float[np.ndarray, "feature part"] | None = None
        if member.step == ALL_STEPS and isinstance(made.dictionary.architecture, Crosscoder):
            norms = np.asarray(made.dictionary.architecture.by_part(made.params_of(number)))
            self._steps, self._norms = member.steps, norms / (norms.max(1, keepdims=True) + 1e-12)

    def of(self, feature: int, label: Label | None, concept: str) -> History | None:
        """Return the history of a feature, or None if there is only one checkpoint.

        - If the feature represents a value, at least weakly, the history has two lines. The first
          line is the F1 of the value's best feature at each checkpoint. The second line is the
          cosine of this best feature with `feature`.
        - If the feature represents no value, the history has one line. The line is the highest
          cosine with any feature at each checkpoint.
        - For a crosscoder, which is trained on several checkpoints at once, the history has one
          line. The line is the feature's decoder norm at each checkpoint, divided by the largest of
          these norms.

        Args:
          feature: index of the feature.
          label: label of the feature, or None if the feature has no label.
          concept: name of the concept in the label, such as `e2@r1`.
        """
        if len(self._steps) < 2:
            return None
        if self._norms is not None:
            return self._made({"decoder norm / largest decoder norm": self._norms[feature]})
        own = self._own[feature]
        if label is not None and label.stands and self._result is not None:
            at = self._result.sel(concept=concept).isel(value=label.value)
            best = zip(self._rows, at["best_feature"].values.astype(int), strict=True)
            cosine = np.array([rows[number] @ own for rows, number in best])
            # A value with too few states has no meaningful best feature.
            cosine = np.where(at["f1"].notnull(), cosine, np.nan)
            return self._made(
                {
                    "F1 of the value's best feature": at["f1"].values,
                    "cosine of that feature with this feature": cosine,
                }
            )
        nearest = [
            (rows[alive] @ own).max(initial=-1.0)
            for rows, alive in zip(self._rows, self._alive, strict=True)
        ]
        return self._made({"cosine of the nearest feature": np.array(nearest)})

    def _made(self, lines: dict[str, Float[np.ndarray, " step"]]) -> History:
        named = (Line(name, tuple(values.tolist())) for name, values in lines.items())
        return History(self._steps, tuple(named))
