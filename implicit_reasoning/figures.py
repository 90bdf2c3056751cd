"""The look of every figure: one palette, one style, two small types that rooms hand to the report.

Colours are Okabe & Ito's (2008), which colour-blind readers can tell apart; a split keeps its
colour and line style in every figure of the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures are files here; a notebook shows the returned object all the same

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogFormatter, SymmetricalLogLocator

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
WINE, OLIVE = "#882255", "#999933"  # of Paul Tol's "muted" scheme, where eight are not enough

# Trained on: dashed. Never trained on: solid. Single facts: dotted.
_SPLITS: dict[str, tuple[str, str]] = {
    "id_triples": (GREY, ":"),
    "ood_triples": (PURPLE, ":"),
    "train_ii": (BLACK, "--"),
    "test_ii": (BLUE, "-"),
    "test_oi": (VERMILION, "-"),
    "test_io": (GREEN, "-"),
    "test_oo": (ORANGE, "-"),
    "train_iii": (BLACK, "--"),
    "test_iii": (BLUE, "-"),
    "test_iio": (GREEN, "-"),
    "test_ioi": (SKY, "-"),
    "test_ioo": (WINE, "-"),
    "test_oii": (VERMILION, "-"),
    "test_oio": (PURPLE, "-"),
    "test_ooi": (OLIVE, "-"),
    "test_ooo": (ORANGE, "-"),
    "held_out_id_triples": (SKY, ":"),
    "test_ii_sr": (WINE, "-"),
    "train_io": (GREEN, "--"),
    "train_oi": (VERMILION, "--"),
    "test_hard": (WINE, "-"),
    "train_pairs": (BLACK, "--"),
    "test_pairs": (BLUE, "-"),
    "train_repeated": (BLACK, "--"),
    "test_repeated": (BLUE, "-"),
}
_SPARE = (SKY, PURPLE, GREEN, ORANGE)  # no yellow: a thin line of it is lost on white


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


@dataclass(frozen=True)
class Page:
    """What a room hands to the report as a page of its own.

    Attributes:
      name: file name without ending.
      title: one line, plain text, as is the lead.
      lead: what it shows and how that was chosen, in a sentence or two.
      body: HTML, put on the page as it is: whoever made it has escaped what it is made of.
      style: CSS beside the report's own.
    """

    name: str
    title: str
    lead: str
    body: str
    style: str = ""


def split_style(split: str) -> dict[str, Any]:
    """Colour and line style of a split, the same in every figure."""
    kind = "--" if split.startswith("train") else "-" if split.startswith("test") else ":"
    spare = _SPARE[sum(map(ord, split)) % len(_SPARE)]
    color, linestyle = _SPLITS.get(split, (spare, kind))
    return {"color": color, "linestyle": linestyle}


def new_drawing(width: float = 8.0, height: float = 4.5, **grid: Any) -> tuple[Drawing, list[Axes]]:
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


def step_axis(ax: Axes, last: int) -> None:
    """Make x the training step: logarithmic from 1 on, with room for step 0 at the left.

    Call it before `label_ends`, and with the last step there is.
    """
    ax.set_xscale("symlog", linthresh=1, linscale=0.35)
    ax.set_xlim(0, max(last, 1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.xaxis.set_minor_locator(SymmetricalLogLocator(linthresh=1, base=10, subs=range(2, 10)))
    ax.set_xlabel("training step (logarithmic from 1)")


def log_axis(ax: Axes) -> None:
    """Make y logarithmic, with plain numbers; between the decades too where there are few."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], size: float = 8.5) -> None:
    """Name curves where they end, at the right edge, pushed apart so that no two names overlap.

    Args:
      ax: the axes, with scales and limits set.
      ends: (y in data units, text, colour) of each curve.
      size: of the type, in points.
    """
    drawing = ax.get_figure(root=True)
    assert drawing is not None  # axes that were never in a figure cannot be drawn on
    gap = 1.35 * size / 72 / (drawing.get_size_inches()[1] * ax.get_position().height)
    in_axes = (ax.transData + ax.transAxes.inverted()).transform
    placed = sorted((float(in_axes((0, y))[1]), text, color) for y, text, color in ends)
    heights = spread_apart([height for height, _, _ in placed], gap)
    frame: dict[str, Any] = {"transform": ax.transAxes}
    for (end, text, color), height in zip(placed, heights, strict=True):
        ax.plot([1.003, 1.018], [end, height], color=color, linewidth=0.8, clip_on=False, **frame)
        ax.text(
            1.023, height, text, color=darken(color), fontsize=size, va="center_baseline", **frame
        )


def darken(color: str) -> tuple[float, float, float]:
    """A colour made darker, for small type in it to be readable on white."""
    red, green, blue = to_rgb(color)
    return 0.75 * red, 0.75 * green, 0.75 * blue


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights pushed up to be `gap` apart, and down again where they pass the top, 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = max(1.0, heights[-1]) if heights else 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
