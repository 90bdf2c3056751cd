"""Draw which values features represent, and how features of bridges change over training."""

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
    """Draw heat maps of the mean F1 of the best features by concept and training step.

    Each cell shows the mean F1 and, in brackets, its null control. The function returns None if
    there are no concepts.
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
        f"The figure shows how well single features of the dictionaries {name!r} of sparsity "
        f"{middle_sparsity(result):g} represent the values of a variable at a position, by "
        "checkpoint (columns). For each value, the feature whose activity matches the value "
        "best is chosen on half of the first facts. A cell is the F1 of this feature on the "
        f"other half, as the mean over values ({listed}). The number in brackets is the null: "
        f"the highest mean of {result.sizes['draw']} permutations of the values among the "
        "states. The embedding writes a token's own variable at its own position, so that match "
        "is expected."
    )
    title = "Do features represent entities and relations?"
    return Figure(f"dictionaries_{name}_matches", title, caption, drawing)


def bridges(name: str, result: xr.Dataset) -> Figure | None:
    """Plot the splitting, absorption and activity of the features of bridges over training.

    A bridge is the intermediate entity of a two-hop chain. The function returns None if bridges
    were not measured.
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
    for row, label in zip(
        rows, ("mean F1", "share of states", "share of states\nwith active feature"), strict=False
    ):
        row[0].set_ylabel(label)
        row[0].set_ylim(-0.02, 1.02)
    legends(drawing, rows)
    caption = (
        "The figure is about the features of bridges (e2) at the position where a bridge is "
        f"first known, for the dictionaries {name!r} of sparsity {middle_sparsity(result):g}. "
        "Lines are means over seeds, and the shading is the range over seeds. The top row shows "
        "the F1 of the best feature of each bridge, and of the best two or three features "
        "together. If several features have a higher F1, the bridge is split among features. "
        "The second row shows the share of states in which the bridge's feature is not active "
        "(silent), on facts that the feature was not chosen on. It also shows the share of "
        "absorbed states: in addition, a feature that is active on less than half of the "
        "bridge's states writes at least .4 of what the dictionary writes along the bridge's "
        "direction. The null uses the direction of a different bridge."
    )
    if with_roles:
        id_, ood = (int(n) for n in result["role_n"].values)
        caption += (
            " The bottom row shows how often the bridge's own feature is active, or as the null "
            "the feature of a different bridge. 'In distribution' are facts that training "
            f"chains use and that the feature was not chosen on ({id_} states). 'Out of "
            f"distribution' are facts that no training chain uses ({ood} states). The shading "
            "in this row is the 95% interval, clustered by bridge."
        )
    title = "Are the features of bridges split, absorbed, or active out of distribution?"
    return Figure(f"dictionaries_{name}_bridges", title, caption, drawing)


def _split(ax: Axes, part: xr.Dataset) -> None:
    styles = {1: (BLUE, "o"), 2: (GREEN, "s"), 3: (ORANGE, "D")}
    for count, (color, marker) in styles.items():
        label = "one feature" if count == 1 else f"any of {count}"
        values = part["f1_joined"].sel(joined=count).mean("value")
        over_steps(ax, values, label, color=color, marker=marker)
    null = part["f1_null"].max("draw")
    over_steps(ax, null, "null (shuffled bridges)", color=GREY, linestyle=":", marker="v")


def _absorbed(ax: Axes, part: xr.Dataset) -> None:
    styles: dict[str, dict[str, Any]] = {
        "silent": {"color": BLACK, "marker": "o"},
        "absorbed": {"color": VERMILION, "marker": "s"},
        "absorbed_null": {"color": GREY, "linestyle": ":", "marker": "v"},
    }
    for quantity, style in styles.items():
        label = "absorbed, null" if quantity.endswith("null") else quantity
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
