"""Tables of `attribution_graphs.py`, made from its saved arrays. The rules are in its docstring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
SEEDS = 3  # of the dictionaries at the last checkpoint
SCORES = {
    "replacement": "replacement",
    "completeness": "completeness",
    "n_active": "active features",
}
PUBLISHED = (".61", ".80", "-")
EXPECTED = ("true", "shuffled")
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
        "Runs and dictionaries": settings,
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


def ordered(parts: Mapping[str, xr.Dataset]) -> list[tuple[str, str]]:
    """Return the stages of a run in the order of their steps, with the step; `-` if not reached."""
    steps = {stage: float(parts["stages"]["reached"].sel(stage=stage)) for stage in STAGES}
    found = sorted(STAGES, key=lambda stage: (np.isnan(steps[stage]), steps[stage]))
    return [(stage, "-" if np.isnan(steps[stage]) else f"{steps[stage]:,.0f}") for stage in found]


def settings(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of the scale and of the dictionaries of every run."""
    columns = {
        "scale": "scale",
        "width": "features per layer",
        "active": "active features per layer",
        "dictionary_steps": "training steps",
        "n_states": "distinct states",
    }
    rows = [
        [run, *(parts["stages"][name].item() for name in columns)] for run, parts in runs_of(arms)
    ]
    return table(["run", *columns.values()], rows)


def explained(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 1."""
    rows: list[list[object]] = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            for stage, step in ordered(parts):
                at = {"stage": stage, "split": SPLIT}
                found = [interval(parts[f"graphs_{kind}"], name, **at) for name in SCORES]
                count = float(parts[f"graphs_{kind}"]["replacement_n"].sel(at))
                rows.append(
                    [run, title, stage, step, *found, "-" if np.isnan(count) else int(count)]
                )
    if rows:
        rows.append(["Ameisen et al. 2025", "cross-layer transcoder", "-", "-", *PUBLISHED, "-"])
    columns = ("run", "dictionaries", "stage", "step", *SCORES.values(), "bridges")
    return table(columns, rows)


def used(parts: Mapping[str, xr.Dataset], stage: str) -> tuple[Interval, str]:
    """Return the most followed answers of patching at a stage, and whether the bridge is used."""
    at = parts["followed"].sel(stage=stage, outcome=OUTCOMES[1], group=BRIDGE, drop=True)
    own, null = (at.sel(expected=which).stack(place=["layer", "pos"]) for which in EXPECTED)
    known = (own["fraction_n"] >= MIN_CLUSTERS).values & np.isfinite(own["fraction"].values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan), "-"
    above = own["fraction_low"].values > null["fraction_high"].values
    best = int(np.where(known, own["fraction_low"].values + above, -1).argmax())
    found = Interval(*(float(own[f"fraction{end}"][best]) for end in ("", "_low", "_high")))
    return found, "uses" if found.low >= MAJORITY and above[best] else "does not"


def passes(own: Interval, nulls: Sequence[Interval], has: Interval) -> str:
    """Return whether a graph passes through the bridge.

    Args:
      own: the bridge share.
      nulls: its nulls.
      has: the share of chains with an active feature that stands for the bridge.
    """
    if not np.isfinite([own.mean, has.mean]).all():
        return "-"
    if has.mean < MAJORITY:
        return "no features"
    if own.low >= MAJORITY and all(own.low > null.high for null in nulls):
        return "passes"
    return "avoids" if own.high <= AVOIDS else "open"


def passing(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 2."""
    rows = []
    for run, parts in runs_of(arms):
        for stage, step in ordered(parts):
            patched, said = used(parts, stage)
            for kind, title in KINDS.items():
                part, at = parts[f"graphs_{kind}"], {"stage": stage, "split": SPLIT}
                own, *nulls = (interval(part, "bridge_share", bridge=b, **at) for b in BRIDGES)
                has = interval(part, "has_bridge", **at)
                path = passes(own, nulls, has)
                known = said != "-" and path != "-"
                agrees = "yes" if (said == "uses") == (path == "passes") else "no"
                cells = [f"{patched}: {said}", title, has, own, *nulls, path]
                rows.append([run, stage, step, *cells, agrees if known else "-"])
    return table(
        [
            *("run", "stage", "step", "followed answers of patching: the model", "dictionaries"),
            *("chains with a feature of the bridge", "bridge share", "null: another chain's"),
            *("null: random features", "the graph", "agrees"),
        ],
        rows,
    )


def over_seeds(holds: Sequence[bool | None]) -> str:
    """Return what a rule says that must hold for all seeds; None is a missing number."""
    if any(one is None for one in holds):
        return "-"
    return "yes" if all(holds) else "open" if any(holds) else "no"


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
            crossed.high < own.low if np.isfinite([crossed.high, own.low]).all() else None
            for crossed, own in zip(shares["cross_layer"], shares["transcoder"], strict=True)
        ]
        listed = ["; ".join(map(str, shares[kind])) for kind in KINDS]
        rows.append([run, of_use, *listed, over_seeds(below) if of_use == "uses" else "-"])
    return table(["run", "the model", *KINDS.values(), "as one hop"], rows)


def swaps(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 4."""
    rows = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            found = [of_swap(parts[f"swaps_{kind}_seeds"], seed) for seed in range(SEEDS)]
            inside = [
                SLOPES[0] < slope.low and slope.high < SLOPES[1]
                if np.isfinite([slope.low, slope.high]).all()
                else None
                for *_, slope in found
            ]
            said = over_seeds(inside)
            rows += [[run, title, seed, *cells, said] for seed, cells in enumerate(found)]
    controls = ("follows", "null: random features", "null: another bridge")
    columns = ("run", "dictionaries", "seed", "features set", *controls, "slope")
    return table([*columns, "predicts (all seeds)"], rows)


def of_swap(part: xr.Dataset, seed: int) -> tuple[str, Interval, Interval, Interval, Interval]:
    """Return how many features a swap sets, who follows it and its nulls, and the slope."""
    at = {"seed": seed, "change": "swap"}
    follows, random, another = (
        interval(part, "follows", "n_clusters", **at, control=control, within="real")
        for control in part["control"].values
    )
    count = part["n_set"].sel(at).sel(control="own").item()
    paths = {"control": "own", "prediction": "paths", "observation": "real"}
    return (
        f"{count:.1f}",
        *(follows, random, another),
        interval(part, "slope", "n_clusters", **at, **paths),
    )


def guesses(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of question 5, summed over layers and seeds."""
    rows = []
    for run, parts in runs_of(arms):
        for kind, title in KINDS.items():
            part = parts[f"guesses_{kind}_seeds"]
            for pos in part["pos"].values:
                at = part.sel(pos=pos)
                n = float(at["n_features"].sum())
                shares = [
                    f"{float((at[name] * at['n_features']).sum()) / n:.2f}" if n else "-"
                    for name in ("named", "null", "labeled")
                ]
                rows.append([run, title, pos, int(n), *shares])
    columns = ("features, all seeds", "guessed", "null", "labeled by activity")
    return table(["run", "dictionaries", "position", *columns], rows)
