"""Draw the effects of edges over training, and the edge graph with its largest effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.lines import Line2D

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.figures import BLUE, GREY, VERMILION, Figure, new_drawing
from implicit_reasoning.model.units import Edge

_MOST = 20
"""The number of edges whose effects are drawn over training."""

_LEAST = 0.05
"""Edges with a smaller effect are not drawn in the graph."""

_COLORS = "PuOr_r"  # diverging with white in the middle, and readable with color blindness


def edges_figure(result: xr.Dataset) -> Figure:
    """Draw the edges with the largest effects over training, beside the null control."""
    group, metric = str(result["group"].values[0]), str(result["metric"].values[0])
    effects = known_means(result.sel(group=group, metric=metric), "effect")
    cells = effects.stack(cell=("edge", "pos"))
    size = np.nan_to_num(abs(cells.sel(donor="pair")).max("step").values)
    chosen = np.argsort(-size, kind="stable")[:_MOST]
    chosen = chosen[size[chosen] > 0]
    drawing, axes = new_drawing(9.2, 1.4 + 0.24 * max(len(chosen), 4), ncols=2, sharey=True)
    titles = {"pair": "the pair's corrupt run", "another pair": "null: the run of another pair"}
    for ax, (donor, title) in zip(axes, titles.items(), strict=True):
        values = cells.sel(donor=donor).isel(cell=chosen).transpose("cell", "step").values
        _grid(ax, values, [int(step) for step in result["step"].values])
        ax.set_title(title, fontsize=9.5)
    names = [f"{edge} @ {pos}" for edge, pos in cells["cell"].values[chosen]]
    axes[0].set_yticks(range(len(names)), names, fontsize=7.5)
    colors = ScalarMappable(_norm(), _COLORS)
    bar = drawing.colorbar(colors, ax=axes, shrink=0.9, aspect=25, pad=0.02, extend="both")
    bar.set_ticks(
        [-1, -0.3, -0.1, 0, 0.1, 0.3, 1], labels=["-1", "-.3", "-.1", "0", ".1", ".3", "1"]
    )
    bar.set_label(f"effect on the {metric.replace('_', ' ')} (share)", fontsize=9)
    caption = (
        f"{about_pairs(result)} The group is {group}. The rows are the {len(chosen)} edges and "
        "positions with the largest effect at any step; the largest is at the top. The edge "
        "a0.h1->m1 @ r1 is the "
        "output of head 1 of block 0 in the input of the MLP of block 1 at the position r1. The "
        "right panel is the null: an edge that is as strong there carries what any other prompt "
        "changes. Values beyond -1 and 1 are drawn as -1 and 1. White rows have fewer than "
        f"{MIN_CLUSTERS} clusters that count, or no difference between the two runs."
    )
    title = "Through which edges does the difference between two prompts reach the answer?"
    return Figure("edge_patching", title, caption, drawing)


def map_figure(result: xr.Dataset) -> Figure:
    """Draw the edge graph at the last step, with a line for each edge that has an effect."""
    group, metric = str(result["group"].values[0]), str(result["metric"].values[0])
    last = result.sel(group=group, metric=metric).isel(step=-1)
    effects = known_means(last, "effect").sel(donor="pair")
    positions = [str(pos) for pos in result["pos"].values]
    edges = [Edge.parse(str(edge)) for edge in result["edge"].values]
    rows = node_places(edges)
    height = 1.6 + 0.75 * (max(row for row, _ in rows.values()) + 1)
    drawing, (ax,) = new_drawing(3.2 + 2.4 * len(positions), height)
    for number, pos in enumerate(positions):
        _nodes(ax, number, rows)
        for edge, value in zip(edges, effects.sel(pos=pos).values, strict=True):
            if np.isfinite(value) and abs(value) >= _LEAST:
                _line(ax, number, rows, edge, float(value))
    ax.set_xticks(range(len(positions)), positions)
    levels = sorted({row for row, _ in rows.values()})
    ax.set_yticks(levels, [_level(row, rows) for row in levels])
    ax.set_xlim(-0.6, len(positions) - 0.4)
    ax.set_xlabel("position")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    drawing.legend(
        handles=[
            Line2D([], [], color=color, lw=_width(value), label=f"{value:+g}")
            for value, color in ((1.0, VERMILION), (0.3, VERMILION), (0.1, VERMILION), (-0.3, BLUE))
        ],
        title=f"effect on the\n{metric.replace('_', ' ')}\n(share)",
        title_fontsize=8.5,
        fontsize=8,
        loc="outside right upper",
        frameon=False,
    )
    caption = (
        f"{about_pairs(result)} The figure is for the group {group} and step "
        f"{int(last['step']):,}. A dot is a node at a position: the embeddings (bottom), heads "
        "from left to right, MLPs, and the logits. A "
        f"line is an edge with an effect of at least {_LEAST:g}; its width is the effect, and "
        "its color is the sign. A line into a head ends at its query (left of the dot), key "
        "(below) or value (right of the dot) at the position that the head reads. A head writes at "
        "this and later positions, so its outgoing edges may begin further right."
    )
    title = "Which edges make the circuit?"
    return Figure("edge_patching_graph", title, caption, drawing)


def _grid(ax: Axes, values: Any, steps: list[int]) -> None:
    ax.imshow(
        np.ma.masked_invalid(values),
        cmap=_COLORS,
        norm=_norm(),
        aspect="auto",
        interpolation="nearest",
    )
    shown = np.unique(np.linspace(0, len(steps) - 1, min(5, len(steps))).round().astype(int))
    ax.set_xticks(shown, [f"{steps[index]:,}" for index in shown], fontsize=7.5)
    ax.set_xlabel("training step (checkpoints, evenly spaced)", fontsize=8.5)


def node_places(edges: Sequence[Edge]) -> dict[str, tuple[int, float]]:
    """Return the row, and the offset within its position, of every node, for a drawing."""
    names = dict.fromkeys(
        name for edge in edges for name in (edge.sender, edge.receiver.partition("<")[0])
    )
    heads = max([int(name.split(".h")[1]) for name in names if ".h" in name], default=0) + 1
    blocks = max([int(name[1:].split(".")[0]) for name in names if name[0] in "am"], default=-1) + 1
    found = {}
    for name in names:
        if ".h" in name:
            block, head = (int(part) for part in name[1:].split(".h"))
            offset = 0.0 if heads == 1 else 0.6 * (head / (heads - 1) - 0.5)
            found[name] = (1 + 2 * block, offset)
        elif name[0] == "m":
            found[name] = (2 + 2 * int(name[1:]), 0.0)
        else:
            found[name] = (0 if name == "input" else 2 * blocks + 1, 0.0)
    return found


def _level(row: int, rows: dict[str, tuple[int, float]]) -> str:
    name = next(name for name, (at, _) in rows.items() if at == row)
    if name in ("input", "logits"):
        return "embeddings" if name == "input" else "logits"
    block = name[1:].split(".")[0]
    return f"heads {block}" if ".h" in name else f"MLP {block}"


def _nodes(ax: Axes, pos: int, rows: dict[str, tuple[int, float]]) -> None:
    x = [pos + offset for _, offset in rows.values()]
    ax.scatter(x, [row for row, _ in rows.values()], s=26, color=GREY, zorder=3, linewidths=0)


_INPUT_SHIFT = {"q": -0.045, "k": 0.0, "v": 0.045}


def _line(ax: Axes, pos: int, rows: dict[str, tuple[int, float]], edge: Edge, value: float) -> None:
    receiver, _, part = edge.receiver.partition("<")
    (low, left), (high, right) = rows[edge.sender], rows[receiver]
    shift = _INPUT_SHIFT.get(part[:1], 0.0)
    ax.annotate(
        "",
        xy=(pos + right + shift, high),
        xytext=(pos + left, low),
        arrowprops={
            "arrowstyle": "-",
            "color": VERMILION if value > 0 else BLUE,
            "linewidth": _width(value),
            "alpha": 0.8,
            # Edges that skip a row bend around the nodes between.
            "connectionstyle": f"arc3,rad={0.0 if high - low == 1 else 0.12}",
        },
        zorder=2,
    )


def _width(value: float) -> float:
    return 0.7 + 5 * min(abs(value), 1.0)


def _norm() -> Normalize:
    """Return a scale that is linear up to .05 and logarithmic beyond, so small effects show."""
    return SymLogNorm(_LEAST, vmin=-1, vmax=1)


def about_pairs(result: xr.Dataset) -> str:
    """Return two sentences about the pairs and the patches, for captions."""
    options: dict[str, Any] = result.attrs.get("options", {})
    name = options["pairs"]["name"] if "pairs" in options else "bridge"
    return (
        f"The pairs are {name}, with clean prompts that are answered correctly. One receiver reads "
        "one sender's output, at one position, from the corrupt run. The effect is the change of "
        "the metric as a share of the mean difference between the two runs."
    )
