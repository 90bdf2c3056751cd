"""Figures of all rooms: collected, kept as files for papers, and shown in TensorBoard."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.files import atomic_write
from implicit_reasoning.runs import Run

PROVIDERS: tuple[str, ...] = ("implicit_reasoning.training.figures",)
"""Modules with a function `figures(run) -> list[Figure]`, in the order of the page."""

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
      InputError: a provider cannot be imported or has no `figures`, or two figures share a name.
    """
    figures: list[Figure] = []
    for path in providers:
        provider = getattr(imports.load(path, "provider of figures"), "figures", None)
        if not callable(provider):
            raise InputError(f"{path} has no function figures(run)")
        figures += provider(run)
    names = [figure.name for figure in figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two figures have the same name: {', '.join(twice)}")
    return figures


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
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"events.*{_SUFFIX}"):
        old.unlink()
    # As old as the run itself, or TensorBoard would sort the run by when its report was written.
    events = [Event(file_version="brain.Event:2", wall_time=rows[0]["time"])]
    for one in rendered:
        summary = Summary(value=[_image(one)])
        step, written = rows[-1]["step"], rows[-1]["time"]
        events.append(Event(summary=summary, step=step, wall_time=written))
    name = f"events.out.tfevents.0000000000.{time.time_ns()}{_SUFFIX}"
    writer = RecordWriter(str(folder / name))
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()


def _image(one: Rendered) -> Summary.Value:
    png, figure = one.files["png"], one.figure
    # A PNG has its width and height at bytes 16 to 24.
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=f"report/{figure.name}", image=image)
