"""Figure that compares dictionaries with baselines, as a table of numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float

from implicit_reasoning.analysis.drawing import heat_maps
from implicit_reasoning.dictionaries.results import Row, distinct, make_rows, middle_sparsity
from implicit_reasoning.figures import Figure

_QUANTITIES = {
    "explained": "explained variance",
    "recovered": "loss recovered",
    "f1": "F1",
    "average_precision": "average precision",
    "null": "F1, null",
    "swap": "swap",
}
"""Fields of `Row`, and their labels in the figure."""


def baselines(name: str, result: xr.Dataset) -> Figure | None:
    """Draw the numbers of dictionaries of the last checkpoint and of baselines, at middle sparsity.

    The result is None if there are no baselines.
    """
    table = comparison(result)
    if table.sizes["what"] < 2:
        return None
    maps = {site: table.sel(site=site, drop=True) for site in table["site"].values.tolist()}
    drawing = heat_maps(
        maps, "share; colours stop at 0 and 1", rows="what", columns="quantity", width=0.95, ncols=2
    )
    for ax in drawing.axes:
        ax.tick_params(axis="x", labelrotation=30)
    caption = (
        f"Dictionaries {name!r} of sparsity {middle_sparsity(result):g} at the last checkpoint, "
        "beside baselines of the same states, measured by the same code. k-means: as many "
        "centroids as features, one active. Linear: principal directions of either sign, as "
        "many active as in the dictionary. Neurons: the site's coordinates, or the MLP's "
        "neurons. Class means: centroids are the true means of the bridges, an upper bound for "
        "representing bridges. Frozen decoder: its rows stay random. Untrained model: "
        "dictionaries of step 0. Loss recovered: on trained chains, the share of the loss added "
        "by mean ablation that is recovered. F1 and average precision: of bridges, where they "
        "are first known; null: highest F1 with bridges shuffled; swap: answers that follow a "
        "swap of bridges' features chosen by truth. White: does not apply."
    )
    return Figure(f"dictionaries_{name}_baselines", "Dictionaries and baselines", caption, drawing)


def comparison(result: xr.Dataset) -> xr.DataArray:
    """Make the table [site, what, quantity] of means over seeds, at the middle sparsity."""
    rows = [row for row in make_rows(result) if row.sparsity == middle_sparsity(result)]
    sites, kinds = distinct([row.site for row in rows]), distinct([row.what for row in rows])
    values = [[_mean(rows, site, what) for what in reversed(kinds)] for site in sites]
    coords = {"site": sites, "what": kinds[::-1], "quantity": list(_QUANTITIES.values())}
    table = xr.DataArray(np.asarray(values), coords, ("site", "what", "quantity"))
    return table.dropna("quantity", how="all")  # quantities that were not measured for this set


def _mean(rows: list[Row], site: str, what: str) -> Float[np.ndarray, " quantity"]:
    some = [row for row in rows if (row.site, row.what) == (site, what)]
    each = [[getattr(row, name) for name in _QUANTITIES] for row in some]
    found: np.ndarray = np.mean(each, axis=0) if each else np.full(len(_QUANTITIES), np.nan)
    return found
