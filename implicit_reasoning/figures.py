"""The look of every figure: one palette, one style, one small type that rooms hand to the report.

Colours are Okabe & Ito's (2008), which colour-blind readers can tell apart; a split keeps its
colour and line style in every figure of the lab.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")  # figures are files here; a notebook shows the returned object all the same

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#8A8A8A"

# Trained on: dashed. Held out: solid. Atomic: thin and dotted.
_SPLITS: dict[str, tuple[str, str]] = {
    "id_triples": (GREY, ":"),
    "ood_triples": (PURPLE, ":"),
    "train_ii": (BLACK, "--"),
    "test_ii": (BLUE, "-"),
    "test_oi": (VERMILION, "-"),
    "test_io": (GREEN, "-"),
    "test_oo": (ORANGE, "-"),
}
_SPARE = (SKY, PURPLE, GREEN, ORANGE, YELLOW)


@dataclass(frozen=True)
class Figure:
    """What a room hands to the report.

    Attributes:
      name: file name without ending, and tag in TensorBoard.
      title: one line.
      caption: how to read it, in a sentence or two; units and nulls included.
      drawing: the matplotlib figure.
    """

    name: str
    title: str
    caption: str
    drawing: Drawing


def split_style(split: str) -> dict[str, str]:
    """Colour and line style of a split, the same in every figure."""
    spare = _SPARE[sum(map(ord, split)) % len(_SPARE)], "-." if split.startswith("test") else ":"
    color, linestyle = _SPLITS.get(split, spare)
    return {"color": color, "linestyle": linestyle}


def new_drawing(width: float = 8.0, height: float = 4.5, **grid: int) -> tuple[Drawing, list[Axes]]:
    """A figure in inches, with its axes in reading order, in the house style.

    `grid` goes to `Figure.subplots` (`nrows`, `ncols`, ...). The figure is not registered with
    pyplot, so nothing has to be closed.
    """
    drawing = Drawing(figsize=(width, height), layout="constrained")
    axes = drawing.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return drawing, list(axes.flat)
