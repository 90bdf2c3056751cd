"""The shared style of all figures: palette, split colors, axes, and the types `Figure` and `Page`.

The colors are those of Okabe and Ito (2008), which color-blind readers can distinguish. A split has
the same color and line style in every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
# These are from Paul Tol's "muted" scheme, for figures with more than eight colors.
WINE, OLIVE = "#882255", "#999933"

SERIES_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Colors of series that have no order, such as sets of dictionaries or points of a sweep."""

# Splits used for training are dashed, held-out splits are solid, and single facts are dotted.
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
    "test_c0": (WINE, "-"),
    "test_c1": (SKY, "-"),
    "test_c2": (PURPLE, "-"),
    "test_private": (OLIVE, "-"),
    "test_s1_chains": (SKY, "-"),
    "test_s1_fact": (SKY, ":"),
    "test_s2_chains": (OLIVE, "-"),
    "test_s2_fact": (OLIVE, ":"),
    "test_s4_chains": (WINE, "-"),
    "test_s4_fact": (WINE, ":"),
    "identity_triples": (OLIVE, ":"),
    "train_identity": (SKY, "--"),
    "test_ii_sr": (WINE, "-"),
    "train_io": (GREEN, "--"),
    "train_oi": (VERMILION, "--"),
    "test_hard": (WINE, "-"),
    "train_pairs": (BLACK, "--"),
    "test_pairs": (BLUE, "-"),
    "train_repeated": (BLACK, "--"),
    "test_repeated": (BLUE, "-"),
}
# Yellow is missing, because a thin yellow line is hard to see on white.
_SPARE = (SKY, PURPLE, GREEN, ORANGE)


@dataclass(frozen=True)
class Figure:
    """A figure for the report.

    Attributes:
      name: file name without extension; the name is also the tag in TensorBoard.
      title: heading of the figure; one line.
      caption: text that says what is drawn and how to read the figure. The caption names the units,
        the intervals and the null controls.
      drawing: the matplotlib figure.
    """

    name: str
    title: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class Page:
    """A separate HTML page for the report.

    Attributes:
      name: file name without extension.
      title: heading of the page; one line of plain text.
      lead: one or two sentences of plain text that say what the page shows and how its contents
        were chosen.
      body: HTML, inserted without escaping. The caller must escape all data in it.
      style: CSS that is added to the CSS of the report.
    """

    name: str
    title: str
    lead: str
    body: str
    style: str = ""


def split_style(split: str) -> dict[str, Any]:
    """Return the color and the line style of a data split; all figures use both."""
    kind = "--" if split.startswith("train") else "-" if split.startswith("test") else ":"
    spare = _SPARE[sum(map(ord, split)) % len(_SPARE)]
    color, linestyle = _SPLITS.get(split, (spare, kind))
    return {"color": color, "linestyle": linestyle}


def new_drawing(width: float = 8.0, height: float = 4.5, **grid: Any) -> tuple[Drawing, list[Axes]]:
    """Create a figure and its axes in the shared style.

    The figure is not registered with pyplot, so it does not have to be closed.

    Args:
      width: width of the figure in inches.
      height: height of the figure in inches.
      **grid: arguments for `Figure.subplots`, such as `nrows` and `ncols`.

    Returns:
      The figure, and its axes in row-major order.
    """
    drawing = Drawing(figsize=(width, height), layout="constrained")
    axes = drawing.subplots(squeeze=False, **grid)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return drawing, list(axes.flat)


def step_axis(ax: Axes, last: int) -> None:
    """Scale the x axis for training steps.

    Step 0 is at the left edge, and the scale is logarithmic from step 1 on. Call this function
    before `label_ends`.

    Args:
      ax: the axes.
      last: the last step to show.
    """
    ax.set_xscale("symlog", linthresh=1, linscale=0.35)
    ax.set_xlim(0, max(last, 1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.xaxis.set_minor_locator(SymmetricalLogLocator(linthresh=1, base=10, subs=range(2, 10)))
    ax.set_xlabel("training step (log scale above 1)")


def log_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers as labels.

    If the axis spans few decades, values between decades are labeled too.
    """
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], size: float = 8.5) -> None:
    """Label each curve next to its last point, without overlap between labels.

    Args:
      ax: the axes. Their scales and limits must have been set.
      ends: one tuple `(y, text, color)` per curve; `y` is the last value of the curve in data
        units.
      size: font size in points.
    """
    drawing = ax.get_figure(root=True)
    assert drawing is not None  # axes without a figure cannot be drawn on
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
    """Darken a color enough to make small text readable on a white background."""
    red, green, blue = to_rgb(color)
    return 0.75 * red, 0.75 * green, 0.75 * blue


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights so that neighbors are at least `gap` apart, and return the new heights.

    The first pass goes upwards and raises each height to at least the previous height plus `gap`.
    The second pass goes downwards and lowers each height to at most the next height minus `gap`. It
    lowers the last height to at most `max(1, heights[-1])`.

    Args:
      heights: the heights in ascending order.
      gap: the minimum distance.
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = max(1.0, heights[-1]) if heights else 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
