"""Compare the variables that can be decoded from states with the variables that the model uses.

For each variable and each state (layer, position), a table combines three results:

- `decoded` is the accuracy of a linear probe for the variable.
- `follows` is the share of answers that become the right answer for the new value after a swap. A
  swap replaces the class mean of the current value by the class mean of the new value.
- `stays_erased` is the share of answers that do not change after an erasure. An erasure removes all
  linear information about the variable from the state.

If `follows` is high, the model uses the variable in this state. If `stays_erased` is also high, the
model can compute answers without the variable in this state.
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
"""Possible verdicts about a variable at a (layer, position), with their colors."""

_ALPHA = 0.5  # opacity of the colors, so that the numbers on top are legible
_SHOWN = ("decoded", "follows", "follows_random", "stays_erased", "stays_control")
_SOURCES = ("mean_swap", "erasure", "probes", "lens", "decoding")


def table(results: Mapping[str, xr.Dataset], group: str | None = None) -> xr.Dataset:
    """Combine the results of several instruments for one run into a table.

    The instrument `mean_swap` replaces the value of a variable in a state by a new value (swap).
    The instrument `erasure` removes all linear information about a variable from a state.

    Args:
      results: results by instrument name. "mean_swap" and "erasure" are required. "probes", "lens"
        and "decoding" are optional. The decoding accuracy is the accuracy of "probes" with held-out
        prefixes. Without "probes", the decoding accuracy is the accuracy of the linear discriminant
        of "erasure" on held-out states.
      group: name of the split of the queries. The default is the first test split. If the last
        checkpoint answers too few queries of this split correctly, the default is the first
        training split.

    Returns:
      A dataset with the dimensions step, variable, layer and pos, and with the labels that all
      results have. The data variables are:

      - `decoded`: accuracy of a linear probe for the variable on held-out states.
      - `lens`: share of states in which the logit lens ranks the token of the variable first;
        missing if `results` does not contain "lens".
      - `follows`: share of answers that become the right answer for the new value after the swap.
      - `follows_random`: share of answers that become the right answer for the new value in a
        control of the swap; maximum over the controls.
      - `stays_swapped`: share of answers that stay the same after the swap.
      - `stays_erased`: share of answers that stay the same after the erasure.
      - `stays_control`: share of answers that stay the same in a control of the erasure; minimum
        over the controls.
      - `n`: number of clusters of queries for which the swap is measured.
      - `verdict`: one of `VERDICTS`; empty if `n` is too small or `decoded` is unknown.
      - `by_construction`: whether the variable is the training target at this state, so that
        decoding is no evidence of composition; missing if `results` does not contain "decoding".

      The suffixes `_low` and `_high` mark the ends of 95% intervals. All shares except `lens` and
      `stays_control` have intervals. Verdicts depend on the ends, so a wide interval causes the
      verdict "unclear".

    Raises:
      InputError: the result of "mean_swap" or of "erasure" is missing.
    """
    missing = [name for name in ("mean_swap", "erasure") if name not in results]
    if missing:
        raise InputError(
            "the table of used variables needs results of mean_swap and erasure, but the result of "
            f"{missing[0]} is missing; measure the run with {missing[0]}"
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
    """Save the table in `analysis/used.nc`, if the run has results of `mean_swap` and `erasure`.

    Both results must have the current version of the instrument. A result of another instrument is
    ignored if its confidence intervals were computed by a different method than the intervals of
    `mean_swap`.
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
    """Return the results whose intervals have the same version as the intervals of "mean_swap".

    The attribute `intervals` of a result is the version of the method that computes confidence
    intervals. If `results` does not contain "mean_swap", all results are returned.
    """

    def kind(name: str) -> int:
        return int(results[name].attrs.get("intervals", 1))  # results of version 1 do not name it

    if "mean_swap" not in results:
        return dict(results)
    return {name: result for name, result in results.items() if kind(name) == kind("mean_swap")}


def rows(made: xr.Dataset) -> list[dict[str, Any]]:
    """Return the entries of the table that have a verdict, as a list of dicts.

    Numbers are rounded to three decimals.

    Args:
      made: the table, from `table`.
    """
    frame = made.to_dataframe().reset_index()
    frame = frame[frame["verdict"] != ""].round(3)
    found: list[dict[str, Any]] = frame.to_dict("records")
    return found


def disagreements(made: xr.Dataset) -> list[str]:
    """Describe the disagreements between decoding and use at the last checkpoint.

    Args:
      made: the table, from `table`.

    Returns:
      One sentence for each variable and state with a disagreement.
    """
    last = made.isel(step=[-1])
    sentences = []
    for row in rows(last):
        where = f"{row['variable']} at S[{row['layer']}, {row['pos']}]"
        if row["verdict"] == "decodable, not used":
            sentences.append(
                f"{where} is decodable "
                f"({row['decoded']:.2f}{', taught there' if row.get('by_construction') else ''}) "
                f"but not used: {row['stays_swapped']:.2f} of answers stay the same when it is "
                f"swapped, and {row['stays_erased']:.2f} stay the same when it is erased."
            )
        if row["verdict"] == "used, not decodable":
            sentences.append(
                f"{where} is used but not linearly decodable from held-out states "
                f"({row['decoded']:.2f}): {row['follows']:.2f} of answers follow when it is "
                "swapped."
            )
    return sentences


def figures(results: Mapping[str, xr.Dataset], group: str | None = None) -> list[Figure]:
    """Draw maps of the verdicts by layer and position, for each variable at some steps."""
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
    said = " ".join(disagreements(whole)) or (
        "At the last checkpoint, decoding and use agree everywhere."
    )
    caption = (
        f"The cases are queries of {made.attrs['group']} that are answered correctly without an "
        "edit. Each cell has three numbers. The first is the accuracy with which a linear "
        "reader decodes the variable from held-out states. The second is the share of answers "
        "that become what the world gives when the class mean of the variable is swapped; in "
        "brackets is the null, the highest of three controls. The third is the share of answers "
        "that stay the same when the variable is erased; in brackets is the null, the lower of "
        "two controls. A cell is empty if each class has only one state, so that no reader can "
        "be tested on held-out states, or if too few cases count. Layers, positions and "
        "checkpoints with only empty cells are left out. The color is the verdict. 'Decodable, "
        "not used' means that a reader finds the variable, but the model does not use it. "
        "'Used, replaceable' means that answers change when the variable is swapped, but stay "
        "when it is erased. 'Unclear' means that a swap does damage, that only some answers "
        f"change, or that decoding is partial. {said}"
    )
    return [Figure("used", "Which variables are decodable, and which are used?", caption, drawing)]


def _answered_group(swap: xr.Dataset) -> str:
    """Return the default group of queries: the first test split, or the first training split.

    The training split is the default only if every entry of the test split at the last checkpoint
    has fewer than `MIN_CLUSTERS` clusters that count.
    """
    trained, tested = some_groups(swap)[0], some_groups(swap)[-1]
    count = swap["counterfactual_n"].sel(group=tested).isel(step=-1)
    return tested if (count >= MIN_CLUSTERS).any() else trained


def _where_something_is_said(made: xr.Dataset) -> xr.Dataset:
    """Drop the checkpoints, layers and positions at which no variable has a verdict."""
    said = made["verdict"] != ""
    kept = {dim: said.any([d for d in said.dims if d != dim]) for dim in ("step", "layer", "pos")}
    return made.isel({dim: np.flatnonzero(there) for dim, there in kept.items()})


def _draw(ax: Axes, made: xr.Dataset) -> None:
    """Draw the map of one variable at one checkpoint."""
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
        probes = results["probes"].isel(group=0, drop=True)  # the leading group
        accuracy = probes[f"accuracy{end}"].sel(held_out="prefix", truth="true")
        # At layer 0 and at e1, each class has one state. A probe cannot predict a class if the only
        # state of the class is held out.
        several = probes["n_states"] > probes["n_classes"].isel(step=0, drop=True)
        return accuracy.where((accuracy["layer"] > 0) & several)
    return results["erasure"][f"decoded{end}"].sel(group=group)


def _taught(decoding: xr.Dataset, made: xr.Dataset) -> xr.DataArray:
    """Return whether each variable is a training target at each state of the table.

    The result is true at position r1 only.
    """
    taught = decoding["by_construction"].isel(step=-1, group=0, drop=True)
    taught = taught.reindex(variable=made["variable"], layer=made["layer"], fill_value=False)
    return taught & (made["pos"] == "r1")


def _lens(lens: xr.Dataset, group: str) -> xr.DataArray:
    at = {"norm": NORMS[0], "vocabulary": VOCABULARIES[0], "truth": "true", "group": group}
    return lens["top1"].sel(at, drop=True)


def _verdicts(made: xr.Dataset) -> np.ndarray:
    """Return verdicts [step, variable, layer, pos].

    The swap shows whether the model uses the variable, and the erasure whether the model needs it.
    A share counts as high if the lower end of its interval is at least `MIN_LOWER_BOUND`, and as
    low if the upper end is at most `MAX_UPPER_BOUND`.
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
