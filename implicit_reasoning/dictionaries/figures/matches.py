"""Figures of what features stand for, and of how the features of bridges develop in training."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.analysis.drawing import heat_maps
from implicit_reasoning.dictionaries.figures.drawing import legends, over_steps, panels
from implicit_reasoning.dictionaries.results import (
    at_middle_sparsity,
    bridge_concept,
    distinct,
    middle_sparsity,
)
from implicit_reasoning.figures import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, Figure


def matches(name: str, result: xr.Dataset) -> Figure | None:
    """Draw heat maps of the mean F1 of the best features by concept and step.

    The null is in brackets. The result is None if there are no concepts.
    """
    if "concept" not in result.dims:
        return None
    maps, nulls = {}, {}
    for site in distinct(result["site"]):
        part = at_middle_sparsity(result, site)
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
        f"Dictionaries {name!r} of sparsity {middle_sparsity(result):g}: for every value of a "
        "variable (at a position), the feature whose activity matches the value best, chosen on "
        f"half of the first facts, and its F1 on the other half; mean over values ({listed}). In "
        f"brackets the null: the highest mean of {result.sizes['draw']} permutations of values "
        "among states. The embedding writes a token's own variable at its own position, so that "
        "match is expected."
    )
    title = "Do features represent entities and relations?"
    return Figure(f"dictionaries_{name}_matches", title, caption, drawing)


def bridges(name: str, result: xr.Dataset) -> Figure | None:
    """Plot splitting, absorption and activity by role of bridges' features over training.

    The result is None if bridges were not measured.
    """
    concept = bridge_concept(result)
    if concept is None or "silent" not in result:
        return None
    with_roles = "role" in result.dims
    drawing, rows, sites = panels(result, nrows=2 + with_roles)
    for column, site in enumerate(sites):
        part = at_middle_sparsity(result, site)
        _split(rows[0][column], part.sel(concept=concept))
        _absorbed(rows[1][column], part)
        if with_roles:
            _by_role(rows[2][column], part)
    for row, label in zip(rows, ("mean F1", "share of states", "features active"), strict=False):
        row[0].set_ylabel(label)
        row[0].set_ylim(-0.02, 1.02)
    legends(drawing, rows)
    caption = (
        f"Dictionaries {name!r} of sparsity {middle_sparsity(result):g}, where a bridge (e2) is "
        "first known. Top: F1 of the best feature of each bridge and of the best two or three "
        "together, which is higher where a bridge is split among features. Second: on the other "
        "half of facts, the share of states where the bridge's feature is silent, and the share "
        "where in addition a feature that is active for less than half of the bridge's facts "
        "writes most of its direction (absorbed; null: another bridge's direction)."
    )
    if with_roles:
        id_, ood = (int(n) for n in result["role_n"].values)
        caption += (
            " Bottom: how often the bridge's own feature, or another bridge's as the null, is "
            f"active on facts that training chains use but that it was not chosen on ({id_}), "
            f"and on facts that no training chain uses ({ood}); shading: 95% interval, clustered "
            "by bridge."
        )
    title = "Bridges' features: split, absorbed, the same out of distribution?"
    return Figure(f"dictionaries_{name}_bridges", title, caption, drawing)


def _split(ax: Axes, part: xr.Dataset) -> None:
    styles = {1: (BLUE, "o"), 2: (GREEN, "s"), 3: (ORANGE, "D")}
    for count, (color, marker) in styles.items():
        label = "one feature" if count == 1 else f"any of {count}"
        values = part["f1_joined"].sel(joined=count).mean("value")
        over_steps(ax, values, label, color=color, marker=marker)
    null = part["f1_null"].max("draw")
    over_steps(ax, null, "null", color=GREY, linestyle=":", marker="v")


def _absorbed(ax: Axes, part: xr.Dataset) -> None:
    styles: dict[str, dict[str, Any]] = {
        "silent": {"color": BLACK, "marker": "o"},
        "absorbed": {"color": VERMILION, "marker": "s"},
        "absorbed_null": {"color": GREY, "linestyle": ":", "marker": "v"},
    }
    for quantity, style in styles.items():
        label = "null" if quantity.endswith("null") else quantity
        over_steps(ax, part[quantity].mean("bridge"), label, **style)


def _by_role(ax: Axes, part: xr.Dataset) -> None:
    for role, color, marker in (("id", BLUE, "o"), ("ood", VERMILION, "s")):
        for whose, line in (("own", "-"), ("another", ":")):
            at = {"role": role, "whose": whose}
            label = f"{'in' if role == 'id' else 'out of'} distribution"
            label += "" if whose == "own" else ", null"
            ends = {end: part[f"role_active_{end}"].sel(at) for end in ("low", "high")}
            of_role = part["role_active"].sel(at)
            over_steps(ax, of_role, label, ends, color=color, linestyle=line, marker=marker)
