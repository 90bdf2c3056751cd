"""Figure that shows whether answers follow changes of bridges' features, and side effects."""

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
    "answers that stay\nwithout it": ("ablate", "unchanged"),
    "answers that stay\nwithout another": ("ablate another", "unchanged"),
}


def uses(name: str, result: xr.Dataset) -> Figure | None:
    """Plot outcomes over training, by change and by the rule that chooses features.

    The result is None if `use` was not measured, or was measured only after the last block.
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
        f"Dictionaries {name!r} of sparsity {middle_sparsity(result):g}, where a bridge is first "
        f"known; {cases} prompts, {pairs} pairs of a prefix and another bridge, with all "
        "relations of that bridge; shading: 95% interval, clustered by bridge. Top: the "
        "bridge's feature is set to 0 and the other bridge's to its usual size; the share of "
        "answers that become the other bridge's. Middle: the bridge's feature is set to 0; a "
        "low share means that the model needs it. Bottom: the other bridge's feature, which "
        "should be inactive, is set to 0; a share below 1 is a side effect. Features are chosen "
        "on other facts: the best match with the bridge (truth), the most active, or the "
        "largest effect on the right logit (attribution). Grey: features of shuffled bridges. "
        "Black: the same with class means, which need no dictionary."
    )
    title = "Do answers follow the features of bridges?"
    return Figure(f"dictionaries_{name}_use", title, caption, drawing)
