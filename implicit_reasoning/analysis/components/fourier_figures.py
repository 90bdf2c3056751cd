"""Draw the progress measures of modular addition over training.

The phases of Nanda et al. 2023 are memorization, circuit formation and cleanup. The paper chose
their ends by eye. Here, an end is a checkpoint that a rule chooses, so that runs can be compared:

- Memorization ends when the excluded loss of the training pairs is lowest.
- Circuit formation ends at the last checkpoint at which the test loss is at least half of its
  maximum.
- Cleanup ends at the first checkpoint from which on the accuracy on test pairs is at least .99.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Figure,
    log_axis,
    new_drawing,
)

PHASES = ("memorization", "circuit formation", "cleanup")
MIN_FINAL_ACCURACY = 0.99
"""Cleanup ends when the accuracy on test pairs stays at or above this number."""

_PUBLISHED = (
    "Published (p = 113, 30% of the pairs, one seed): memorization until step 1,400, circuit "
    "formation until 9,400, cleanup until 14,000; key frequencies 14, 35, 41, 42 and 52."
)


def phase_ends(result: xr.Dataset) -> dict[str, int]:
    """Return the last step of each phase, by name. A phase that does not end is left out.

    A phase that would end before the phase in front of it is also left out. The rules are in the
    docstring of the module.

    Args:
      result: the result of `FourierProgress` with the groups train_pairs and test_pairs.
    """
    if not {"train_pairs", "test_pairs"} <= set(result["group"].values.tolist()):
        return {}
    steps = result["step"].values
    test = result.sel(group="test_pairs")
    excluded = result["excluded_loss"].sel(group="train_pairs").values
    loss, right = test["full_loss"].values, test["correct"].values >= MIN_FINAL_ACCURACY
    high = np.flatnonzero(loss >= loss.max() / 2)
    wrong = np.flatnonzero(~right)
    final = wrong[-1] + 1 if len(wrong) else 0
    ends = {PHASES[0]: int(excluded.argmin())}
    if final < len(steps):
        ends |= {PHASES[1]: int(high[-1]), PHASES[2]: int(final)}
    kept, before = {}, 0
    for name, place in ends.items():
        if before < place:
            kept[name], before = int(steps[place]), place
    return kept


def draw_losses(result: xr.Dataset) -> Figure:
    """Draw full, restricted and excluded loss over training, with the null and the phases."""
    drawing, (ax,) = new_drawing(8.5, 4.8)
    groups = result["group"].values.tolist()
    lines = [
        ("full_loss", "train_pairs", "full, training pairs", {"color": BLACK, "linestyle": "--"}),
        ("full_loss", "test_pairs", "full, test pairs", {"color": BLUE}),
        ("restricted_loss", "all_pairs", "restricted, all pairs", {"color": GREEN}),
        ("excluded_loss", "train_pairs", "excluded, training pairs", {"color": VERMILION}),
    ]
    for name, group, label, style in lines:
        if group not in groups:
            continue
        of_group = result.sel(group=group)
        _line(ax, of_group[name], label, style)
        if (null := f"null_{name}") in result:
            _null(ax, of_group[null], f"{label}: null", style["color"])
    log_axis(ax)
    _linear_steps(ax, result)
    ax.set_ylabel("loss (nats)")
    ends = phase_ends(result)
    for name, step in ends.items():
        ax.axvline(step, color=GREY, linewidth=0.9)
        ax.annotate(
            f"end of {name}",
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -3),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=7.5,
        )
    drawing.legend(
        *ax.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8
    )
    key = ", ".join(str(number) for number in key_frequencies_of(result))
    caption = (
        "Cross-entropy losses over training. restricted: only the waves of a + b with the key "
        "frequencies remain in the logits. excluded: these waves are removed. The key frequencies "
        f"({key}) carry more than 90% of the squared norm of W_L of the last checkpoint. A "
        "restricted loss that falls before the test loss shows that the circuit forms before the "
        "model generalizes. An excluded loss that rises shows that the model stops using memorized "
        "pairs. Dashed lines in the same color are the null: as many other frequencies, as the "
        "mean and the range of 20 draws. "
    )
    if ends:
        phases = ", ".join(f"{name} until step {step:,}" for name, step in ends.items())
        caption += (
            f"Vertical lines are the ends of phases: {phases}. Memorization ends when the excluded "
            "loss is lowest, circuit formation ends when the test loss was last at half of its "
            f"maximum, and cleanup ends when test accuracy stays at {MIN_FINAL_ACCURACY} or above. "
        )
    title = "Does the Fourier circuit form before the model generalizes?"
    return Figure("fourier_progress", title, caption + _PUBLISHED, drawing)


def draw_weights(result: xr.Dataset) -> Figure:
    """Draw how sparse the weights are over frequencies, and how large the weights are."""
    drawing, axes = new_drawing(9.5, 5.6, nrows=2, ncols=2)
    colors = dict(zip(result["matrix"].values.tolist(), (BLUE, VERMILION), strict=True))
    panels: Mapping[str, str] = {
        "gini": "Gini coefficient",
        "key_norm": "share of squared norm\nat key frequencies",
    }
    for ax, (name, label) in zip(axes, panels.items(), strict=False):
        for matrix, color in colors.items():
            _line(ax, result[name].sel(matrix=matrix), matrix, {"color": color})
        ax.set_ylim(-0.02, 1.02)
        ax.set_ylabel(label)
    _line(axes[2], result["squared_weights"], "", {"color": BLACK})
    axes[2].set_ylim(bottom=0)
    axes[2].set_ylabel("sum of squared weights")
    for ax in axes[:3]:
        _linear_steps(ax, result)
        for step in phase_ends(result).values():
            ax.axvline(step, color=GREY, linewidth=0.9)
    _spectrum(axes[3], result.isel(step=-1), colors)
    drawing.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8
    )
    caption = (
        "Fourier norms of the embeddings W_E and of the neuron-logit map W_L, by frequency. The "
        "Gini coefficient is 0 if all frequencies have the same norm, and near 1 if one frequency "
        "has all. Upper right: share of the squared norm at the key frequencies of the last "
        "checkpoint. Lower left: sum of squares of all parameters; weight decay makes it fall when "
        "the memorized pairs are no longer needed. Lower right: share of the squared norm at each "
        "frequency in the last checkpoint; triangles mark the key frequencies. Vertical lines are "
        f"the ends of phases, as in the figure of losses. {_PUBLISHED}"
    )
    return Figure("fourier_progress_weights", "Do weights become sparse waves?", caption, drawing)


def key_frequencies_of(result: xr.Dataset) -> list[int]:
    """Return the key frequencies of a result, in ascending order."""
    chosen = result["is_key"].isel(step=-1).values.astype(bool)
    return [int(number) for number in result["frequency"].values[chosen]]


def _spectrum(ax: Axes, result: xr.Dataset, colors: Mapping[str, str]) -> None:
    """Draw the share of the squared norm at each frequency as bars."""
    frequency = result["frequency"].values
    for place, (matrix, color) in enumerate(colors.items()):
        shift = 0.4 * (place - 0.5)
        ax.bar(frequency + shift, result["norm"].sel(matrix=matrix), 0.4, color=color)
    key = key_frequencies_of(result.expand_dims("step"))
    ax.plot(key, np.full(len(key), -0.012), "^", color=BLACK, markersize=4, clip_on=False)
    ax.set_xlabel("frequency")
    ax.set_ylabel("share of squared norm")


def _linear_steps(ax: Axes, result: xr.Dataset) -> None:
    """Scale the x axis linearly, as in the paper: late phases would be narrow on a log scale."""
    ax.set_xlim(0, max(int(result["step"][-1]), 1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("training step")


def _line(ax: Axes, values: xr.DataArray, label: str, style: Mapping[str, Any]) -> None:
    # A line of one point is invisible, so a single checkpoint has a marker.
    marker = "o" if values.sizes["step"] == 1 else None
    ax.plot(values["step"], values, label=label, linewidth=1.5, marker=marker, **style)


def _null(ax: Axes, values: xr.DataArray, label: str, color: str) -> None:
    """Draw the mean over the draws of a null as a dashed line, with the range as a band."""
    low, high = values.min("draw"), values.max("draw")
    ax.fill_between(values["step"], low, high, color=color, alpha=0.15, linewidth=0)
    _line(ax, values.mean("draw"), label, {"color": color, "linestyle": "--"})
