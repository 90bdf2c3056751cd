"""Draw a table that compares the scores of dictionaries and baselines."""

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
    """Draw a table of the scores of dictionaries and baselines at the median sparsity.

    The table contains the dictionaries of the last checkpoint. The function returns None if there
    are no baselines.
    """
    table = comparison(result)
    if table.sizes["what"] < 2:
        return None
    maps = {site: table.sel(site=site, drop=True) for site in table["site"].values.tolist()}
    drawing = heat_maps(
        maps, "value (colors end at 0 and 1)", rows="what", columns="quantity", width=0.95, ncols=2
    )
    for ax in drawing.axes:
        ax.tick_params(axis="x", labelrotation=30)
    caption = (
        f"The figure compares the dictionaries {name!r} of sparsity {middle_sparsity(result):g} "
        "at the last checkpoint with baselines. All rows are measured on the same states by the "
        "same code. 'k-means' has as many centroids as the dictionary has features, and one "
        "centroid is active per state. 'linear' has principal directions of either sign, and as "
        "many are active as in the dictionary. The features of 'neurons' are the coordinates of "
        "the site, or the neurons of the MLP. The centroids of 'class means' are the true means "
        "of the bridges, which is an upper bound for representing bridges. The decoder rows of "
        "'frozen decoder' stay random. 'untrained model' is a dictionary of the model at step "
        "0. The loss recovered is measured on training chains: it is the share of the loss "
        "added by mean ablation that the output removes. F1 and average precision are those of "
        "bridges at the position where a bridge is first known. 'F1, null' is the highest F1 "
        "after bridges are shuffled. 'swap' is the share of answers that follow a swap of the "
        "features of two bridges, chosen by truth. White cells do not apply."
    )
    return Figure(f"dictionaries_{name}_baselines", "Dictionaries and baselines", caption, drawing)


def comparison(result: xr.Dataset) -> xr.DataArray:
    """Compute scores at the median sparsity, averaged over seeds.

    The result has the dimensions [site, what, quantity]. The labels of `what` are "trained" and the
    names of the baselines. The labels of `quantity` are the names of the scores.
    """
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
