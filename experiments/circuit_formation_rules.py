"""The decision rules of `circuit_formation.py`, for the saved results of an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from components_rules import Rule, at_stage, half_time, known, over, rule
from reasoning_or_shortcut_arms import FEWEST, MOST, Arm
from scipy.stats import spearmanr

from implicit_reasoning.analysis.circuits.curves import jaccard
from implicit_reasoning.analysis.claims import MIN_CLUSTERS
from implicit_reasoning.statistics import Interval

LEVEL = 0.9
SPARSE = 0.25
FORMED, SUDDEN_FACTOR, RISES = 0.8, 1.5, 0.1
THERE, GONE = 0.5, 0.2
SAME = -0.1
OTHER = -0.3
ACDC_AGREES = 0.8
INCOMPLETE, NEEDED, STABLE = 0.1, 0.9, 0.8
EXACT = "exact, grown"


def sizes(arm: Arm, stage: str, order: str = EXACT) -> np.ndarray:
    """Return the size of the circuit of every run at a stage; nan if it is missing."""
    return smallest(at_stage(arm, "discovery", stage), order).values


def smallest(part: xr.Dataset, order: str = EXACT) -> xr.DataArray:
    """Return the smallest faithful size on the first group of pairs.

    Args:
      part: results of discovery.
      order: order in which circuits grow.

    Returns:
      Sizes without the dimension `size`; nan where no circuit but that of all edges is faithful, or
      where faithfulness is not known.
    """
    faithful = known(part, "faithfulness").isel(group=0, drop=True).sel(order=order, drop=True)
    reached = faithful.isel(size=slice(-1)) >= LEVEL
    return part["size"].where(reached).min("size")


def all_edges(arm: Arm) -> float:
    """Return the number of edges and positions whose sender differs between the prompts.

    It is the largest number of any run at the end.
    """
    change = at_stage(arm, "estimates", "end")["score"].sel(estimator="magnitude")
    return float((change > 0).sum(("edge", "pos")).max())


def sparse(arm: Arm) -> Rule:
    """Ask question 1: whether the circuit at the end is sparse."""
    found = sizes(arm, "end")
    return rule(np.nan_to_num(found, nan=np.inf) <= SPARSE * all_edges(arm))


class Formation(NamedTuple):
    """Numbers and rules of question 2; arrays [run]."""

    there: Rule
    with_answers: Rule
    suddenly: Rule
    half_times: np.ndarray
    answers: np.ndarray


def route(arm: Arm, name: str, stage: str, group: int = 0, cut: str = "own") -> xr.Dataset:
    """Return the faithfulness of a route at a stage, with its interval; nan if it is missing."""
    part = at_stage(arm, "routes", stage).sel(route=f"{name} r1", cut=cut)
    part = part.isel(group=group, drop=True)
    there = np.isfinite(known(part, "faithfulness"))
    return part[["faithfulness", "faithfulness_low", "faithfulness_high"]].where(there)


def formation(arm: Arm) -> Formation:
    """Ask question 2 of the runs of an arm.

    Whether a route forms suddenly is missing if the interval in which it rises is too long. A route
    that is not there at the end forms neither with the answers nor suddenly.
    """
    times: dict[str, list[float]] = {"route": [], "answers": []}
    sudden = []
    group = str(arm.parts["routes"]["group"].values[0])
    accuracy = arm.parts["training"]["accuracy"].sel(split="test_ii")
    at = {"route": "through r1", "group": group, "cut": "own"}
    for number in range(len(arm.worlds)):
        steps, through = measured_steps(arm, "routes", number, at)
        times["route"].append(half_time(steps, through) if len(steps) else np.nan)
        curve = accuracy.isel(run=number).dropna("evaluation")
        rises = curve.values[-1] - curve.values[0] > RISES
        steps_of = curve["evaluation"].values
        times["answers"].append(half_time(steps_of, curve.values) if rises else np.nan)
        sudden.append(rises_suddenly(steps, through))
    route_times, answers = np.array(times["route"]), np.array(times["answers"])
    ratio = route_times / answers
    end = route(arm, "through", "end")["faithfulness_low"].values
    there = np.nan_to_num(end, nan=-1) >= FORMED
    return Formation(
        rule(there),
        rule(there & (ratio >= 0.5) & (ratio <= 2)),
        rule(np.where(there, sudden, 0.0)),
        route_times,
        answers,
    )


def measured_steps(
    arm: Arm, node: str, number: int, at: Mapping[str, object]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which the faithfulness of a run is known, and its values."""
    curve = known(arm.parts[node], "faithfulness").isel(run=number).sel(at).dropna("step")
    return curve["step"].values, curve.values


def rises_suddenly(steps: np.ndarray, values: np.ndarray) -> float:
    """Return whether a curve rises by half of its range in one short interval between steps.

    The result is 1 or 0. It is nan if the curve rises by so much in a long interval only, because
    the measured checkpoints then do not show how fast it rises.
    """
    rises = np.diff(values) >= np.ptp(values) / 2 if len(values) > 1 else np.zeros(0, bool)
    short = steps[1:] <= SUDDEN_FACTOR * np.maximum(steps[:-1], 1)
    if (rises & short).any():
        return 1.0
    return np.nan if rises.any() or len(values) < 2 else 0.0


def answered(arm: Arm, stage: str) -> np.ndarray:
    """Return the accuracy on test_ii of every run at the last evaluation up to a stage."""
    accuracy = arm.parts["training"]["accuracy"].sel(split="test_ii")
    steps = arm.parts["stages"]["reached"].sel(stage=stage).values
    found = []
    for number, step in enumerate(steps):
        curve = accuracy.isel(run=number).dropna("evaluation")
        before = curve.where(curve["evaluation"] <= step, drop=True)
        found.append(float(before[-1]) if len(before) else np.nan)
    return np.array(found)


class Memorizing(NamedTuple):
    """Rules and numbers of question 3."""

    bypassed: Rule
    remains: Rule
    log_ratio: np.ndarray
    size: str


def memorizing(arm: Arm) -> Memorizing:
    """Ask question 3 of the runs of an arm."""
    before, after = (route(arm, "around", stage) for stage in ("memorised", "end"))
    bypassed = (before["faithfulness_low"] >= THERE) & (after["faithfulness_high"] <= GONE)
    remains = after["faithfulness_low"] >= THERE
    ratio = np.log(sizes(arm, "end") / sizes(arm, "memorised"))
    return Memorizing(rule(bypassed), rule(remains), ratio, changed(ratio, arm))


def changed(values: np.ndarray, arm: Arm) -> str:
    """Return whether a logarithm of a ratio is below or above 0."""
    if np.isfinite(values).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(values).sum())})"
    found = over(values, arm)
    return "shrinks" if found.high < 0 else "grows" if found.low > 0 else "open"


def cold_facts(arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Return the faithfulness of the circuit of training chains on test_ii and on test_c0.

    The circuit has its size at the end. A run without 20 answered bridges is nan.
    """
    part = at_stage(arm, "discovery", "end").sel(order=EXACT)
    values = known(part, "faithfulness")
    found = []
    for group in ("test_ii", "test_c0"):
        of = values.sel(group=group)
        found.append(
            [
                float(of.isel(run=number).sel(size=size)) if np.isfinite(size) else np.nan
                for number, size in enumerate(sizes(arm, "end"))
            ]
        )
    return np.array(found[0]), np.array(found[1])


def same_circuit(difference: np.ndarray, arm: Arm) -> str:
    """Return the answer to question 4 for the differences of the runs of an arm."""
    if np.isfinite(difference).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(difference).sum())})"
    found = over(difference, arm)
    return "the same" if found.low > SAME else "another one" if found.high < SAME else "open"


def agreement(arm: Arm, stage: str, estimator: str) -> np.ndarray:
    """Return the rank correlation of an estimator with exact scores in every run.

    A run in which fewer than 20 clusters count is nan.
    """
    part = at_stage(arm, "estimates", stage)
    scores = part["score"].transpose("run", "estimator", "edge", "pos")
    scores = scores.where(part["n_clusters"] >= MIN_CLUSTERS, 0)
    found = []
    for run in scores:
        exact, other = (
            np.abs(run.sel(estimator=name).values.ravel()) for name in ("exact", estimator)
        )
        there = run.sel(estimator="magnitude").values.ravel() > 0
        found.append(spearmanr(exact[there], other[there])[0] if there.sum() > 1 else np.nan)
    return np.array(found)


def acdc_overlap(arm: Arm, stage: str) -> np.ndarray:
    """Return the mean overlap of ACDC's circuits with exact circuits of their size, by run."""
    part = at_stage(arm, "estimates", stage)
    counted = part["acdc_overlap"].where(part["acdc_size"] > 0)
    counted = counted.where(part["n_clusters"] >= MIN_CLUSTERS)
    return np.asarray(counted.mean(("tau", "order")).values, float)


def same_over_time(arm: Arm, number: int, steps: slice, size: float | None = None) -> Overlap:
    """Compare the circuits of two measured checkpoints of a run.

    Args:
      arm: the arm.
      number: the run.
      steps: the measured checkpoints, of which the first and the last one are compared.
      size: the size of both circuits; default: the size of the circuit of the first checkpoint, or
        a quarter of all edges if that is missing.
    """
    run = arm.parts["discovery"].isel(run=number, group=0).sel(order=EXACT)
    there = np.isfinite(run["rank"].values.reshape(run.sizes["step"], -1)).any(1)
    run = run.isel(step=np.flatnonzero(there)[steps])
    if size is None:
        curve = known(run, "faithfulness").isel(step=0).values[:-1]
        ok = np.flatnonzero(curve >= LEVEL)
        size = float(run["size"].values[ok[0]]) if len(ok) else SPARSE * all_edges(arm)
    first, last = (run["rank"].isel(step=place).values < size for place in (0, -1))
    return Overlap(float(jaccard(first, last)), size)


class Overlap(NamedTuple):
    """The Jaccard index of two circuits, and their size."""

    share: float
    size: float


def fine_tuning(taught: Arm, before: Arm) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the indices and references of question 6, by run, and its answer.

    The reference of a run whose run before was not measured is nan.
    """
    pairs = list(zip(before.worlds.tolist(), before.inits.tolist(), strict=True))
    found = []
    for number, pair in enumerate(zip(taught.worlds.tolist(), taught.inits.tolist(), strict=True)):
        own, reference = same_over_time(taught, number, slice(None)), np.nan
        if pair in pairs:
            at = pairs.index(pair)
            reference = same_over_time(before, at, slice(-2, None), own.size).share
        found.append((own.share, reference))
    index, reference = np.array(found, float).T
    difference = index - reference
    if np.isfinite(difference).sum() < MOST + FEWEST:
        return index, reference, f"too few runs ({int(np.isfinite(difference).sum())})"
    over_runs: Interval = over(difference, taught)
    said = "open"
    if over_runs.low > SAME:
        said = "enhances it"
    elif over_runs.high < OTHER:
        said = "another one"
    return index, reference, said


class Checked(NamedTuple):
    """Rules of question 7."""

    complete: Rule
    minimal: Rule
    stable: Rule


def checked(arm: Arm, name: str, order: str = "exact") -> np.ndarray:
    """Return a number of `checks` at the end, by run.

    It is nan if fewer than 20 clusters count, if it was not measured for circuits of the order, or
    if there is no faithful circuit but that of all edges that can matter.
    """
    part = at_stage(arm, "checks", "end")
    usable = (part["n_clusters"] >= MIN_CLUSTERS) & (part["size"] < all_edges(arm))
    values = part[name].where(usable)
    for dim in {"order", "removed"} & set(values.dims):
        values = values.reindex({dim: [order]}).squeeze(dim)
    return np.asarray(values.values, float)


def checks(arm: Arm) -> Checked:
    """Ask question 7 of the runs of an arm."""
    return Checked(
        rule(checked(arm, "incompleteness") <= INCOMPLETE),
        rule(checked(arm, "needed") >= NEEDED),
        rule(checked(arm, "stability") >= STABLE),
    )
