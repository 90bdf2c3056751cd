"""Question 3 of `reasoning_or_shortcut.py`: do instruments say the same as the answers?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from reasoning_or_shortcut_arms import FEWEST, MOST, RUNGS, Arm, ladders, number, over_worlds
from scipy.stats import spearmanr

FOLLOWED = {
    "cross_query_patching": {"outcome": "counterfactual", "expected": "true"},
    "mean_swap": {"edit": "class means"},
}
"""The selection that gives the share of answers that follow the state, by instrument."""

NULLS: Mapping[str, Mapping[str, Any]] = {
    "cross_query_patching": {"outcome": "counterfactual", "expected": ["shuffled"]},
    "mean_swap": {"edit": ["permuted means", "third value", "another variable"]},
}
"""The selection of the null controls of `FOLLOWED`, of which the highest counts."""

LEAST_RANK = 0.7
UNTRAINED = "untrained"
VERDICTS = {"yes": 1.0, "open": np.nan, "no": 0.0}


def followed(arm: Arm, instrument: str, stage: str, *, null: bool = False) -> dict[str, np.ndarray]:
    """Return, by rung, the share of answers of each run that follow the state at S[1, r1].

    Args:
      arm: the runs.
      instrument: a key of `FOLLOWED`.
      stage: the stage.
      null: whether to return the highest share of the null controls instead.
    """
    part = arm.parts[instrument].sel(stage=stage)
    share = part["fraction" if instrument == "cross_query_patching" else "counterfactual"]
    if null:
        selected = NULLS[instrument]
        several = [dim for dim, labels in selected.items() if isinstance(labels, list)]
        share = share.sel(selected).max(several)
    else:
        share = share.sel(FOLLOWED[instrument])
    groups = {str(group): group for group in share["group"].values}
    found = {}
    for rung in RUNGS:
        names = [key for key in groups if key in (rung, f"{rung.removeprefix('test_')} source")]
        if names:
            found[rung] = np.asarray(share.sel(group=names[0]).values, float)
    return found


def measured(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Return the arms of the ladder whose runs the instruments measured."""
    return {
        name: arm
        for name, arm in ladders(arms).items()
        if any(instrument in arm.parts for instrument in FOLLOWED)
    }


def instruments(arms: Mapping[str, Arm]) -> list[str]:
    """Return the tables of question 3: agreement, shares by arm, and claims by arm."""
    arms = measured(arms)
    return [*agreement(arms), "", *shares(arms), "", *claims(arms)]


def agreement(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table with what the rule of question 3 says, over the runs of all arms."""
    lines = [
        "The rule, over the runs of all arms. Spearman is the correlation over runs and rungs "
        "between the share of answers that follow the state and the accuracy of the rung; beside "
        "it is that of the null control. A contradiction is a run that has the claim `grounded` "
        "while the answers say that it is not grounded, or lacks it while they say that it is.",
        "",
        "| instrument | stage | Spearman | null | runs and rungs | runs with claims | "
        "claimed, answers say no | not claimed, answers say yes | agrees |",
        "|---" * 9 + "|",
    ]
    stages = next(iter(arms.values())).parts["stages"]["stage"].values if arms else ()
    for instrument in FOLLOWED:
        for stage in map(str, stages):
            pairs = [points(arm, instrument, stage) for arm in arms.values()]
            x, y, null = (np.concatenate(column) for column in zip(*pairs, strict=True))
            rank = correlation(x, y)
            found = [counts(arm, instrument, "grounded", stage) for arm in arms.values()]
            runs = sum(n for one in found for _, n in one.values())
            wrong = sum(one["no"][0] for one in found)
            missed = sum(one["yes"][1] - one["yes"][0] for one in found)
            if runs < MOST + FEWEST:
                result = f"too few runs ({runs})"
            else:
                result = "yes" if rank >= LEAST_RANK and not wrong + missed else "no"
            cells = (number(rank), number(correlation(x, null)), len(x), runs, wrong, missed)
            lines.append(f"| {instrument} | {stage} | {' | '.join(map(str, cells))} | {result} |")
    return lines


def points(arm: Arm, instrument: str, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the accuracy, the share that follows the state and its null, for runs and rungs."""
    share = followed(arm, instrument, stage)
    null = followed(arm, instrument, stage, null=True)
    accuracy = {rung: arm.accuracy(rung, stage) for rung in share}
    x, y, z = (np.concatenate([[], *part.values()]) for part in (accuracy, share, null))
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there], z[there]


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation; nan for fewer than three points or equal values."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return float("nan")
    return float(spearmanr(x, y)[0])


def shares(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of the shares of answers that follow the state, by arm."""
    lines = [
        "Shares of answers that follow the state at S[1, r1], by arm. The column `null` has the "
        "highest null control, averaged over the rungs.",
        "",
        "| arm | instrument | stage | share at c0 | share at c1 | share at c2 | null | Spearman | "
        "n |",
        "|---" * 9 + "|",
    ]
    for name, arm in arms.items():
        for instrument in FOLLOWED:
            for stage in (UNTRAINED, *map(str, arm.parts["stages"]["stage"].values)):
                share = followed(arm, instrument, stage)
                null = followed(arm, instrument, stage, null=True)
                cells = [over_worlds(share[r], arm.worlds) if r in share else "-" for r in RUNGS]
                cells.append(over_worlds(mean_of(list(null.values())), arm.worlds))
                if stage == UNTRAINED:
                    cells += ["-", "-"]
                else:
                    x, y, _ = points(arm, instrument, stage)
                    cells += [number(correlation(x, y)), str(len(x))]
                lines.append(f"| {name} | {instrument} | {stage} | {' | '.join(cells)} |")
    return lines


def mean_of(values: list[np.ndarray]) -> np.ndarray:
    """Return the mean over some arrays of the values that are not nan."""
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(there, stacked, 0).sum(0) / there.sum(0)
    return mean


def claims_of(arm: Arm, instrument: str, kind: str, stage: str) -> np.ndarray:
    """Return for every run whether it has a claim, 1 or 0; nan if the claims were not saved."""
    if "claims" not in arm.parts:
        return np.full(len(arm.worlds), np.nan)
    at = arm.parts["claims"]["claimed"].sel(instrument=instrument, kind=kind, stage=stage)
    return np.asarray(at.values, float)


def counts(arm: Arm, instrument: str, kind: str, stage: str) -> dict[str, tuple[int, int]]:
    """Count, by verdict of the answers, the runs with a claim and all runs.

    Runs whose claims were not saved are not counted.
    """
    claimed = claims_of(arm, instrument, kind, stage)
    if stage == UNTRAINED:
        verdict = np.zeros(len(claimed))
    else:
        verdict = np.asarray(arm.parts["stages"][kind].sel(stage=stage).values, float)
    found = {}
    for name, value in VERDICTS.items():
        here = (np.isnan(verdict) if name == "open" else verdict == value) & np.isfinite(claimed)
        found[name] = (int((claimed[here] == 1).sum()), int(here.sum()))
    return found


def claims(arms: Mapping[str, Arm]) -> list[str]:
    """Return the table of claims by arm, beside the verdicts of the answers."""
    lines = [
        "Claims of the instruments. A cell is the number of runs with the claim, of the runs for "
        "which the answers say that the claim is true (yes), open or false (no). Untrained models "
        "count as no. Runs whose claims were not saved are not counted.",
        "",
        "| arm | instrument | stage | "
        + " | ".join(f"{kind}: {word}" for kind in ("grounded", "factors") for word in VERDICTS)
        + " |",
        "|---" * 9 + "|",
    ]
    for name, arm in arms.items():
        for instrument in FOLLOWED:
            for stage in (UNTRAINED, *map(str, arm.parts["stages"]["stage"].values)):
                found = [counts(arm, instrument, kind, stage) for kind in ("grounded", "factors")]
                cells = [f"{k} of {n}" if n else "-" for one in found for k, n in one.values()]
                lines.append(f"| {name} | {instrument} | {stage} | {' | '.join(cells)} |")
    return lines
