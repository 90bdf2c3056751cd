"""Reading what was measured of a set: its parts, and the table of dictionaries and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from implicit_reasoning.dictionaries.store import TRAINED, UNTRAINED


def distinct(values: Sequence[Any] | np.ndarray | xr.DataArray) -> list[Any]:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(np.asarray(values).tolist()))


def trained(result: xr.Dataset) -> xr.Dataset:
    """Without baselines."""
    return result.sel(member=(result["what"] == TRAINED).values)


def middle(result: xr.Dataset) -> float:
    """The middle one of the sparsities."""
    ordered = sorted(distinct(trained(result)["sparsity"]))
    return float(ordered[len(ordered) // 2])


def of_middle(result: xr.Dataset, site: str) -> xr.Dataset:
    """Trained dictionaries of a site and the middle sparsity, all steps and seeds."""
    own = trained(result)
    return own.sel(member=((own["site"] == site) & (own["sparsity"] == middle(result))).values)


def bridge(result: xr.Dataset) -> str | None:
    """The concept of the bridge where it is first known; None where there is none."""
    if "concept" not in result.coords:
        return None
    found = [name for name in result["concept"].values.tolist() if name.startswith("e2@")]
    return found[0] if found else None


class Row(NamedTuple):
    """One dictionary or baseline; nan where a number does not exist.

    Attributes:
      site: that is written.
      what: "trained", or what else it is.
      sparsity: that was asked for.
      seed: of its start.
      l0: active features, mean over held-out states.
      explained: variance.
      recovered: of the loss that answers lose when the site is set to its mean, trained chains.
      kl: to the clean model, nats, trained chains.
      dead, dense: share of features.
      f1, null: mean over bridges where they are first known; the highest of its null.
      average_precision: as `f1`.
      swap, low, high: share of answers that follow a swap of bridges; 95% interval by bridge.
    """

    site: str
    what: str
    sparsity: float
    seed: int
    l0: float
    explained: float
    recovered: float
    kl: float
    dead: float
    dense: float
    f1: float
    null: float
    average_precision: float
    swap: float
    low: float
    high: float


def make_rows(result: xr.Dataset) -> list[Row]:
    """Site by site, dictionaries first; of step 0 those of the middle sparsity, as a baseline.

    Args:
      result: what was measured of a set.
    """
    own, what, step = trained(result), result["what"].values, result["step"].values
    last, first = int(own["step"].max()), int(own["step"].min())
    chosen = {number: str(name) for number, name in enumerate(what) if name != TRAINED}
    chosen |= {int(n): TRAINED for n in np.flatnonzero((what == TRAINED) & (step == last))}
    if first == 0 < last and UNTRAINED not in what:
        there = (what == TRAINED) & (step == 0) & (result["sparsity"].values == middle(result))
        chosen |= {int(number): UNTRAINED for number in np.flatnonzero(there)}
    sites = distinct(result["site"])

    def place(number: int) -> tuple[int, bool, int]:
        return sites.index(str(result["site"].values[number])), chosen[number] != TRAINED, number

    return [
        _row(result.isel(member=number), chosen[number]) for number in sorted(chosen, key=place)
    ]


def _row(of: xr.Dataset, what: str) -> Row:
    concept = bridge(of)
    there = of if concept is None else of.sel(concept=concept)
    swaps = {"rule": "truth", "change": "swap", "outcome": "moved"}

    def number(name: str, **at: str) -> float:
        return float(of[name].sel(at)) if name in of else np.nan

    def of_bridges(name: str) -> float:
        return float(there[name].mean()) if concept is not None and name in there else np.nan

    def first_split(name: str, **at: str) -> float:
        return float(of[name].isel(split=0).sel(at)) if name in of else np.nan

    return Row(
        str(of["site"].item()),
        what,
        float(of["sparsity"]),
        int(of["seed"]),
        number("l0"),
        number("explained_variance"),
        first_split("ce_loss_score_mean"),
        first_split("kl", model="spliced"),
        number("dead"),
        number("dense"),
        of_bridges("f1"),
        float(there["f1_null"].max()) if concept is not None else np.nan,
        of_bridges("average_precision"),
        *(number(f"use{end}", **swaps) for end in ("", "_low", "_high")),
    )
