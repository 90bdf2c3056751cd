"""Draw the results of ablation, and name their labels."""

from __future__ import annotations

import xarray as xr

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.drawing import heat_maps, some_groups
from implicit_reasoning.figures import BLUE, GREY, VERMILION, Figure, new_drawing

KINDS = ("zero", "mean", "resample", "same answer")
OUTCOMES = ("unchanged", "answer of the other example", "other")
ORDERS = ("largest effect first", "smallest effect first", "random order")


def components_figure(result: xr.Dataset) -> Figure:
    """Draw the share of changed answers by component, kind of ablation and position."""
    last = result.isel(step=-1)
    step, group = int(result["step"][-1]), some_groups(result)[0]
    changed = 1 - known_means(last, "fraction").sel(outcome=OUTCOMES[0], group=group)
    maps = {
        f"{kind}\nat {pos}": changed.sel(kind=kind, pos=pos)
        for kind in KINDS
        for pos in result["pos"].values
    }
    caption = (
        f"The figure has the examples of {group} that are answered correctly, at step "
        f"{step:,}. The output of one component (row) of one block (column) is replaced: by "
        "zero, by its mean over training chains, or by its output for another example "
        "(resample). A cell is the share of answers that change. The component is ablated at "
        "one position, or at all positions together. The last row of maps is the null: the "
        "output for another example with the same answer. 'block' is the sum of attention "
        "and MLP, and 'state' the residual stream after the block. Components that do the "
        f"same stay near 0. White cells have fewer than {MIN_CLUSTERS} clusters that count."
    )
    drawing = heat_maps(
        maps,
        "share of changed answers",
        ncols=result.sizes["pos"],
        rows="part",
        columns="block",
    )
    title = "Which components do the answers need?"
    return Figure("ablation", title, caption, drawing)


def cumulative_figure(result: xr.Dataset) -> Figure:
    """Draw the share of unchanged answers by the number of ablated heads, at the last step."""
    group, step = some_groups(result)[0], int(result["step"][-1])
    at = {"step": step, "group": group}
    known = {end: result[f"cumulative{end}"].sel(at) for end in ("", "_low", "_high")}
    known[""] = known_means(result, "cumulative").sel(at)
    drawing, axes = new_drawing(2.2 + 2.6 * len(KINDS), 3.2, ncols=len(KINDS), sharey=True)
    colors = dict(zip(ORDERS, (VERMILION, BLUE, GREY), strict=True))
    for ax, kind in zip(axes, KINDS, strict=True):
        for order, color in colors.items():
            mean, low, high = (x.sel(kind=kind, order=order) for x in known.values())
            style = "--" if order == ORDERS[2] else "-"
            ax.plot(mean["n_ablated"], mean, style, color=color, label=order, clip_on=False)
            ax.fill_between(mean["n_ablated"], low, high, color=color, alpha=0.15, linewidth=0)
        ax.set_title(kind, fontsize=10)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("number of ablated heads")
    axes[0].set_ylabel("share of unchanged answers")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    caption = (
        f"The figure has the examples of {group} that are answered correctly, at step "
        f"{step:,}. Heads are ablated together, at all positions. They are sorted by "
        "the decrease of the logit difference when each is ablated alone, which is measured on "
        "half of the clusters. The curves are over the examples of the other half, and each half "
        "is the other half once. A curve that starts with the smallest effects and stays high "
        "shows how many heads are not needed. The dashed line is the null: heads in random order. "
        "The panel 'same answer' is a second null: the outputs for another example with the same "
        "answer. Bands are 95% intervals, clustered by bridge."
    )
    return Figure("ablation_cumulative", "How many heads do the answers need?", caption, drawing)
