"""Read the measured results of a set of dictionaries, and select parts of the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from implicit_reasoning.dictionaries.store import (
    TRAINED,
    UNTRAINED,
    Files,
    Member,
    read_members,
)
from implicit_reasoning.runs import Run, load_arrays

TABLE = (
    "reconstruction",
    "answers",
    "concepts",
    "roles",
    "absorption",
    "superposition",
    "bridge_superposition",
    "use",
    "evolution",
)
"""The instruments whose results are in the table of a set, in the order of the table."""

_KEY = ("step", "site", "sparsity", "seed", "what")


def open_measured(run: Run, name: str) -> xr.Dataset | None:
    """Read the measured results of a set of dictionaries as one dataset.

    Data variables have the dimension `member`. The members are the dictionaries, in the order of
    the set, followed by the baselines. `member` has the coordinates `step`, `site`, `sparsity`,
    `seed` and `what`, which is "trained" or the name of the baseline. If an instrument has several
    groups of examples, the dimension of groups has the name that the instrument declares, such as
    `split`. If there are no results in the current format, the function reads the file
    `measured.nc` that earlier versions wrote. The function returns None if the set has no results.

    Args:
      run: the run whose model the dictionaries were trained on.
      name: name of the set of dictionaries.
    """
    files = Files.of(run, name)
    results = {path.stem: load_arrays(path) for path in files.results}
    table = {name: results[name] for name in TABLE if name in results}
    if table:
        return join_instruments(table, read_members(files))
    return load_arrays(files.measured_before) if files.measured_before.exists() else None


def join_instruments(results: Mapping[str, xr.Dataset], members: Sequence[Member]) -> xr.Dataset:
    """Join the results of several instruments into one dataset.

    Args:
      results: the result of each instrument, keyed by the instrument's name. The members of a
        result may have any order.
      members: the dictionaries, in the order that the joined dataset should have.
    """
    steps = {member.step for member in members}
    trained_keys = _numbered(
        (one.step, one.site, one.sparsity, one.seed, TRAINED) for one in members
    )
    keys = {name: _keys(result) for name, result in results.items()}
    wanted = dict.fromkeys(trained_keys)
    for found in keys.values():
        wanted |= dict.fromkeys(key for key in found if _is_baseline(key[0], steps))
    parts = [_reordered(results[name], keys[name], list(wanted)) for name in results]
    about = parts[0].attrs
    kept = {name: about[name] for name in ("n_states", "n_trained", "start") if name in about}
    renamed = [_renamed(name, part) for name, part in zip(results, parts, strict=True)]
    joined = xr.merge(renamed, join="outer", compat="equals", combine_attrs="drop")
    return joined.assign_attrs(kept)


def member_coords(members: Sequence[Member], what: Sequence[str]) -> dict[str, Any]:
    """Return the coordinates of the dimension `member`.

    Args:
      members: checkpoint, site, sparsity and seed of each dictionary and baseline.
      what: for each member, "trained" or the name of the baseline.
    """
    values = {name: [getattr(member, name) for member in members] for name in _KEY[:-1]}
    return {name: ("member", column) for name, column in (values | {"what": list(what)}).items()}


def _keys(result: xr.Dataset) -> list[Any]:
    values = [
        result[name].values.tolist()
        if name in result.coords
        else [TRAINED] * result.sizes["member"]
        for name in _KEY
    ]
    return _numbered(zip(*values, strict=True))


def _numbered(keys: Any) -> list[Any]:
    """Make keys unique: pair each key with the number of equal keys before it."""
    seen: Counter[Any] = Counter()
    found = []
    for key in keys:
        found.append((key, seen[key]))
        seen[key] += 1
    return found


def _is_baseline(key: tuple[Any, ...], steps: set[int]) -> bool:
    """Return whether a key belongs to a baseline of the set's last step, or of the untrained model.

    Baselines of other steps are left over from an earlier version of the set.
    """
    step, what = key[0], key[4]
    if what == UNTRAINED:
        return 0 not in steps
    return bool(what != TRAINED and step == max(steps))


def _reordered(result: xr.Dataset, there: list[Any], wanted: list[Any]) -> xr.Dataset:
    """Reorder a result by the wanted members. Members that the result lacks get nan."""
    at = {key: number for number, key in enumerate(there)}
    numbers = np.array([at.get(key, -1) for key in wanted])
    found = result.isel(member=np.maximum(numbers, 0))
    columns = zip(*[key for key, _ in wanted], strict=True)
    of = {name: ("member", list(column)) for name, column in zip(_KEY, columns, strict=True)}
    if (numbers < 0).any():
        known = xr.DataArray(numbers >= 0, dims="member")
        found = found.drop_vars([name for name in _KEY if name in found.coords])
        found = found.map(lambda values: values.where(known) if "member" in values.dims else values)
    return found.assign_coords(of).assign_attrs(result.attrs)


def _renamed(name: str, part: xr.Dataset) -> xr.Dataset:
    """Rename the counts and the group dimension of an instrument, so that names do not collide."""
    counts = {n: f"{name}_{n}" for n in ("n_examples", "n_states") if n in part}
    part = part.rename(counts)
    if "group" not in part.dims:
        return part
    if part.attrs["group"]:
        return part.rename(group=part.attrs["group"])
    return part.squeeze("group", drop=True)


def distinct(values: Sequence[Any] | np.ndarray | xr.DataArray) -> list[Any]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(np.asarray(values).tolist()))


def trained_members(result: xr.Dataset) -> xr.Dataset:
    """Select the trained dictionaries in measured results, without the baselines."""
    return result.sel(member=(result["what"] == TRAINED).values)


def middle_sparsity(result: xr.Dataset) -> float:
    """Return the median sparsity of the trained dictionaries.

    If the number of sparsities is even, the function returns the larger one of the two middle
    sparsities.
    """
    ordered = sorted(distinct(trained_members(result)["sparsity"]))
    return float(ordered[len(ordered) // 2])


def at_middle_sparsity(result: xr.Dataset, site: str) -> xr.Dataset:
    """Select the trained dictionaries of one site with the median sparsity.

    The result contains all checkpoints and seeds.
    """
    own = trained_members(result)
    return own.sel(
        member=((own["site"] == site) & (own["sparsity"] == middle_sparsity(result))).values
    )


def bridge_concept(result: xr.Dataset) -> str | None:
    """Return the name of the concept of the bridge, such as `e2@r1`.

    The concept's position is the first position at which the prefix determines the bridge
    (intermediate entity). The function returns None if there is no such concept.
    """
    if "concept" not in result.coords:
        return None
    found = [name for name in result["concept"].values.tolist() if name.startswith("e2@")]
    return found[0] if found else None


class Row(NamedTuple):
    """The scores of one dictionary or baseline, for tables in figures and dashboards.

    Scores that were not measured are nan. A bridge is the intermediate entity of a two-hop chain.

    Attributes:
      site: name of the hook site that the dictionary writes.
      what: "trained" or the name of the baseline.
      sparsity: the sparsity in the configuration.
      seed: seed of the initialization.
      l0: number of active features, averaged over held-out states.
      explained: explained variance on held-out states.
      recovered: `(ablated - spliced) / (ablated - clean)`, from cross-entropies on training chains.
        `ablated` is measured with the site set to its mean. `spliced` is measured with the
        dictionary spliced in. `clean` is measured without edits.
      kl: KL(clean model || model with the dictionary spliced in), in nats, on training chains.
      dead: share of features that are never active.
      dense: share of features that are active on more than a tenth of the states.
      f1: F1 of a bridge's best feature, averaged over bridges. States are at the first position at
        which the prefix determines the bridge.
      null: the null control of `f1`. The bridges are permuted among the states several times, and
        `null` is the highest mean F1 of these permutations.
      average_precision: average precision of a bridge's best feature, averaged over bridges.
      swap: share of prompts with the new bridge's answer after the features of two bridges are
        swapped.
      low, high: ends of the 95% confidence interval of `swap`, clustered by bridge.
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
    """Make rows of scores for the dictionaries of the last step and for the baselines.

    The rows are ordered by site. For each site, dictionaries come before baselines. Dictionaries of
    step 0 with the median sparsity are included as the baseline "untrained model".

    Args:
      result: the measured results of a set, from `open_measured`.
    """
    own, what, step = trained_members(result), result["what"].values, result["step"].values
    last, first = int(own["step"].max()), int(own["step"].min())
    chosen = {number: str(name) for number, name in enumerate(what) if name != TRAINED}
    chosen |= {int(n): TRAINED for n in np.flatnonzero((what == TRAINED) & (step == last))}
    if first == 0 < last and UNTRAINED not in what:
        there = (
            (what == TRAINED) & (step == 0) & (result["sparsity"].values == middle_sparsity(result))
        )
        chosen |= {int(number): UNTRAINED for number in np.flatnonzero(there)}
    sites = distinct(result["site"])

    def place(number: int) -> tuple[int, bool, int]:
        return sites.index(str(result["site"].values[number])), chosen[number] != TRAINED, number

    return [
        _row(result.isel(member=number), chosen[number]) for number in sorted(chosen, key=place)
    ]


def _row(of: xr.Dataset, what: str) -> Row:
    concept = bridge_concept(of)
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
