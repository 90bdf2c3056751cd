"""Tables of `attribution_graphs.py`, made from its saved arrays. The rules are in its docstring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from components_tables import table, write_answers
from reasoning_or_shortcut_arms import Arm

from implicit_reasoning.analysis.claims import MAJORITY, MIN_CLUSTERS
from implicit_reasoning.analysis.patching.outcomes import OUTCOMES
from implicit_reasoning.analysis.patching.query_pairs import BRIDGE
from implicit_reasoning.dictionaries.graphs.measure import BRIDGES

KINDS = {
    "transcoder": "transcoders",
    "skip_transcoder": "skip transcoders",
    "cross_layer": "cross-layer transcoder",
}
STAGES = ("untrained", "memorised", "half", "end")
AVOIDS = 0.2
SLOPES = 0.5, 2.0
SPLIT = "test_ii"


def write_tables(out: Path, arms: Mapping[str, Arm]) -> None:
    """Write `answers.md`, with one section for each question."""
    text = [
        "The answers by the decision rules of `experiments/attribution_graphs.py`. Each row is one "
        "run. Square brackets have 95% intervals clustered by bridge, and `-` is missing, also for "
        "means over fewer than 20 bridges. Runs are cases, and support no claim about training."
    ]
    sections: Mapping[str, Callable[[Mapping[str, Arm]], list[str]]] = {
        "1. How much of the influence comes through features?": explained,
        "2. Does the graph pass through the bridge where the model does?": passing,
        "3. Does a cross-layer transcoder describe a two-hop model as a one-hop model?": one_hop,
        "4. Do features do what the graph says?": swaps,
        "5. Can a feature be read from its weights?": guesses,
    }
    write_answers(out, text, sections, arms)


class Interval(NamedTuple):
    """A mean, the ends of its interval and the number of bridges; nan if it is missing."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite(self.mean):
            return "-"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(part: xr.Dataset, name: str, count: str | None = None, **at: object) -> Interval:
    """Return the interval of one number; nan if it has fewer than 20 bridges.

    Args:
      part: the arrays of one run.
      name: the name of the mean.
      count: the name of the number of bridges; default: `<name>_n`.
      **at: the coordinates.
    """

    def one(key: str) -> float:
        here = {dim: value for dim, value in at.items() if dim in part[key].dims}
        return float(part[key].sel(here))

    if not one(count or f"{name}_n") >= MIN_CLUSTERS:
        return Interval(np.nan, np.nan, np.nan)
    return Interval(*(one(f"{name}{end}") for end in ("", "_low", "_high")))


def runs_of(arms: Mapping[str, Arm]) -> Iterator[tuple[str, dict[str, xr.Dataset]]]:
    """Yield a name and the arrays of every run."""
    for name, arm in arms.items():
        for place, (world, init) in enumerate(zip(arm.worlds, arm.inits, strict=True)):
            parts = {node: part.isel(run=place) for node, part in arm.parts.items()}
            yield f"{name}, w{world} i{init}", parts


def explained(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    rows = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            for name in ("replacement", "completeness"):
                found = [
                    interval(parts[f"graphs_{kind}"], name, stage=stage, split=SPLIT)
                    for stage in STAGES
                ]
                rows.append([run, title, name, *found])
    return table(["run", "dictionaries", "score", *STAGES], rows)


def used(parts: Mapping[str, xr.Dataset], stage: str) -> tuple[Interval, str]:
    """Return the most followed answers of patching at a stage, and whether the bridge is used."""
    at = parts["followed"].sel(
        stage=stage, expected="true", outcome=OUTCOMES[1], group=BRIDGE, drop=True
    )
    enough = at["fraction_n"] >= MIN_CLUSTERS
    if not enough.any():
        return Interval(np.nan, np.nan, np.nan), "-"
    places = at.where(enough).stack(place=["layer", "pos"])
    best = places.isel(place=int(places["fraction_low"].fillna(-1).values.argmax()))
    found = Interval(*(float(best[f"fraction{end}"]) for end in ("", "_low", "_high")))
    return found, "uses" if found.low >= MAJORITY else "does not"


def passes(own: Interval, null: Interval) -> str:
    """Return whether a graph passes through the bridge."""
    if not np.isfinite(own.mean):
        return "-"
    if own.low >= MAJORITY and own.low > null.high:
        return "passes"
    return "avoids" if own.high <= AVOIDS else "open"


def passing(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2."""
    rows = []
    for run, parts in runs_of(arms):
        for stage in STAGES:
            patched, said = used(parts, stage)
            for kind, title in KINDS.items():
                own, null = (
                    interval(
                        parts[f"graphs_{kind}"],
                        "bridge_share",
                        stage=stage,
                        split=SPLIT,
                        bridge=bridge,
                    )
                    for bridge in BRIDGES
                )
                path = passes(own, null)
                known = said != "-" and path != "-"
                agrees = "yes" if (said == "uses") == (path == "passes") else "no"
                cells = [f"{patched}: {said}", title, own, null, path, agrees if known else "-"]
                rows.append([run, stage, *cells])
    return table(
        [
            *("run", "stage", "followed answers of patching: the model", "dictionaries"),
            *("bridge share", "null", "the graph", "agrees"),
        ],
        rows,
    )


def one_hop(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 3."""
    rows = []
    for run, parts in runs_of(arms):
        shares = {
            kind: [
                interval(
                    parts[f"graphs_{kind}_seeds"],
                    "bridge_share",
                    seed=seed,
                    split=SPLIT,
                    bridge=BRIDGES[0],
                )
                for seed in parts[f"graphs_{kind}_seeds"]["seed"].values
            ]
            for kind in KINDS
        }
        of_use = used(parts, "end")[1]
        below = [
            crossed.high < own.low
            for crossed, own in zip(shares["cross_layer"], shares["transcoder"], strict=True)
        ]
        said = "yes" if all(below) else "open" if any(below) else "no"
        listed = ["; ".join(map(str, shares[kind])) for kind in KINDS]
        rows.append([run, of_use, *listed, said if of_use == "uses" else "-"])
    return table(["run", "the model", *KINDS.values(), "as one hop"], rows)


def swaps(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    rows = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            part = parts[f"swaps_{kind}_seeds"]
            for seed in part["seed"].values:
                at = {"seed": seed, "change": "swap"}
                shown = [
                    interval(part, "follows", "n_clusters", **at, control=control, within="real")
                    for control in part["control"].values
                ]
                slope = interval(
                    part,
                    "slope",
                    "n_clusters",
                    **at,
                    control="own",
                    prediction="paths",
                    observation="real",
                )
                if np.isfinite(slope.mean):
                    inside = SLOPES[0] < slope.low and slope.high < SLOPES[1]
                    said = "yes" if inside else "no"
                else:
                    said = "-"
                rows.append([run, title, int(seed), *shown, slope, said])
    controls = ("follows", "random features", "another bridge")
    return table(["run", "dictionaries", "seed", *controls, "slope", "predicts"], rows)


def guesses(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5, summed over layers and seeds."""
    rows = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            part = parts[f"guesses_{kind}_seeds"]
            for pos in part["pos"].values:
                at = part.sel(pos=pos)
                n = at["n_features"].sum()
                shares = [
                    float((at[name] * at["n_features"]).sum() / np.maximum(n, 1))
                    for name in ("named", "null", "labeled")
                ]
                rows.append([run, title, pos, int(n), *(f"{share:.2f}" for share in shares)])
    columns = ("features, all seeds", "guessed", "null", "labeled by activity")
    return table(["run", "dictionaries", "position", *columns], rows)
