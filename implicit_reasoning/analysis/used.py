"""Decodable or used? What can be read of a variable at a place, beside what changing it does.

The same variable at the same place in three results: how well it is decoded, whether answers follow
when its code is swapped, and whether they break when it is erased. Most claims about what a model
represents rest on the first alone; where the three disagree, this says so in words. What answers
follow is used; if they also survive its erasure, another route would do as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from implicit_reasoning.analysis.claims import MAX_UPPER_BOUND, MIN_CLUSTERS, MIN_LOWER_BOUND
from implicit_reasoning.analysis.drawing import label_places, some_groups, some_steps
from implicit_reasoning.analysis.reading.lens import NORMS, VOCABULARIES
from implicit_reasoning.analysis.variables.erasure import CONDITIONS as ERASED
from implicit_reasoning.analysis.variables.erasure import CONTROLS as ERASED_OTHERWISE
from implicit_reasoning.analysis.variables.erasure import Erasure
from implicit_reasoning.analysis.variables.mean_swap import CONDITIONS as SWAPPED
from implicit_reasoning.analysis.variables.mean_swap import CONTROLS as SWAPPED_OTHERWISE
from implicit_reasoning.analysis.variables.mean_swap import MeanSwap
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    Figure,
    new_drawing,
)
from implicit_reasoning.runs import Run, result_names

VERDICTS = {
    "used": BLUE,
    "used, replaceable": SKY,
    "decodable, not used": VERMILION,
    "used, not decodable": GREEN,
    "neither": GREY,
    "unclear": ORANGE,
}
"""What is said of a (variable, layer, position), and the colours."""

_ALPHA = 0.5  # of colours, so that the numbers on them can be read
_SHOWN = ("decoded", "follows", "follows_random", "stays_erased", "stays_control")
_SOURCES = ("mean_swap", "erasure", "probes", "lens", "decoding")


def table(results: Mapping[str, xr.Dataset], group: str | None = None) -> xr.Dataset:
    """Put results of one run side by side.

    Args:
      results: "mean_swap" and "erasure", and "probes" or "lens"; others are passed over. From
        probes the held-out accuracy by prefix is taken; else what the erasure's discriminant
        decodes on held-out states. The lens, if there, has a column of its own: what it reads is
        what the unembedding would, which is less than is there.
      group: of cases; by default the first test split, where most are new, or, where the last
        checkpoint answers too few of it (it memorises), the first trained one.

    Returns:
      Dimensions step, variable, layer, pos (of those that all have): `decoded`, `lens`,
      `follows` (answers that the swap sets as the world says), `follows_random` (its controls),
      `stays_swapped`, `stays_erased`, `stays_control` (the worse of the controls of erasure), `n`
      (clusters whose cases count) and `verdict`, one of `VERDICTS`, or "" where too few count;
      all shares but `lens` and `stays_control` also with `_low` and `_high`. Verdicts go by the
      ends of these 95% intervals, so that "unclear" is also where too little is known.
      With "decoding" among the results, `by_construction`: training teaches the variable there.

    Raises:
      InputError: the swap or the erasure is missing.
    """
    missing = [name for name in ("mean_swap", "erasure") if name not in results]
    if missing:
        raise InputError(
            f"the table of what is used needs the results of mean_swap and erasure; {missing[0]} "
            "is missing: run `analyze` for it"
        )
    group = group or _answered_group(results["mean_swap"])
    swap, erasure = (results[name].sel(group=group) for name in ("mean_swap", "erasure"))
    columns = {
        "stays_control": erasure["unchanged"].sel(edit=list(ERASED_OTHERWISE)).min("edit"),
        "n": swap["counterfactual_n"].sel(edit=SWAPPED[0]),
    }
    for end in ("", "_low", "_high"):
        columns |= {
            f"decoded{end}": _decoded(results, group, end),
            f"follows{end}": swap[f"counterfactual{end}"].sel(edit=SWAPPED[0]),
            f"follows_random{end}": swap[f"counterfactual{end}"]
            .sel(edit=list(SWAPPED_OTHERWISE))
            .max("edit"),
            f"stays_swapped{end}": swap[f"unchanged{end}"].sel(edit=SWAPPED[0]),
            f"stays_erased{end}": erasure[f"unchanged{end}"].sel(edit=ERASED[0]),
        }
    if "lens" in results:
        columns["lens"] = _lens(results["lens"], group)
    aligned = xr.align(*(column.drop_vars("edit", errors="ignore") for column in columns.values()))
    made = xr.Dataset(dict(zip(columns, aligned, strict=True)))
    dims = ("step", "variable", "layer", "pos")
    made = made.transpose(*dims).assign_attrs(group=group)
    made = made.assign(verdict=(dims, _verdicts(made)))
    if "decoding" in results:
        made = made.assign(by_construction=_taught(results["decoding"], made))
    return made


def save_table(run: Run) -> None:
    """Write the table as `analysis/used.nc`, if the run has the results that it is made of.

    Results of other versions of the swap or the erasure have other edits, so they are left out. So
    are results that have another kind of intervals than the swap.
    """
    names = result_names(run.files.analysis)
    results = with_same_intervals({name: run.result(name) for name in names if name in _SOURCES})
    needed = {"mean_swap": MeanSwap.version, "erasure": Erasure.version}
    if all(
        name in results and results[name].attrs.get("version", version) == version
        for name, version in needed.items()
    ):
        run.save_result("used", table(results))


def with_same_intervals(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The results that have the same kind of intervals (`statistics.INTERVALS`) as the swap."""

    def kind(name: str) -> int:
        return int(results[name].attrs.get("intervals", 1))  # 1 did not name itself

    if "mean_swap" not in results:
        return dict(results)
    return {name: result for name, result in results.items() if kind(name) == kind("mean_swap")}


def rows(made: xr.Dataset) -> list[dict[str, Any]]:
    """A row for every checkpoint and place of which something is said; numbers are rounded."""
    frame = made.to_dataframe().reset_index()
    frame = frame[frame["verdict"] != ""].round(3)
    found: list[dict[str, Any]] = frame.to_dict("records")
    return found


def disagreements(made: xr.Dataset) -> list[str]:
    """A sentence for each place of the last checkpoint where decoding and use disagree."""
    last = made.isel(step=[-1])
    sentences = []
    for row in rows(last):
        where = f"{row['variable']} at S[{row['layer']}, {row['pos']}]"
        if row["verdict"] == "decodable, not used":
            sentences.append(
                f"{where} is decodable ({row['decoded']:.2f}"
                f"{', taught there' if row.get('by_construction') else ''}) and not used: "
                f"{row['stays_swapped']:.2f} of answers stay when it is swapped, "
                f"{row['stays_erased']:.2f} when it is erased."
            )
        if row["verdict"] == "used, not decodable":
            sentences.append(
                f"{where} is used and not linearly decodable from held-out states "
                f"({row['decoded']:.2f}): {row['follows']:.2f} of answers follow its swap."
            )
    return sentences


def figures(results: Mapping[str, xr.Dataset], group: str | None = None) -> list[Figure]:
    """A map of verdicts by (layer, position), for each variable and some checkpoints."""
    whole = table(results, group)
    made = _where_something_is_said(whole)
    if not made["step"].size:
        return []
    steps, variables = some_steps(made), list(made["variable"].values)
    drawing, axes = new_drawing(
        1.2 + 0.9 * made.sizes["pos"] * len(variables),
        1.1 + (0.25 + 0.6 * made.sizes["layer"]) * len(steps),
        nrows=len(steps),
        ncols=len(variables),
        sharex=True,
        sharey=True,
    )
    places = [(step, variable) for step in steps for variable in variables]
    for (step, variable), ax in zip(places, axes, strict=True):
        _draw(ax, made.sel(step=step, variable=variable))
        if variable == variables[0]:
            ax.set_ylabel(f"step {step:,}\nlayer")
        if step == steps[0]:
            ax.set_title(str(variable), fontsize=10)
        if step == steps[-1]:
            ax.set_xlabel("position")
    handles = [Patch(color=color, alpha=_ALPHA, label=name) for name, color in VERDICTS.items()]
    drawing.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    said = " ".join(disagreements(whole)) or "At the last checkpoint the two nowhere disagree."
    caption = (
        f"In each cell, on cases of {made.attrs['group']} that are right when clean: how well a "
        "linear reader decodes the variable from held-out states; the share of answers that become "
        "what the world says when its class mean is swapped (in brackets the null, the "
        "highest of three other codes); the share of answers that stay when it is erased (null: "
        "the worse of two others as large). Cells are empty (and layers, positions, checkpoints "
        "left out where all are) where a class has one state only, which no held-out reader can "
        "know, or too few cases count. Red is what a probe finds and the model ignores; "
        "'replaceable' what answers follow when it is swapped, and do without when it is erased; "
        "'unclear' where a swap does damage, some answers follow, or decoding is partial. " + said
    )
    return [Figure("used", "Decodable or used?", caption, drawing)]


def _answered_group(swap: xr.Dataset) -> str:
    """The first test split, if enough of it is answered in the end to say anything."""
    trained, tested = some_groups(swap)[0], some_groups(swap)[-1]
    count = swap["counterfactual_n"].sel(group=tested).isel(step=-1)
    return tested if (count >= MIN_CLUSTERS).any() else trained


def _where_something_is_said(made: xr.Dataset) -> xr.Dataset:
    """Without checkpoints, layers and positions at which nothing is said of any variable."""
    said = made["verdict"] != ""
    kept = {dim: said.any([d for d in said.dims if d != dim]) for dim in ("step", "layer", "pos")}
    return made.isel({dim: np.flatnonzero(there) for dim, there in kept.items()})


def _draw(ax: Axes, made: xr.Dataset) -> None:
    """One variable at one checkpoint."""
    made = made.transpose("layer", "pos")
    ax.grid(False)
    for (layer, pos), verdict in np.ndenumerate(made["verdict"].values):
        if not verdict:
            continue
        corner = (pos - 0.5, layer - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, color=VERDICTS[verdict], alpha=_ALPHA, linewidth=0))
        at = {name: float(made[name].values[layer, pos]) for name in _SHOWN}
        text = (
            f"{at['decoded']:.2f}\n{at['follows']:.2f} ({at['follows_random']:.2f})\n"
            f"{at['stays_erased']:.2f} ({at['stays_control']:.2f})"
        )
        ax.text(pos, layer, text, ha="center", va="center", fontsize=7)
    ax.set_xlim(-0.5, made.sizes["pos"] - 0.5)
    ax.set_ylim(-0.5, made.sizes["layer"] - 0.5)
    label_places(ax, made["decoded"])


def _decoded(results: Mapping[str, xr.Dataset], group: str, end: str) -> xr.DataArray:
    if "probes" in results:
        probes = results["probes"].isel(group=0, drop=True)  # facts that training chains use
        accuracy = probes[f"accuracy{end}"].sel(held_out="prefix", truth="true")
        # An embedding is one state a token, and so are states at e1: held out, nobody has seen it.
        several = probes["n_states"] > probes["n_classes"].isel(step=0, drop=True)
        return accuracy.where((accuracy["layer"] > 0) & several)
    return results["erasure"][f"decoded{end}"].sel(group=group)


def _taught(decoding: xr.Dataset, made: xr.Dataset) -> xr.DataArray:
    """Where the prompt that ends at r1 has the variable as its target: bool, as the table."""
    taught = decoding["by_construction"].isel(step=-1, group=0, drop=True)
    taught = taught.reindex(variable=made["variable"], layer=made["layer"], fill_value=False)
    return taught & (made["pos"] == "r1")


def _lens(lens: xr.Dataset, group: str) -> xr.DataArray:
    at = {"norm": NORMS[0], "vocabulary": VOCABULARIES[0], "truth": "true", "group": group}
    return lens["top1"].sel(at, drop=True)


def _verdicts(made: xr.Dataset) -> np.ndarray:
    """Words, [step, variable, layer, pos]: a swap says what is used, an erasure what is needed.

    All by ends of intervals: what is so, is so by the lower end, and what is not, by the upper end.
    """

    def is_so(name: str) -> xr.DataArray:
        return made[f"{name}_low"] >= MIN_LOWER_BOUND

    def is_not(name: str) -> xr.DataArray:
        return made[f"{name}_high"] <= MAX_UPPER_BOUND

    used, survives = is_so("follows") & is_not("follows_random"), is_so("stays_erased")
    unused = is_not("follows") & is_so("stays_swapped") & survives
    read, unread = is_so("decoded"), is_not("decoded")
    words = np.select(
        [used & read & survives, used & read, unused & read, used & unread, unused & unread],
        ["used, replaceable", "used", "decodable, not used", "used, not decodable", "neither"],
        "unclear",
    )
    return np.where((made["n"] >= MIN_CLUSTERS) & made["decoded"].notnull(), words, "")
