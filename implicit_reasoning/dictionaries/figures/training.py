"""Draw births, persistence and superposition of features over training."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from implicit_reasoning.dictionaries.evolution import births
from implicit_reasoning.dictionaries.figures.drawing import legends, over_steps, panels
from implicit_reasoning.dictionaries.measures.absorption import MIN_F1
from implicit_reasoning.dictionaries.results import (
    at_middle_sparsity,
    distinct,
    middle_sparsity,
    trained_members,
)
from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WINE,
    Figure,
)

_CONCEPTS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, WINE, GREY)
_MARKERS = "osD^v<>pX"


def training(name: str, result: xr.Dataset) -> Figure | None:
    """Plot the share of values that features represent, and the persistence of features.

    The function returns None if there is only one checkpoint, or if there are no concepts.
    """
    own = trained_members(result)
    if len(distinct(own["step"])) < 2 or "concept" not in result.dims:
        return None
    drawing, rows, sites = panels(own, nrows=2)
    standing = births(own)["standing"].sel(sparsity=middle_sparsity(result)).mean("value")
    for column, site in enumerate(sites):
        for number, concept in enumerate(own["concept"].values.tolist()):
            values = standing.sel(site=site, concept=concept)
            rows[0][column].plot(
                values["step"],
                values,
                label=concept,
                color=_CONCEPTS[number % 9],
                marker=_MARKERS[number % 9],
                linewidth=1.4,
                markersize=4,
            )
        _lasting(rows[1][column], at_middle_sparsity(result, site))
    rows[0][0].set_ylabel("share of values\nwith a feature")
    rows[1][0].set_ylabel("cosine of the\nnearest feature")
    for row in rows:
        row[0].set_ylim(-0.02, 1.02)
    legends(drawing, rows)
    caption = (
        f"The figure is about the dictionaries {name!r} of sparsity "
        f"{middle_sparsity(result):g}. The top row shows, for each variable at a position, the "
        "share of its values for which a feature stands: the feature has an F1 of at least "
        f"{MIN_F1:g} on facts that it was not chosen on, as the median over seeds. The null is "
        "the mean F1 after the values are permuted among the states. It is at most "
        f"{float(own['f1_null'].max()):.2f} for any variable and checkpoint. The bottom row shows "
        "the highest cosine of a feature with any feature of the dictionary of the checkpoint "
        "before, or of other seeds if there are several, as the mean over active features. The "
        "gray line is the null: the features of the checkpoint before are rotated at random. "
        "Lines are means over seeds, and the shading is the range over seeds."
    )
    if str(result.attrs.get("start", "cold")) != "cold":
        caption += (
            " The dictionaries were initialized with those of a neighboring checkpoint, which "
            "makes features look more persistent and older than they are."
        )
    title = "When features appear, and whether they persist"
    return Figure(f"dictionaries_{name}_training", title, caption, drawing)


def _lasting(ax: Axes, part: xr.Dataset) -> None:
    later = part.sel(member=part["kept"].notnull().values)
    if later.sizes["member"]:
        over_steps(ax, later["kept"], "with the checkpoint before", color=BLUE, marker="o")
        over_steps(ax, later["kept_null"], "null (rotated)", color=GREY, linestyle=":", marker="v")
    if part["agreement"].notnull().any():
        over_steps(ax, part["agreement"], "with other seeds", color=VERMILION, marker="s")


def superposition(name: str, result: xr.Dataset) -> Figure | None:
    """Plot the superposition of features over training, if it was measured.

    The figure shows the number and the overlap of directions, and the effective dimension of the
    states.
    """
    if "feature_overlap" not in result:
        return None
    own = trained_members(result)
    drawing, rows, sites = panels(own, nrows=2)
    kinds = {"feature": (BLUE, "o", "features")}
    if "bridge_overlap" in own:
        kinds["bridge"] = (VERMILION, "s", "means of bridges")
    for site, top, below in zip(sites, *rows, strict=True):
        part = at_middle_sparsity(result, site)
        for kind, (color, marker, label) in kinds.items():
            style: dict[str, Any] = {"color": color, "marker": marker}
            over_steps(top, part[f"{kind}_overlap"], label, **style)
            null = part[f"{kind}_overlap_null"]
            over_steps(top, null, f"{label}, null", **style, linestyle=":")
            over_steps(below, part[f"{kind}_directions"], label, **style)
        states = part["effective_dims"]
        over_steps(below, states, "effective dimension\nof the states", color=BLACK, marker="D")
        below.set_yscale("log", base=2)
        below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    rows[0][0].set_ylabel("|cosine| with the\nnearest direction")
    rows[0][0].set_ylim(-0.02, 1.02)
    rows[1][0].set_ylabel("number")
    legends(drawing, rows)
    caption = (
        "The figure compares the number of directions with the number of dimensions, for the "
        f"dictionaries {name!r} of sparsity {middle_sparsity(result):g}. The directions are the "
        "active features and, if they were measured, the means of the states of each bridge "
        "minus the mean of all these states. The top row shows the highest |cosine| of a "
        "direction with any other direction, as the mean over directions. The dotted lines are "
        "the null: as many random directions in the same space. The bottom row shows the number "
        "of directions (log scale) and, in black, the effective dimension of the states, which "
        "is the participation ratio of their covariance. Directions are in superposition only "
        "if they are more than these dimensions. An overlap above the null does not follow from "
        "the number of directions, but is structure. Lines are means over seeds, and the "
        "shading is the range over seeds."
    )
    title = "Are there more directions than dimensions?"
    return Figure(f"dictionaries_{name}_superposition", title, caption, drawing)
