"""Draw the progress measures of composition over training."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.analysis.claims import MIN_CLUSTERS
from implicit_reasoning.analysis.drawing import some_groups
from implicit_reasoning.figures import (
    BLACK,
    GREEN,
    VERMILION,
    Figure,
    log_axis,
    new_drawing,
    step_axis,
)

GROUNDED_GROUPS = ("test_oi", "test_c0")
"""Splits whose first facts have no training chains (O), or only two that state no bridge (C)."""

_STYLES = {
    "own": (BLACK, "-"),
    "restricted": (GREEN, "-"),
    "excluded": (VERMILION, "-"),
    "restricted, other bridge": (GREEN, "--"),
    "excluded, other bridge": (VERMILION, "--"),
}


def draw_progress(result: xr.Dataset) -> Figure:
    """Draw the loss and the accuracy of every state, for a few splits.

    Args:
      result: the result of `CompositionProgress`.
    """
    names = result["group"].values.tolist()
    groups = [*some_groups(result), *(name for name in GROUNDED_GROUPS if name in names)]
    drawing, axes = new_drawing(
        2.2 + 2.7 * len(groups), 5.4, nrows=2, ncols=len(groups), sharex=True, sharey="row"
    )
    for column, group in enumerate(groups):
        of_group = result.sel(group=group)
        few = int(of_group["n_states"]) < MIN_CLUSTERS
        for row, name in enumerate(("loss", "correct")):
            ax = axes[row * len(groups) + column]
            _curves(ax, of_group, name)
            if row == 0:
                ax.set_title(f"{group}\n{int(of_group['n_states'])} bridges", fontsize=10)
                ax.set_yscale("log")
            step_axis(ax, int(result["step"][-1]))
            ax.set_xlabel("training step (log)" if row else "")
            ax.tick_params(labelsize=8)
            if few:
                ax.set_facecolor("#F2F2F2")
    log_axis(axes[0])
    axes[0].set_ylim(bottom=0.5 * max(float(result["loss"].sel(group=groups).min()), 1e-9))
    axes[0].set_ylabel("loss (nats)")
    axes[len(groups)].set_ylabel("accuracy")
    axes[len(groups)].set_ylim(-0.02, 1.02)
    drawing.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    caption = (
        f"Loss (top) and accuracy (bottom) of chains, when the state S at layer {_layer(result)}, "
        "position r1, is edited. own: no edit. restricted: S is the mean state of other first "
        "facts with the same bridge. excluded: the difference between this mean and that of all "
        "states is subtracted from S. Dashed lines are the null: the mean of a random other "
        "bridge, which leads to another answer. A model that answers through a code of the bridge "
        "has a low restricted and a high excluded loss; a model that has memorized chains by their "
        "prefixes has a low excluded loss on training chains. The class means are over first facts "
        "of training chains. In splits whose first facts are seen only as single facts (test_oi) "
        "or almost only (test_c0), a low restricted loss beside a high own loss says that the "
        "second hop works, and that the single fact does not set the code. Bands are 95% "
        f"intervals, clustered by bridge. Panels with a gray ground have fewer than {MIN_CLUSTERS} "
        "bridges."
    )
    title = "Are answers computed from the code that prefixes of a bridge share?"
    return Figure("composition_progress", title, caption, drawing)


def _curves(ax: Axes, result: xr.Dataset, name: str) -> None:
    steps = result["step"]
    for state, (color, line) in _STYLES.items():
        at = result.sel(state=state)
        least = 1e-9 if name == "loss" else 0.0  # the axis of losses is logarithmic
        low, mean, high = (np.maximum(at[f"{name}{end}"], least) for end in ("_low", "", "_high"))
        ax.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        marker = "o" if len(steps) == 1 else None  # a line of one point is invisible
        ax.plot(steps, mean, color=color, linestyle=line, label=state, linewidth=1.5, marker=marker)


def _layer(result: xr.Dataset) -> str:
    options = result.attrs.get("options") or {}
    return str(options.get("layer", 1))
