"""Figures of `circuit_formation.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from circuit_formation_rules import agreement, all_edges, smallest
from components_figures import (
    add_legend,
    count_of,
    draw_accuracy,
    draw_runs,
    save_drawings,
    with_node,
)
from components_rules import STAGES, at_stage, known
from reasoning_or_shortcut_arms import Arm

from implicit_reasoning.analysis.circuits.scores import ESTIMATES
from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREY,
    SERIES_COLORS,
    VERMILION,
    new_drawing,
    step_axis,
)

TITLES = {
    "composition": "composition",
    "ladder": "ladder",
    "ladder_early": "ladder, early supervision",
    "scrambled": "scrambled",
    "ladder_taught": "ladder, taught (curves)",
    "without_id_triples": "without ID triples (curves)",
    "shadow": "shadow (curves)",
    "in_context": "in context (curves)",
    "greater_than": "greater than (curves)",
    "indirect_object": "indirect object (curves)",
}
ORDERS = {
    "exact, grown": (BLUE, "-"),
    "EAP, grown": (VERMILION, "-"),
    "magnitude, grown": (BLACK, "--"),
    "random, grown": (GREY, "--"),
}


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results."""
    drawings = {
        "faithfulness": draw_faithfulness(arms),
        "sizes": draw_sizes(arms),
        "routes": draw_routes(arms),
        "estimates": draw_estimates(arms),
    }
    save_drawings(out, drawings)


def panels(arms: Mapping[str, Arm]) -> tuple[Any, list[Any]]:
    """Create a figure with a panel for each arm; return it and the axes."""
    columns = min(len(arms), 5)
    rows = -(-len(arms) // columns)
    drawing, axes = new_drawing(
        2.2 + 2.7 * columns, 0.6 + 2.6 * rows, nrows=rows, ncols=columns, sharey=True
    )
    flat = list(np.array(axes, object).ravel())
    for ax, (name, arm) in zip(flat, arms.items(), strict=False):
        ax.set_title(f"{TITLES[name]}, {count_of(arm)}", fontsize=9)
    for ax in flat[len(arms) :]:
        ax.remove()
    return drawing, flat


def finish(drawing: Any, axes: list[Any], label: str) -> Any:
    """Set the label of the vertical axis of each row, and the legend."""
    for ax in axes[::5]:
        ax.set_ylabel(label)
    add_legend(drawing, axes)
    return drawing


def draw_faithfulness(arms: Mapping[str, Arm]) -> Any:
    """Draw faithfulness at the end by the share of edges, for several orders."""
    chosen = with_node(arms, "discovery", TITLES)
    if not chosen:
        return None
    drawing, axes = panels(chosen)
    for ax, arm in zip(axes, chosen.values(), strict=False):
        part = at_stage(arm, "discovery", "end").isel(group=0)
        faithful, share = known(part, "faithfulness"), part["size"] / part["size"].max()
        for order, (color, line) in ORDERS.items():
            values = faithful.sel(order=order).transpose("run", "size").values
            for row in values:
                ax.plot(share, row, line, color=color, linewidth=0.5, alpha=0.4)
            with np.errstate(invalid="ignore"):
                ax.plot(share, np.nanmean(values, 0), line, color=color, label=order)
        ax.set_xscale("symlog", linthresh=0.01)
        ax.set_xlim(0, 1)
        ax.set_ylim(-0.2, 1.3)
        ax.axhline(1, color=GREY, linewidth=0.6)
        ax.set_xlabel("share of edges (linear below .01, then log)", fontsize=8)
    return finish(drawing, axes, "faithfulness")


def draw_sizes(arms: Mapping[str, Arm]) -> Any:
    """Draw the size of the smallest faithful circuit over training, for several orders.

    If only the circuit of all edges is faithful, the size is the number of edges that can matter.
    """
    chosen = with_node(arms, "discovery", TITLES)
    if not chosen:
        return None
    drawing, axes = panels(chosen)
    for ax, arm in zip(axes, chosen.values(), strict=False):
        part, most = arm.parts["discovery"], all_edges(arm)
        there = known(part, "faithfulness").isel(group=0, order=0, size=-1, drop=True).notnull()
        for order, (color, line) in reversed(ORDERS.items()):
            found = smallest(part, order).fillna(most).clip(max=most).where(there)
            draw_runs(ax, found, color, order, linestyle=line)
        ax.axhline(most, color=GREY, linewidth=0.6)
        step_axis(ax, int(arm.parts["training"]["evaluation"][-1]))
        ax.set_xlim(left=100)
        ax.set_yscale("log")
        ax.set_xlabel("training step (log)")
    return finish(drawing, axes, "edges of the smallest faithful circuit")


def draw_routes(arms: Mapping[str, Arm]) -> Any:
    """Draw the faithfulness of both routes over training, and the accuracies."""
    chosen = with_node(arms, "routes", TITLES)
    if not chosen:
        return None
    drawing, axes = panels(chosen)
    for ax, arm in zip(axes, chosen.values(), strict=False):
        part = arm.parts["routes"]
        faithful = known(part, "faithfulness").isel(group=0).clip(-0.2, 1.3)
        for name, color in zip(part["route"].values, (BLUE, VERMILION), strict=True):
            draw_runs(ax, faithful.sel(route=name, cut="own"), color, str(name))
        null = faithful.sel(route=str(part["route"].values[0]), cut="random edges").mean("run")
        label = "through r1, null: random edges"
        ax.plot(null["step"], null, "--", color=BLACK, linewidth=1, label=label)
        draw_accuracy(ax, arm)
        step_axis(ax, int(arm.parts["training"]["evaluation"][-1]))
        ax.set_xlim(left=10)
        ax.set_ylim(-0.2, 1.35)
        ax.set_xlabel("training step (log)")
    return finish(drawing, axes, "faithfulness, accuracy")


def draw_estimates(arms: Mapping[str, Arm]) -> Any:
    """Draw the rank correlation of every estimate with exact scores at the stages."""
    chosen = with_node(arms, "estimates", TITLES)
    if not chosen:
        return None
    drawing, axes = panels(chosen)
    colors = dict(zip(ESTIMATES, SERIES_COLORS, strict=False)) | {"magnitude": GREY}
    for ax, arm in zip(axes, chosen.values(), strict=False):
        for place, (estimator, color) in enumerate(colors.items()):
            values = np.array([agreement(arm, stage, estimator) for stage in STAGES[1:]])
            at = np.arange(len(values)) + 0.08 * (place - 2)
            for column in values.T:
                ax.plot(at, column, ".", color=color, markersize=3, alpha=0.5)
            there = np.isfinite(values).any(1)  # some arms do not reach every stage
            mean = np.full(len(values), np.nan)
            mean[there] = np.nanmean(values[there], 1)
            style = "--" if estimator == "magnitude" else "-"
            label = "magnitude (null)" if estimator == "magnitude" else estimator
            ax.plot(at, mean, style, marker="o", markersize=4, color=color, label=label)
        ax.set_xticks(range(len(STAGES) - 1), STAGES[1:])
        ax.set_xlim(-0.4, len(STAGES) - 1.6)
        ax.set_xlabel("stage")
        ax.set_ylim(-0.3, 1.02)
    return finish(drawing, axes, "rank correlation with exact scores")
