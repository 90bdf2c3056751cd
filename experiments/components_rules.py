"""The decision rules of `components.py`, for the saved results of an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from reasoning_or_shortcut_arms import FEWEST, MOST, Arm, by_count

from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MAX_UPPER_BOUND,
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    MIN_TIMES_CHANCE,
)
from implicit_reasoning.analysis.components.estimates import ESTIMATES
from implicit_reasoning.analysis.components.triggers import specificity
from implicit_reasoning.statistics import Interval, mean_over_seeds

STAGES = ("untrained", "memorised", "half", "end")
OVERLAP_COUNT = 64
RELIABLE, MISLEADING = 0.9, 0.8
COMPLETE = 0.01
COST = 0.1
BRIDGES = ("e2", "cluster")


class Rule(NamedTuple):
    """A rule about runs, and its answer for an arm.

    Attributes:
      holds: [run], 1 if the rule holds in a run, and 0 if it fails.
      answer: the answer for the arm: yes, no, open or too few runs.
    """

    holds: np.ndarray
    answer: str

    def __str__(self) -> str:
        count = f"{int(np.nansum(self.holds))} of {len(self.holds)}"
        return f"{count}: {self.answer.partition(' (')[0]}"


def rule(holds: np.ndarray | xr.DataArray) -> Rule:
    """Answer a rule for an arm, from the runs in which it holds."""
    values = np.asarray(holds, float)
    true, false = int((values == 1).sum()), int((values == 0).sum())
    return Rule(values, by_count(true, false, len(values)))


def enough(arm: Arm) -> bool:
    """Return whether an arm has enough runs for an answer."""
    return len(arm.worlds) >= MOST + FEWEST


def too_few(arm: Arm) -> str:
    """Return what is said of an arm with too few runs."""
    return f"too few runs ({len(arm.worlds)})"


def over(values: np.ndarray | xr.DataArray, arm: Arm) -> Interval:
    """Return the mean over runs, with the interval over worlds."""
    return mean_over_seeds(np.asarray(values, float), arm.worlds)


def at_stage(arm: Arm, node: str, stage: str) -> xr.Dataset:
    """Return the results of an instrument at a stage; nan for runs that do not reach it."""
    part, rows = arm.parts[node], []
    for number, step in enumerate(arm.parts["stages"]["reached"].sel(stage=stage).values):
        one = part.isel(run=number)
        there = np.isfinite(step)
        rows.append(
            one.sel(step=step, drop=True) if there else one.isel(step=0, drop=True).where(False)
        )
    return xr.concat(rows, "run")


def known(part: xr.Dataset, name: str) -> xr.DataArray:
    """Return the means of an output, nan if they are over too few clusters.

    If all examples count, the number of clusters is that of the group.
    """
    clusters = f"{name}_n" if f"{name}_n" in part else "n_states"
    return part[name].where(part[clusters] >= MIN_CLUSTERS)


# 1. The induction bump.


class Bump(NamedTuple):
    """Numbers and rules of question 1; arrays [run]."""

    head: np.ndarray
    attention: xr.Dataset
    times: Mapping[str, np.ndarray]
    is_induction: np.ndarray
    together: Rule
    loss_drops: Rule
    previous_first: Rule


def measured_steps(arm: Arm, node: str, name: str, number: int, at: Mapping[str, object]) -> tuple:
    """Return the measured steps of a run, and an output at these steps, [step, ...]."""
    part = arm.parts[node][name].isel(run=number).sel(at).transpose("step", ...)
    there = np.isfinite(part.values.reshape(len(part), -1)).any(1)
    return part["step"].values[there], part.values[there]


def half_time(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the step at which a curve first crosses the middle of its first and last value.

    The curve is interpolated linearly in log(step + 1). The result is nan if the curve does not
    rise.
    """
    half = (values[0] + values[-1]) / 2
    if not half > values[0]:
        return np.nan
    first = int(np.argmax(values >= half))
    scale = np.log(steps[first - 1 : first + 1] + 1.0)
    part = (half - values[first - 1]) / (values[first] - values[first - 1])
    return float(np.exp(scale[0] + part * (scale[1] - scale[0])) - 1)


def bump(arm: Arm) -> Bump:
    """Ask question 1 of the runs of an arm."""
    part = arm.parts["head_scores"]
    group = str(part["group"].values[-1])
    at = {"group": group}
    times: dict[str, list[float]] = {"accuracy": [], "induction": [], "previous token": []}
    heads, found, drops = [], [], []
    for number in range(len(arm.worlds)):
        steps, right = measured_steps(arm, "head_scores", "correct", number, at)
        _, loss = measured_steps(arm, "head_scores", "loss", number, at)
        curves = {
            target: measured_steps(
                arm, "head_scores", "attention", number, {**at, "target": target}
            )[1]
            for target in ("induction", "previous token")
        }
        block, head = np.unravel_index(
            curves["induction"][-1].argmax(), curves["induction"][0].shape
        )
        heads.append((int(block), int(head)))
        own = curves["induction"][:, block, head]
        times["accuracy"].append(half_time(steps, right))
        times["induction"].append(half_time(steps, own))
        highest = curves["previous token"].reshape(len(steps), -1).max(1)
        times["previous token"].append(half_time(steps, highest))
        lengths = np.diff(np.log(steps + 1.0))
        drop, rise = (np.diff(loss) / lengths).argmin(), (np.diff(own) / lengths).argmax()
        drops.append(abs(int(drop) - int(rise)) <= 1)
        last = part.isel(run=number, block=block, head=head)
        found.append(last.sel(step=steps[-1], target="induction", group=group, drop=True))
    attention = xr.concat(found, "run", coords="minimal", compat="override")
    low, null = attention["attention_low"], attention["other_keys_high"]
    is_induction = ((low >= MAJORITY) & (low > null)).values
    at_times = {name: np.array(values) for name, values in times.items()}
    ratio = at_times["induction"] / at_times["accuracy"]
    return Bump(
        np.array(heads),
        attention,
        at_times,
        is_induction,
        rule(is_induction & (ratio >= 0.5) & (ratio <= 2)),
        rule(np.array(drops)),
        rule(at_times["previous token"] < at_times["induction"]),
    )


# 3. One store for both hops?


def overlap(arm: Arm, stage: str) -> tuple[xr.DataArray, xr.DataArray, str]:
    """Return the overlap and its null in each run, and the answer to question 3 at a stage."""
    part = at_stage(arm, "fact_neurons", stage).isel(group=0, drop=True)
    counts = part["count"].values
    part = part.sel(count=counts[counts <= OVERLAP_COUNT].max(), drop=True)
    own, null = (known(part, f"{name}overlap_by_count") for name in ("", "null_"))
    return own, null, shared_store(own, null, arm)


def shared_store(own: xr.DataArray, null: xr.DataArray, arm: Arm) -> str:
    """Return the answer to question 3 for the overlaps of the runs of an arm."""
    if np.isfinite(own.values).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(own.values).sum())})"
    share, above = over(own, arm), over(own - null, arm)
    if share.low > MAJORITY:
        return "one store"
    if above.low > 0:
        return "in part"
    return "separate" if above.low <= 0 <= above.high < 0.1 else "open"


# 4. Where do gradients mislead?


def agreement(arm: Arm, stage: str, estimate: str, kind: str) -> np.ndarray:
    """Return the rank correlation of an estimate with exact patching in each run."""
    part = at_stage(arm, "attribution", stage)
    part = part.isel(group=0, drop=True).sel(estimator=estimate, kind=kind, ranked="effect")
    return np.asarray(known(part, "agreement").values, float)


def reliability(values: np.ndarray, arm: Arm) -> str:
    """Return the answer to question 4 for the rank correlations of the runs of an arm."""
    if np.isfinite(values).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(values).sum())})"
    found = over(values, arm)
    return (
        "reliable" if found.low > RELIABLE else "misleading" if found.high < MISLEADING else "open"
    )


def incompleteness(arm: Arm, stage: str) -> np.ndarray:
    """Return the largest mean incompleteness of integrated gradients over layers, by run."""
    part = at_stage(arm, "attribution", stage).isel(group=0, drop=True).sel(estimator=ESTIMATES[-1])
    return np.asarray(known(part, "incompleteness").max("layer").values, float)


# 5. Which heads move what, and when?


class Movers(NamedTuple):
    """Rules of question 5.

    Attributes:
      moved: by variable, whether some head moves it at the end.
      bridge: whether some head moves the bridge or its cluster.
      used: whether a head that does so has the claim `part`.
      before: whether the claim about the bridge comes at or before the stage `half`.
      first: the first measured step with the claim about the bridge, [run].
      untrained: the number of claims at step 0, over all runs.
    """

    moved: Mapping[str, Rule]
    bridge: Rule
    used: Rule
    before: Rule
    first: np.ndarray
    untrained: int


def movers(arm: Arm) -> Movers:
    """Ask question 5 of the runs of an arm."""
    end, start = (at_stage(arm, "claims", stage) for stage in ("end", "untrained"))
    by_variable = {
        str(name): rule((end["moves"].sel(variable=name) == 1).any(("block", "head")))
        for name in end["variable"].values
    }
    heads = (end["moves"].sel(variable=list(BRIDGES)) == 1).any("variable")
    over_time = (arm.parts["claims"]["moves"].sel(variable=list(BRIDGES)) == 1).any(
        ("variable", "block", "head")
    )
    steps = over_time["step"].values
    claimed = over_time.transpose("run", "step").values
    first = np.where(claimed.any(1), steps[claimed.argmax(1)].astype(float), np.nan)
    half = arm.parts["stages"]["reached"].sel(stage="half").values
    return Movers(
        by_variable,
        rule(heads.any(("block", "head"))),
        rule((heads & (end["part"] == 1)).any(("block", "head"))),
        rule(first <= half),
        first,
        int((start["moves"] == 1).sum() + (start["part"] == 1).sum()),
    )


# 6. Neurons that store facts.


def stored(arm: Arm) -> Rule:
    """Ask question 6 of the runs of an arm."""
    return rule(at_stage(arm, "claims", "end")["stores"] > 0)


def fact_keys(arm: Arm, stage: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the share of neurons with a fact as key, and that with permuted facts, by run.

    It is the mean over blocks, at the position with the highest share.
    """
    part = at_stage(arm, "neuron_keys", stage)
    facts = [name for name in part["trigger"].values if specificity(str(name)) == 1]
    shares = part["kinds"].sel(trigger=facts).sum("trigger", skipna=False) / part["n_neurons"]
    null = part["null_kinds"] / part["n_neurons"]
    return shares.mean("block").max("pos"), null.mean("block").max("pos")


# 7. Enrichment at e1.


class Enriched(NamedTuple):
    """Rules of question 7."""

    enriched: Rule
    by_first_mlp: Rule
    needed: Rule


def enrichment(arm: Arm) -> Enriched:
    """Ask question 7 of the runs of an arm."""
    part = at_stage(arm, "enrichment", "end").isel(group=0, drop=True).sel(off="MLPs", drop=True)
    later = part.sel(layer=slice(1, None))
    own, null = (later.sel(whose=whose) for whose in ("own", "another's"))
    on = {"n_off": 0}
    low = own["attributes_low"].where(known(own, "attributes").notnull())
    there = (low > null["attributes_high"]) & (low >= MIN_TIMES_CHANCE * null["attributes"])
    enriched = there.sel(on).any("layer").values
    above = (own["attributes"] - null["attributes"]).sel(layer=1)
    written = (above.sel(n_off=1) <= above.sel(on) / 2).values
    most = int(part["n_off"].values[-1])
    right_low, right_high = (
        part["chain_right_low"].sel(on),
        part["chain_right_high"].sel(n_off=most),
    )
    needed = (right_high < right_low).values
    return Enriched(rule(enriched), *(rule(enriched & holds) for holds in (written, needed)))


# 8. Composition through a shared code.


class Code(NamedTuple):
    """Rules of question 8 at a stage."""

    through: Rule
    needs: Rule


def shared_code(arm: Arm, stage: str) -> Code:
    """Ask the first two rules of question 8 of the runs of an arm."""
    part = at_stage(arm, "composition_progress", stage).sel(group="test_ii")
    there = known(part, "correct").notnull()
    low, high = (part[f"correct_{end}"].where(there) for end in ("low", "high"))
    through = (low.sel(state="restricted") >= MIN_LOWER_BOUND) & (
        high.sel(state="restricted, other bridge") <= MAX_UPPER_BOUND
    )
    return Code(rule(through), rule(high.sel(state="excluded") <= MAX_UPPER_BOUND))


def circuit_first(arm: Arm) -> Rule:
    """Ask whether the restricted accuracy on train_ii is there before the answers to test_ii."""
    right = arm.parts["composition_progress"]["correct"]
    circuit = right.sel(group="train_ii", state="restricted") >= MAJORITY
    answers = right.sel(group="test_ii", state="own") < MAJORITY
    return rule((circuit & answers).any("step"))


def waiting(arm: Arm) -> np.ndarray | None:
    """Return restricted minus own accuracy on test_c0 at the end, by run; None without test_c0."""
    part = at_stage(arm, "composition_progress", "end")
    if "test_c0" not in part["group"].values:
        return None
    right = part["correct"].sel(group="test_c0")
    return np.asarray((right.sel(state="restricted") - right.sel(state="own")).values, float)


# 9. Steering.

NULLS = ("random", "wrong bridge")
FIRST_DIRECTION = "class mean"


def steered(arm: Arm) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the followed share at equal cost by direction, and the higher null, at the end."""
    part = at_stage(arm, "steering", "end")["followed_at"].isel(group=0, drop=True)
    part = part.sel(cost=COST, end="mean", drop=True)
    names = [str(name) for name in part["direction"].values]
    found = {name: np.asarray(part.sel(direction=name).values, float) for name in names}
    null = np.max([found.pop(name) for name in NULLS], axis=0)
    return found, null


def steers(share: np.ndarray, null: np.ndarray, arm: Arm) -> str:
    """Return whether a direction steers."""
    if np.isfinite(share).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(share).sum())})"
    return "yes" if over(share - null, arm).low > 0 and over(share, arm).low > MAJORITY else "no"


def compared(share: np.ndarray, other: np.ndarray, arm: Arm) -> str:
    """Return whether class means, with a share of followed answers, beat another direction."""
    found = over(share - other, arm)
    if np.isfinite(share - other).sum() < MOST + FEWEST:
        return f"too few runs ({int(np.isfinite(share - other).sum())})"
    return "beat" if found.low > 0 else "lose" if found.high < 0 else "open"
