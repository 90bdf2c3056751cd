"""Dictionaries beside what has to be beaten, in one table of numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.drawing import heat_maps
from implicit_reasoning.dictionaries.figures.parts import bridge, distinct, middle, trained
from implicit_reasoning.dictionaries.store import UNTRAINED
from implicit_reasoning.figures import Figure


def beaten(name: str, result: xr.Dataset) -> Figure | None:
    """Numbers of the last checkpoint, dictionaries of the middle sparsity, and all baselines."""
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
        f"Dictionaries {name!r} of sparsity {middle(result):g} at the last checkpoint, beside "
        "baselines of the same states, measured by the same code. k-means: as many centroids as "
        "features, one active. Linear: principal directions of either sign, as many active as in "
        "the dictionary. Neurons: the site's coordinates, or the MLP's neurons. Class means: "
        "centroids are the bridges' true means, an upper bound for what stands for a bridge. "
        "Frozen decoder: its rows stay random. Untrained model: dictionaries of step 0. Loss "
        "recovered is of trained chains, and of the loss that the site's mean costs; F1 and "
        "average precision are of bridges where they are first known; null: highest F1 of bridges "
        "dealt out anew; swap: answers that follow a swap of bridges' "
        "features chosen by truth. White: does not apply."
    )
    return Figure(f"dictionaries_{name}_baselines", "What has to be beaten", caption, drawing)


def comparison(result: xr.Dataset) -> xr.DataArray:
    """Numbers by site, what it is, and quantity: means over seeds, at the last checkpoint."""
    sites, kinds = distinct(result["site"]), distinct(result["what"])
    steps = distinct(trained(result)["step"])
    if len(steps) > 1 and min(steps) == 0 and UNTRAINED not in kinds:
        kinds.append(UNTRAINED)
    found = [[_row(result, site, what) for what in reversed(kinds)] for site in sites]
    quantities = list(found[0][0])
    values = [[[row[q] for q in quantities] for row in rows] for rows in found]
    coords = {"site": sites, "what": kinds[::-1], "quantity": quantities}
    return xr.DataArray(np.asarray(values, float), coords, ("site", "what", "quantity"))


def _row(result: xr.Dataset, site: str, what: str) -> dict[str, float]:
    step = trained(result)["step"].max()
    there = (
        (result["site"] == site) & (result["what"] == what) & (result["sparsity"] == middle(result))
    )
    if what == UNTRAINED and not there.any():
        there = (result["site"] == site) & (result["step"] == 0) & (result["what"] == "trained")
        there &= result["sparsity"] == middle(result)
    elif what == "trained":
        there &= result["step"] == step
    part, concept = result.sel(member=there.values).mean("member"), bridge(result)
    row = {"explained variance": part["explained_variance"]}
    if "ce_loss_score_mean" in part:
        row["loss recovered"] = part["ce_loss_score_mean"].isel(split=0)
    if concept is not None:
        of = part.sel(concept=concept)
        row["F1"], row["average precision"] = of["f1"].mean(), of["average_precision"].mean()
        row["F1, null"] = of["f1_null"].max()
    if "rule" in result.dims:
        row["swap"] = part["use"].sel(rule="truth", change="swap", outcome="moved")
    return {name: float(value) for name, value in row.items()}
