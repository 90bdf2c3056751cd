"""Collection of figures and pages from all providers; output as files and to TensorBoard.

A provider is a module that defines `figures(run)`, `pages(run)` or both functions.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure, Page
from implicit_reasoning.files import atomic_write
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime import events

PROVIDERS: tuple[str, ...] = (
    "implicit_reasoning.training.figures",
    "implicit_reasoning.analysis.figures",
    "implicit_reasoning.analysis.circuits.page",
    "implicit_reasoning.dictionaries.figures",
    "implicit_reasoning.dictionaries.dashboards",
)
"""Modules that define `figures(run) -> list[Figure]`, `pages(run) -> list[Page]` or both.

Their order is the order of the figures in the report.
"""

FORMATS = ("svg", "png", "pdf")
_DPI = 144
_SUFFIX = ".report"

# Without dates and random ids, the same run gives the same files. Publishers require Type 42 fonts.
_RENDERING: Any = {"svg.hashsalt": "implicit_reasoning", "pdf.fonttype": 42}
_UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Rendered(NamedTuple):
    """A figure, and the contents of its files.

    Attributes:
      figure: the figure.
      files: contents by format, such as "svg".
    """

    figure: Figure
    files: dict[str, bytes]


def collect(run: Run, providers: Sequence[str] = PROVIDERS) -> list[Figure]:
    """Collect the figures of a run from all providers.

    Args:
      run: the run.
      providers: the import paths of modules that define `figures(run)`, `pages(run)` or both.

    Raises:
      InputError: a provider cannot be imported, a provider defines neither function, or two figures
        have the same name.
    """
    return _collect(run, providers, "figures")


def collect_pages(run: Run, providers: Sequence[str] = PROVIDERS) -> list[Page]:
    """Collect the pages of a run from all providers.

    Args:
      run: the run.
      providers: the import paths of modules that define `figures(run)`, `pages(run)` or both.

    Raises:
      InputError: a provider cannot be imported, a provider defines neither function, or two pages
        have the same name.
    """
    return _collect(run, providers, "pages")


def _collect(run: Run, providers: Sequence[str], wanted: str) -> list[Any]:
    found: list[Any] = []
    for path in providers:
        provider = imports.load(path, "provider of figures")
        makers = {kind: getattr(provider, kind, None) for kind in ("figures", "pages")}
        if not any(map(callable, makers.values())):
            raise InputError(
                f"{path} defines neither figures(run) nor pages(run); a provider must "
                "define at least one of these functions"
            )
        maker = makers[wanted]
        found += maker(run) if callable(maker) else []
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"the names of {wanted} must be unique, but these names occur more than once: "
            f"{', '.join(twice)}"
        )
    return found


def render(figure: Figure) -> Rendered:
    """Render a figure in all formats of `FORMATS`."""
    files = {}
    with matplotlib.rc_context(_RENDERING):
        figure.drawing.draw_without_rendering()
        figure.drawing.set_layout_engine("none")  # Keep one layout for all formats.
        for kind in FORMATS:
            file = io.BytesIO()
            figure.drawing.savefig(file, format=kind, dpi=_DPI, metadata=_UNDATED.get(kind))
            files[kind] = file.getvalue()
    return Rendered(figure, files)


def write_files(rendered: Sequence[Rendered], folder: Path) -> None:
    """Write every figure as `<name>.svg`, `<name>.png` and `<name>.pdf`.

    All further figure files in `folder`, which come from an older report, are deleted.
    """
    current = {f"{one.figure.name}.{kind}" for one in rendered for kind in one.files}
    for kind in FORMATS:
        for old in folder.glob(f"*.{kind}"):
            if old.name not in current:
                old.unlink()
    for one in rendered:
        for kind, content in one.files.items():
            with atomic_write(folder / f"{one.figure.name}.{kind}", "wb") as file:
                file.write(content)


def write_tensorboard(rendered: Sequence[Rendered], run: Run) -> None:
    """Write the figures as images to a separate TensorBoard event file.

    The name of the file sorts before the name of the event file that training writes. Some versions
    of TensorBoard follow only the last file of a folder, and training adds rows to the last file.
    Every call uses a new file name, so that a running TensorBoard loads the file.
    """
    folder, rows = run.files.tensorboard, run.metrics
    for old in folder.glob(f"events.*{_SUFFIX}"):
        old.unlink()
    name = f"events.out.tfevents.0000000000.{time.time_ns()}{_SUFFIX}"
    # TensorBoard sorts runs by their earliest event, so use the time of the first metrics row.
    file = events.EventFile(folder / name, begun=rows[0]["time"])
    with contextlib.closing(file):
        for one in rendered:
            shown = events.image(f"report/{one.figure.name}", one.files["png"])
            file.write(shown, step=rows[-1]["step"], when=rows[-1]["time"])
