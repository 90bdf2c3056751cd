"""Plot whether answers change as predicted when features of bridges are changed."""

from __future__ import annotations

from typing import Any

import xarray as xr

from implicit_reasoning.dictionaries.figures.drawing import legends, over_steps, panels
from implicit_reasoning.dictionaries.results import at_middle_sparsity, middle_sparsity
from implicit_reasoning.figures import BLACK, BLUE, GREEN, GREY, ORANGE, Figure

_RULES: dict[str, dict[str, Any]] = {
    "class means": {"color": BLACK, "linestyle": "--", "marker": "x"},
    "truth": {"color": BLUE, "marker": "o"},
    "activation": {"color": ORANGE, "marker": "s"},
    "attribution": {"color": GREEN, "marker": "D"},
    "null": {"color": GREY, "linestyle": ":", "marker": "v"},
}
_ROWS = {
    "answers that follow\na swap": ("swap", "moved"),
    "unchanged answers\nwithout the feature": ("ablate", "unchanged"),
    "unchanged answers\nwithout the feature\nof the new bridge": ("ablate another", "unchanged"),
}


def uses(name: str, result: xr.Dataset) -> Figure | None:
    """Plot how the model's answers change after changes of features.

    The x axis is the training step. The figure compares kinds of changes and rules for choosing
    features. The function returns None if `use` was not measured, or if all measured sites are
    after the last block.
    """
    if "rule" not in result.dims:
        return None
    # After the last block no attention moves information between positions, so `use` is nan.
    there = result["use"].notnull().all(("rule", "change", "outcome"))
    result = result.sel(member=there.values)
    if not result.sizes["member"]:
        return None
    drawing, rows, sites = panels(result, nrows=len(_ROWS), height=2.2)
    for row, (label, (change, outcome)) in zip(rows, _ROWS.items(), strict=True):
        row[0].set_ylabel(label, fontsize=9)
        row[0].set_ylim(-0.02, 1.02)
        for ax, site in zip(row, sites, strict=True):
            part = at_middle_sparsity(result, site).sel(change=change, outcome=outcome)
            for rule, style in _RULES.items():
                ends = {end: part[f"use_{end}"].sel(rule=rule) for end in ("low", "high")}
                over_steps(ax, part["use"].sel(rule=rule), rule, ends, **style)
    legends(drawing, rows[:1])
    pairs, cases = (int(result[key]) for key in ("use_pairs", "use_cases"))
    caption = (
        "The figure shows whether answers follow the features of bridges, for the dictionaries "
        f"{name!r} of sparsity {middle_sparsity(result):g}. Features are changed at the "
        f"position where a bridge is first known, in {cases} prompts from {pairs} pairs of a "
        "prefix and a new bridge, with all relations of the new bridge. In the top row, the "
        "feature of the bridge is set to 0 and that of the new bridge to its usual size. The "
        "row shows the share of answers that become the answer for the new bridge. In the "
        "middle row, the feature of the bridge is set to 0. A low share of unchanged answers "
        "means that the model needs the feature. In the bottom row, the feature of the new "
        "bridge, which should be inactive, is set to 0. A share below 1 is a side effect. The "
        "features are chosen on other facts by one of three rules: the best match with the "
        "bridge (truth), the highest activation, or the largest effect on the logit of the "
        "right answer (attribution). The gray line is the null: features that are chosen for "
        "shuffled bridges. The black line uses class means in place of features, which needs no "
        "dictionary. The shading is the 95% interval, clustered by bridge."
    )
    title = "Do answers follow the features of bridges?"
    return Figure(f"dictionaries_{name}_use", title, caption, drawing)
