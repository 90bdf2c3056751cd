"""Figures and pages of all rooms, collected; figures as files for papers, and in TensorBoard."""

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
    "implicit_reasoning.dictionaries.figures",
    "implicit_reasoning.dictionaries.dashboards",
)
"""Modules with a function `figures(run) -> list[Figure]`, in the order of the page, or with one
`pages(run) -> list[Page]`, or with both."""

FORMATS = ("svg", "png", "pdf")
_DPI = 144
_SUFFIX = ".report"

# No dates and no random ids: the same run gives the same files. Type 42 is what publishers take.
_RENDERING: Any = {"svg.hashsalt": "implicit_reasoning", "pdf.fonttype": 42}
_UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Rendered(NamedTuple):
    """A figure and its files' contents, by format."""

    figure: Figure
    files: dict[str, bytes]


def collect(run: Run, providers: Sequence[str] = PROVIDERS) -> list[Figure]:
    """The figures of all providers.

    Raises:
      InputError: a provider cannot be imported or is none, or two figures share a name.
    """
    return _collect(run, providers, "figures")


def collect_pages(run: Run, providers: Sequence[str] = PROVIDERS) -> list[Page]:
    """The pages of all providers; raises as `collect` does."""
    return _collect(run, providers, "pages")


def _collect(run: Run, providers: Sequence[str], wanted: str) -> list[Any]:
    found: list[Any] = []
    for path in providers:
        provider = imports.load(path, "provider of figures")
        makers = {kind: getattr(provider, kind, None) for kind in ("figures", "pages")}
        if not any(map(callable, makers.values())):
            raise InputError(f"{path} has no function figures(run) or pages(run)")
        maker = makers[wanted]
        found += maker(run) if callable(maker) else []
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two {wanted} have the same name: {', '.join(twice)}")
    return found


def render(figure: Figure) -> Rendered:
    """Draw a figure in all formats."""
    files = {}
    with matplotlib.rc_context(_RENDERING):
        figure.drawing.draw_without_rendering()
        figure.drawing.set_layout_engine("none")  # laid out once, for all formats
        for kind in FORMATS:
            file = io.BytesIO()
            figure.drawing.savefig(file, format=kind, dpi=_DPI, metadata=_UNDATED.get(kind))
            files[kind] = file.getvalue()
    return Rendered(figure, files)


def write_files(rendered: Sequence[Rendered], folder: Path) -> None:
    """Keep every figure as `<name>.svg`, `.png` and `.pdf`; those of an older report go."""
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
    """Show the figures as images in TensorBoard, in an event file of their own.

    Its name sorts before training's: some TensorBoards follow only the last file of a folder, and
    curves that still grow must be it. The name is new each time, so that an open one notices.
    """
    folder, rows = run.files.tensorboard, run.metrics
    for old in folder.glob(f"events.*{_SUFFIX}"):
        old.unlink()
    name = f"events.out.tfevents.0000000000.{time.time_ns()}{_SUFFIX}"
    # As old as the run itself, or TensorBoard would sort the run by when its report was written.
    file = events.EventFile(folder / name, begun=rows[0]["time"])
    with contextlib.closing(file):
        for one in rendered:
            shown = events.image(f"report/{one.figure.name}", one.files["png"])
            file.write(shown, step=rows[-1]["step"], when=rows[-1]["time"])
