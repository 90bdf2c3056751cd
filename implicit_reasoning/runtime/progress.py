"""Progress bars, and messages above them, in terminals and in notebooks.

All bars and messages of the package go through this module. In a Jupyter notebook, a bar is a
widget if ipywidgets is installed. Without ipywidgets, and in a terminal, a bar is text. Text bars
and messages are written to standard error.
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
        # In a notebook, tqdm warns that `autonotebook` is experimental, or that ipywidgets is
        # missing.
        warnings.simplefilter("ignore")
        from tqdm.autonotebook import tqdm


class ProgressBar:
    """A progress bar with the estimated remaining time and the latest values of some quantities.

    The bar is a context manager. If a run has several processes, only process 0 shows the bar.
    """

    def __init__(
        self, total: int, *, done: int = 0, title: str = "", unit: str = "step", shown: bool = True
    ):
        """Show the bar.

        Args:
          total: the number of steps at which the bar is full.
          done: the number of steps that are already done.
          title: text before the bar.
          unit: what one step is called, such as `step` or `checkpoint`.
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
        """Move the bar forward by `count` steps."""
        self._bar.update(count)

    def move_to(self, step: int, values: Mapping[str, str] | None = None) -> None:
        """Move the bar to a step. If `values` are given, show the values next to the bar."""
        self.advance(step - self._bar.n)
        if values:
            self.show_values(values)

    def show_values(self, values: Mapping[str, str]) -> None:
        """Show values next to the bar, in place of the previous values."""
        self._bar.set_postfix(values)

    def set_title(self, title: str) -> None:
        """Replace the text before the bar."""
        self._bar.set_description(title)

    def close(self) -> None:
        """Close the bar. The closed bar stays visible."""
        self._bar.close()


def write(message: str) -> None:
    """Write text to standard error, above the visible text bars."""
    tqdm.write(message, file=sys.stderr)


def say(message: str) -> None:
    """Write the package name and a message to standard error, above the visible text bars."""
    write(f"implicit_reasoning: {message}")
