"""Progress bars, and messages above them, in terminals and in notebooks.

All bars and messages of the package go through this module. In a Jupyter notebook a bar is a
widget if ipywidgets is installed. Without ipywidgets it is text, as in a terminal. Text bars and
messages are written to standard error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from implicit_reasoning.runtime import distributed

if TYPE_CHECKING:
    from tqdm import tqdm
else:
    with warnings.catch_warnings():
        # In a notebook, `autonotebook` warns that it is experimental or that ipywidgets is missing.
        warnings.simplefilter("ignore")
        from tqdm.autonotebook import tqdm


class ProgressBar:
    """Progress bar with estimated remaining time and latest values; a context manager.

    If the run has several processes, only the primary shows it.
    """

    def __init__(
        self, total: int, *, done: int = 0, title: str = "", unit: str = "step", shown: bool = True
    ):
        """Show the bar.

        Args:
          total: the number of steps at which the bar is full.
          done: the number of steps that are already done.
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

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, count: int = 1) -> None:
        """Move the bar forward by a number of steps."""
        self._bar.update(count)

    def move_to(self, step: int, values: Mapping[str, str] | None = None) -> None:
        """Move the bar to a step; show `values` next to it, if given."""
        self.advance(step - self._bar.n)
        if values:
            self.show_values(values)

    def show_values(self, values: Mapping[str, str]) -> None:
        """Show values next to the bar, in place of those before."""
        self._bar.set_postfix(values)

    def set_title(self, title: str) -> None:
        """Replace the text before the bar."""
        self._bar.set_description(title)

    def close(self) -> None:
        """Close the bar, which stays visible."""
        self._bar.close()


def write(message: str) -> None:
    """Write lines to standard error, above the visible text bars."""
    tqdm.write(message, file=sys.stderr)


def say(message: str) -> None:
    """Write a message with the name of the package to standard error, as `write` does."""
    write(f"implicit_reasoning: {message}")
