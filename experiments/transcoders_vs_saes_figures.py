"""Figures and table of `transcoders_vs_saes.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.dictionaries.figures.drawing import features_axis, legends, panels
from implicit_reasoning.figures import BLUE, ORANGE, VERMILION

_STYLES: dict[str, dict[str, Any]] = {
    "autoencoder": {"color": BLUE, "marker": "o"},
    "transcoder": {"color": VERMILION, "marker": "s"},
    "skip_transcoder": {"color": ORANGE, "marker": "D", "linestyle": "--"},
}
BASELINES = {
    "neurons": "P",
    "k-means": "X",
    "linear": "v",
    "class means": "*",
    "frozen decoder": "^",
}
SPLITS = ("train_ii", "test_ii")
BRIDGE = "e2@r1"


def draw_all(out: Path, results: Mapping[str, xr.Dataset]) -> None:
    """Write every figure as PNG."""
    draw(results, _quantities).savefig(out / "pareto.png", dpi=150)
    draw(results, _of_bridges).savefig(out / "bridges.png", dpi=150)


def _quantities(part: xr.Dataset) -> dict[str, xr.DataArray]:
    found = {"explained variance": part["explained_variance"]}
    for split in SPLITS:
        found[f"cross-entropy, {split}"] = part["ce"].sel(split=split, model="spliced")
    return found


def _of_bridges(part: xr.Dataset) -> dict[str, xr.DataArray]:
    found = {"mean F1 of bridges": part["f1"].sel(concept=BRIDGE)}
    found["answers that follow a swap"] = part["use"].sel(
        rule="truth", change="swap", outcome="moved"
    )
    return found


def draw(results: Mapping[str, xr.Dataset], quantities: Any) -> Any:
    """Draw quality against the number of active features.

    Rows of panels are quantities, and columns are blocks.
    """
    names = list(quantities(results["autoencoder"]))
    drawing, rows, sites = panels(
        results["autoencoder"], len(names), 2.3, below="active features, mean over held-out states"
    )
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        row[0].set_ylabel(name, fontsize=9)
        for ax, site in zip(row, sites, strict=True):
            for kind, result in results.items():
                part = result.sel(member=(result["site"] == site).values)
                _curve(ax, part, kind, quantities, number)
            features_axis(ax)
            if name.startswith("cross-entropy"):
                ax.set_yscale("log")
                ax.set_ylim(1e-4, 20)  # smaller values are practically zero
    legends(drawing, rows[:1])
    return drawing


def _curve(ax: Axes, part: xr.Dataset, kind: str, quantities: Any, row: int) -> None:
    """Plot the mean and range over seeds, and the baselines as single marks."""
    values = list(quantities(part).values())[row]
    own = (part["what"] == "trained").values
    l0, sparsity = part["l0"].values, part["sparsity"].values
    each = [np.flatnonzero(own & (sparsity == one)) for one in np.unique(sparsity[own])]
    mean = np.array([values.values[some].mean() for some in each])
    ends = [
        [mean[i] - values.values[s].min(), values.values[s].max() - mean[i]]
        for i, s in enumerate(each)
    ]
    at = [l0[some].mean() for some in each]
    ax.errorbar(
        at,
        mean,
        yerr=np.array(ends).T,
        label=kind.replace("_", " "),
        **_STYLES[kind],
        markersize=4,
        linewidth=1.3,
    )
    if kind == "skip_transcoder":
        return
    for name, marker in BASELINES.items():
        there = (part["what"] == name).values
        ax.scatter(
            l0[there],
            values.values[there],
            marker=marker,
            s=34,
            color=_STYLES[kind]["color"],
            label=f"{name} ({kind})",
            linewidth=1,
        )


def write_table(path: Path, results: Mapping[str, xr.Dataset]) -> None:
    """Write a Markdown table of every kind and baseline, by block and sparsity."""
    one = results["autoencoder"]
    lines = [
        f"The numbers are measured on {one.attrs['n_states']:,} distinct held-out states; "
        f"{one.attrs['n_trained']:,} states were used for training. A cell is the mean over seeds, "
        "with the range (lowest - highest) if it is not negligible. CE is the cross-entropy in "
        "nats when the MLP's output is replaced. F1 is the mean over "
        f"{int(one['f1_values'].sel(concept=BRIDGE).max())} bridges of the F1 of the best feature, "
        "at the position where a bridge is first known, and null is the highest mean of 20 "
        "permutations. Swap is the share of answers that follow when the feature of a bridge is "
        "replaced by that of another bridge; features are chosen by truth. The last column is the "
        "mean cosine with the nearest feature of another seed.",
        "",
        "| block | kind | what | L0 | explained variance | CE train_ii | CE test_ii | F1 | null | "
        "swap | another seed |",
        "|" + "---|" * 11,
    ]
    for site in dict.fromkeys(one["site"].values.tolist()):
        own = one.sel(member=((one["site"] == site) & (one["what"] == "trained")).values)["ce"]
        for model, label in (("clean", "the model itself"), ("mean", "mean of the MLP's output")):
            ce = [_mean(own.sel(split=split, model=model).values) for split in SPLITS]
            lines.append(f"| {site} | | {label} | | | {ce[0]} | {ce[1]} | | | | |")
        for kind, result in results.items():
            here = result.sel(member=(result["site"] == site).values)
            for what in dict.fromkeys(here["what"].values.tolist()):
                of = here.sel(member=(here["what"] == what).values)
                for sparsity in np.unique(of["sparsity"]):
                    some = of.sel(member=(of["sparsity"] == sparsity).values)
                    lines.append(f"| {site} | {kind} | {what} | {_cells(some)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(part: xr.Dataset) -> str:
    moved = part["use"].sel(rule="truth", change="swap", outcome="moved").values
    columns = [
        part["l0"].values,
        part["explained_variance"].values,
        *(part["ce"].sel(split=split, model="spliced").values for split in SPLITS),
        part["f1"].sel(concept=BRIDGE).values,
        part["f1_null"].sel(concept=BRIDGE).values,
        moved,
        part["agreement"].values,
    ]
    return " | ".join(_mean(values) for values in columns)


def _mean(values: np.ndarray) -> str:
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return "-"
    low, high = values.min(), values.max()
    ends = f" ({low:.3g} - {high:.3g})" if high - low > 5e-3 * max(abs(high), 1) else ""
    return f"{values.mean():.3g}{ends}"
