"""A progress bar on standard error: steps done, the estimated time left, the newest values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from implicit_reasoning.runtime import distributed


class ProgressBar:
    """A bar that is moved to a step; of the processes of one run, only the primary shows it."""

    def __init__(
        self, total: int, *, done: int = 0, title: str = "", unit: str = "step", shown: bool = True
    ):
        """Show the bar.

        Args:
          total: the last step.
          done: the step to begin at.
          title: before the bar.
          unit: the name of a step.
          shown: whether to show it at all.
        """
        self._bar: tqdm[Any] = tqdm(
            desc=title or None,
            total=total,
            initial=done,
            unit=unit,
            disable=not (shown and distributed.is_primary()),
            dynamic_ncols=True,
        )

    def move_to(self, step: int, values: Mapping[str, str] | None = None) -> None:
        """Move to a step; `values`, where they are given, are shown beside the bar."""
        self._bar.update(step - self._bar.n)
        if values:
            self._bar.set_postfix(values)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def say(message: str) -> None:
    """Write one line on standard error, above the bars that are shown."""
    tqdm.write(f"implicit_reasoning: {message}", file=sys.stderr)
