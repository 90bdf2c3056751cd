"""Figures of a run's dictionaries, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from implicit_reasoning.analysis.drawing import heat_maps, layer_colors
from implicit_reasoning.dictionaries.store import Files, names
from implicit_reasoning.figures import BLACK, BLUE, GREEN, GREY, ORANGE, Figure, new_drawing
from implicit_reasoning.runs import Run, load_arrays

_MARKERS = "osD^v<>"
_RULES: dict[str, dict[str, Any]] = {
    "class means": {"color": BLACK, "linestyle": "--", "marker": "x"},
    "truth": {"color": BLUE, "marker": "o"},
    "activation": {"color": ORANGE, "marker": "s"},
    "attribution": {"color": GREEN, "marker": "D"},
    "null": {"color": GREY, "linestyle": ":", "marker": "v"},
}


def figures(run: Run) -> list[Figure]:
    """Of every set of dictionaries that was measured."""
    drawn = []
    for name in names(run):
        path = Files.of(run, name).measured
        if not path.exists():
            continue
        result = load_arrays(path)
        drawn.append(_pareto(name, result))
        if "concept" in result.dims:
            drawn.append(_matches(name, result))
        if "rule" in result.dims:
            drawn.append(_uses(name, result))
    return drawn


def _pareto(name: str, result: xr.Dataset) -> Figure:
    """Quality against active features, a line for each checkpoint, a column for each site."""
    sites, steps = (_distinct(result[key].values) for key in ("site", "step"))
    rows = {"explained_variance": "explained variance"}
    if "ce_loss_score_mean" in result:
        rows["ce_loss_score_mean"] = "loss recovered"
    drawing, axes = new_drawing(
        2.2 + 3.0 * len(sites),
        0.8 + 2.4 * len(rows),
        nrows=len(rows),
        ncols=len(sites),
        sharex=True,
        sharey="row",
    )
    colors = layer_colors(len(steps))
    panels = iter(axes)
    for quantity, label in rows.items():
        for site in sites:
            ax = next(panels)
            for number, step in enumerate(steps):
                of = (result["site"] == site) & (result["step"] == step)
                style = {"color": colors[number], "marker": _MARKERS[number % len(_MARKERS)]}
                _line(ax, result.sel(member=of.values), quantity, style, f"step {step:,}")
            ax.set_title(site, fontsize=9)
            ax.set_xscale("log")
            # What is far below is worse than nothing at all; how far does not matter.
            ax.set_ylim(max(_lowest(result[quantity]) - 0.03, -0.2), 1.03)
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            ax.axhline(0, color="black", linewidth=0.5)
            if site == sites[0]:
                ax.set_ylabel(label)
    drawing.supxlabel("active features, mean over states", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    caption = (
        f"Dictionaries {name!r}, each point one (mean over seeds, bars from the lowest to the "
        f"highest), on {result.attrs['n_states']:,} distinct states of prefixes that were not "
        f"trained on ({result.attrs['n_trained']:,} were). Explained variance is about the mean of "
        "the states. Loss recovered: of the cross-entropy that answers lose when the site is set "
        "to its mean, the share that comes back with the dictionary's output there, trained "
        "chains; 1 is the model itself. Before a model uses a site there is nothing to recover."
    )
    return Figure(f"dictionaries_{name}", "How much is kept, by how few features", caption, drawing)


def _lowest(values: xr.DataArray) -> float:
    """Of what is drawn: of splits the first."""
    return float(values.isel(split=0).min() if "split" in values.dims else values.min())


def _line(ax: Axes, part: xr.Dataset, quantity: str, style: Mapping[str, Any], label: str) -> None:
    values = part[quantity]
    if "split" in values.dims:
        values = values.isel(split=0)
    groups = [np.flatnonzero(part["sparsity"] == s) for s in _distinct(part["sparsity"].values)]
    l0 = np.array([part["l0"].values[group].mean() for group in groups])
    each = [values.values[group] for group in groups]
    mean = np.array([one.mean() for one in each])
    order = np.argsort(l0)
    ends = np.array([[one.mean() - one.min(), one.max() - one.mean()] for one in each]).T
    ax.errorbar(
        l0[order],
        mean[order],
        yerr=ends[:, order],
        label=label,
        markersize=4,
        linewidth=1.3,
        **style,
    )


def _matches(name: str, result: xr.Dataset) -> Figure:
    """Mean F1 of the best feature of a variable's values, by checkpoint; in brackets the null."""
    sites = _distinct(result["site"].values)
    sparsity = _middle(result["sparsity"].values)
    maps, nulls = {}, {}
    for site in sites:
        chosen = (result["site"] == site) & (result["sparsity"] == sparsity)
        part = result.sel(member=chosen.values)
        mean = part["f1"].mean("value").groupby("step").mean()
        null = part["f1_null"].max("draw").groupby("step").mean()
        maps[site], nulls[site] = (value.transpose("concept", "step") for value in (mean, null))
    drawing = heat_maps(
        maps, "mean F1 of the best feature", rows="concept", columns="step", nulls=nulls
    )
    counts = result["f1"].notnull().any("member").sum("value")
    listed = ", ".join(
        f"{int(n)} of {c}" for c, n in zip(result["concept"].values, counts.values, strict=True)
    )
    caption = (
        f"Dictionaries {name!r} of sparsity {sparsity:g}: for every value of a variable (at a "
        "position) the feature that is active most nearly where the value is, chosen on half of "
        "the distinct states, and its F1 on the other half; mean over values "
        f"({listed}). In brackets the null: the highest mean of {result.sizes['draw']} "
        "permutations of values among states. A token's own variable at its own position is "
        "written there by the embedding."
    )
    title = "Do features stand for entities and relations?"
    return Figure(f"dictionaries_{name}_matches", title, caption, drawing)


def _uses(name: str, result: xr.Dataset) -> Figure:
    """Answers that follow a bridge's feature, by checkpoint and by how features are chosen."""
    sites, sparsity = _distinct(result["site"].values), _middle(result["sparsity"].values)
    drawing, axes = new_drawing(2.6 + 3.0 * len(sites), 3.0, ncols=len(sites), sharey=True)
    for ax, site in zip(axes, sites, strict=True):
        of = (result["site"] == site) & (result["sparsity"] == sparsity) & (result["seed"] == 0)
        part = result.sel(member=of.values).sortby("step").sel(outcome="moved")
        for rule, style in _RULES.items():
            low, mean, high = (part[f"swap{end}"].sel(rule=rule) for end in ("_low", "", "_high"))
            color = style["color"]
            ax.fill_between(part["step"], low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(part["step"], mean, label=rule, linewidth=1.4, markersize=4, **style)
        ax.set_title(site, fontsize=9)
        ax.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("answers that follow")
    drawing.supxlabel("training step", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    pairs, cases = (int(result[key].values.flat[0]) for key in ("swap_pairs", "swap_cases"))
    caption = (
        f"Dictionaries {name!r} of sparsity {sparsity:g}: where a bridge is first known its "
        "feature is set to 0 and another bridge's to its usual size; the share of prompts whose "
        f"answer becomes that of the other bridge, over all its relations ({cases} prompts, "
        f"{pairs} pairs of a prefix and a bridge; shading: 95% interval over pairs). Features are "
        "chosen on other facts: most nearly active where the bridge is (truth), most active, or "
        "with most effect on the right logit (attribution). Grey: features of bridges dealt out "
        "anew. Black: class means exchanged, for which no dictionary is needed."
    )
    title = "Do answers follow the features of bridges?"
    return Figure(f"dictionaries_{name}_use", title, caption, drawing)


def _distinct(values: Sequence[Any] | np.ndarray) -> list[Any]:
    return list(dict.fromkeys(np.asarray(values).tolist()))


def _middle(values: np.ndarray) -> float:
    ordered = sorted(set(values.tolist()))
    return float(ordered[len(ordered) // 2])
