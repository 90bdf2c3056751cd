"""Measure: how well a dictionary writes held-out states, and with how few features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Int

from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.metrics import activity, quality


@dataclass(frozen=True, eq=False)
class Reconstruction(Measure):
    """See `metrics.py` for the numbers.

    Attributes:
      held_out: int [state], places that no dictionary was trained on.
    """

    held_out: Int[np.ndarray, " state"]

    name: ClassVar[str] = "reconstruction"

    @classmethod
    def choose(cls, asked: Asked) -> Measure:
        """Of every run."""
        return cls(np.flatnonzero(asked.split.held_out))

    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """Quality on held-out states, activity on all of them."""
        x, y = subject.x[self.held_out], subject.y[self.held_out]
        found = quality(coded.finished, coded.params, x, y)
        return {**found._asdict(), **activity(coded.acts)._asdict()}

    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """Numbers by dictionary; density also by feature."""
        dims = {"density": ("member", "feature")}
        return {name: (dims.get(name, "member"), value) for name, value in outputs.items()}, {}
