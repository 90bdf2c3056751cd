"""Figures of `attribution_graphs.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from attribution_graphs_tables import KINDS, SPLIT, Interval, interval, ordered, runs_of, used
from components_figures import add_legend, save_drawings
from reasoning_or_shortcut_arms import Arm

from implicit_reasoning.dictionaries.graphs.measure import BRIDGES
from implicit_reasoning.figures import BLACK, BLUE, GREEN, GREY, VERMILION, new_drawing

DRAWN = {
    "bridge_share": "bridge share",
    "replacement": "replacement",
    "completeness": "completeness",
}
COLORS = dict(zip(KINDS, (BLUE, VERMILION, GREEN), strict=True))


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results."""
    if arms:
        save_drawings(out, {"bridge": draw_bridge(arms), "swaps": draw_swaps(arms)})


def draw_bridge(arms: Mapping[str, Arm]) -> Any:
    """Draw the bridge share and the scores over the stages, by kind, with a column for each run."""
    runs = list(runs_of(arms))
    drawing, axes = new_drawing(2.4 + 3.2 * len(runs), 6.6, nrows=3, ncols=len(runs), sharey=True)
    grid = np.array(axes, object).reshape(3, len(runs))
    for column, (title, parts) in enumerate(runs):
        grid[0, column].set_title(title, fontsize=9)
        stages = ordered(parts)
        draw_nulls(grid[0, column], parts, [stage for stage, _ in stages])
        for ax, name in zip(grid[:, column], DRAWN, strict=True):
            draw_kinds(ax, parts, name, [stage for stage, _ in stages])
            ticks = [f"{stage}\n{step}" for stage, step in stages]
            ax.set_xticks(range(len(stages)), ticks, fontsize=8)
        grid[-1, column].set_xlabel("stage and step of training")
    for ax, label in zip(grid[:, 0], DRAWN.values(), strict=True):
        ax.set_ylabel(label)
    add_legend(drawing, grid.ravel())
    return drawing


def draw_kinds(ax: Any, parts: Mapping[str, xr.Dataset], name: str, stages: Sequence[str]) -> None:
    """Draw a score over the stages, with a curve for each kind of dictionary."""
    for number, (kind, label) in enumerate(KINDS.items()):
        at = {"split": SPLIT, "bridge": BRIDGES[0]}
        curve = [interval(parts[f"graphs_{kind}"], name, stage=stage, **at) for stage in stages]
        draw_intervals(ax, np.arange(len(stages)) + 0.08 * (number - 1), curve, COLORS[kind], label)
    ax.set_ylim(-0.03, 1.03)


def draw_nulls(ax: Any, parts: Mapping[str, xr.Dataset], stages: Sequence[str]) -> None:
    """Draw the highest null of the bridge share of any kind, and the outcome of patching."""
    places = np.arange(len(stages))
    nulls = [
        [
            interval(parts[f"graphs_{kind}"], "bridge_share", stage=stage, split=SPLIT, bridge=b)
            for kind in KINDS
            for b in BRIDGES[1:]
        ]
        for stage in stages
    ]
    highest = [max((one.mean for one in found if one.mean >= 0), default=np.nan) for found in nulls]
    ax.plot(places, highest, color=GREY, linestyle=":", marker="x", label="highest null")
    patched = [used(parts, stage)[0] for stage in stages]
    draw_intervals(ax, places, patched, BLACK, "followed answers of patching", linestyle="--")


def draw_intervals(
    ax: Any, places: np.ndarray, curve: list[Interval], color: Any, label: str, **style: Any
) -> None:
    """Draw means with their intervals."""
    mean, low, high = np.array(curve, float).T
    ends = np.stack([mean - low, high - mean])
    ax.errorbar(
        places, mean, ends, color=color, label=label, marker="o", markersize=3, capsize=2, **style
    )


def draw_swaps(arms: Mapping[str, Arm]) -> Any:
    """Draw the share of answers that follow a swap of the features of the bridge, with nulls."""
    runs = list(runs_of(arms))
    drawing, axes = new_drawing(2.4 + 3.2 * len(runs), 3.2, ncols=len(runs), sharey=True)
    flat = list(np.array(axes, object).ravel())
    for ax, (title, parts) in zip(flat, runs, strict=True):
        ax.set_title(title, fontsize=9)
        for number, kind in enumerate(KINDS):
            part: xr.Dataset = parts[f"swaps_{kind}_seeds"]
            for place, control in enumerate(part["control"].values):
                for seed in part["seed"].values:
                    at = {"seed": seed, "change": "swap", "control": control, "within": "real"}
                    found = interval(part, "follows", "n_clusters", **at)
                    x = place + 0.22 * (number - 1) + 0.05 * (float(seed) - 1)
                    label = KINDS[kind] if place == 0 and seed == 0 else None
                    draw_intervals(ax, np.array([x]), [found], COLORS[kind], label or "_")
        controls = list(part["control"].values)
        ax.set_xticks(range(len(controls)), controls, fontsize=8)
        ax.set_xlabel("features that are swapped")
        ax.set_ylim(-0.03, 1.03)
    flat[0].set_ylabel("share of answers that follow the swap")
    add_legend(drawing, flat)
    return drawing
