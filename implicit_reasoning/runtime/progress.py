"""Progress bar on standard error: steps done, estimated remaining time, latest values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from implicit_reasoning.runtime import distributed


class ProgressBar:
    """Progress bar over steps; of the processes of one run, only the primary shows it."""

    def __init__(
        self, total: int, *, done: int = 0, title: str = "", unit: str = "step", shown: bool = True
    ):
        """Show the bar.

        Args:
          total: the last step.
          done: the first step.
          title: text before the bar.
          unit: name of a step.
          shown: whether to show the bar.
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
        """Move the bar to a step; show `values` next to it, if given."""
        self._bar.update(step - self._bar.n)
        if values:
            self._bar.set_postfix(values)

    def close(self) -> None:
        """Close the bar, which stays visible."""
        self._bar.close()


def say(message: str) -> None:
    """Write one line to standard error, above the visible bars."""
    tqdm.write(f"implicit_reasoning: {message}", file=sys.stderr)
