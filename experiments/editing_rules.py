"""The decision rules of `editing.py`, for the saved results of an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from components_rules import Rule, at_stage, enough, known, over, rule, too_few
from reasoning_or_shortcut_arms import Arm
from scipy.stats import spearmanr

from implicit_reasoning.analysis.claims import MAX_UPPER_BOUND, MIN_CLUSTERS, MIN_LOWER_BOUND
from implicit_reasoning.analysis.editing.knowledge_editing import RANDOM, ROME, STATE
from implicit_reasoning.worlds import ROLES

STAGES = ("memorised", "half", "end")
ROLE_GROUPS = {"I": "id", "O": "ood", "C": "cold"}
HOPS = ("first hop", "second hop")
SPECIFIC = ("same entity", "same relation", "locality")
UNDONE = ("efficacy", *HOPS, "locality")
SAME = 0.1
BINS = {"0": (0, 0), "1 - 2": (1, 2), "3 - 4": (3, 4), "5 - 6": (5, 6), "7 and more": (7, np.inf)}
"""Bins of the number of training chains that use a fact at a hop."""


class Ends(NamedTuple):
    """A number of every run, with its interval; nan where too few edits count."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def is_high(self) -> np.ndarray:
        """Whether the lower end supports a positive claim."""
        return np.nan_to_num(self.low, nan=-1) >= MIN_LOWER_BOUND

    @property
    def is_low(self) -> np.ndarray:
        """Whether the upper end supports a negative claim."""
        return np.nan_to_num(self.high, nan=np.inf) <= MAX_UPPER_BOUND


def ends_of(part: xr.Dataset, name: str, **at: object) -> Ends:
    """Return an output of every run, at some labels."""
    there = np.isfinite(known(part, name))
    arrays = (part[f"{name}{end}"].where(there).sel(at) for end in ("", "_low", "_high"))
    return Ends(*(np.asarray(array.values, float) for array in arrays))


def share(arm: Arm, score: str, *, editor: str = ROME, stage: str = "end", role: str = "I") -> Ends:
    """Return a score of every run at a stage, for facts of one role.

    The numbers are nan if the arm has no facts of the role, or was not edited in this way.
    """
    part = at_stage(arm, "edits", stage)
    group = ROLE_GROUPS[role]
    if group not in part["group"] or editor not in part["editor"]:
        return Ends(*(np.full(len(arm.worlds), np.nan) for _ in range(3)))
    return ends_of(part, "share", score=score, editor=editor, group=group)


def sign(difference: np.ndarray, arm: Arm, words: Sequence[str] = ("more", "less")) -> str:
    """Return the first word if the interval over worlds is above 0, the second if it is below."""
    there = int(np.isfinite(difference).sum())
    if not enough(arm) or there < len(arm.worlds) - 1:
        return too_few(arm) if not enough(arm) else f"too few runs ({there})"
    found = over(difference, arm)
    return words[0] if found.low > 0 else words[1] if found.high < 0 else "open"


def follows(ends: Ends) -> str:
    """Return whether prompts follow, by counts of runs: yes, no or open."""
    high, low = rule(ends.is_high), rule(ends.is_low)
    if "too few" in high.answer:
        return high.answer
    said = "yes" if high.answer == "yes" else "no" if low.answer == "yes" else "open"
    return f"{int(high.holds.sum())} yes, {int(low.holds.sum())} no: {said}"


def specific(arm: Arm, editor: str = ROME) -> Rule:
    """Ask rule 1 (d): whether other prompts keep their answers."""
    return rule(np.all([share(arm, score, editor=editor).is_high for score in SPECIFIC], axis=0))


def nulls_do_nothing(arm: Arm) -> Rule:
    """Ask rule 1 (e): whether random changes have no consequences."""
    scores = ("efficacy", *HOPS)
    return rule(np.all([share(arm, score, editor=RANDOM).is_low for score in scores], axis=0))


def by_chains(arm: Arm, score: str) -> np.ndarray:
    """Return Spearman's correlation of a hop with the number of chains, of every run (1 g).

    The edits are those of I facts. A run is nan if fewer than 20 edits count, or all are equal.
    """
    found = []
    for chains, shares in zip(*edits_of(arm, score, "I"), strict=True):
        there = np.isfinite(shares)
        x, y = chains[there], shares[there]
        constant = len(x) < MIN_CLUSTERS or np.ptp(x) == 0 or np.ptp(y) == 0
        found.append(np.nan if constant else float(spearmanr(x, y)[0]))
    return np.array(found)


def edits_of(arm: Arm, score: str, role: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of chains at a hop and the share of every edit, [run, edit], at the end.

    Args:
      arm: the arm.
      score: the hop.
      role: the role of the facts; None for all roles. Edits of other roles are nan.
    """
    part = at_stage(arm, "edits", "end")
    hop = {"first hop": "first", "second hop": "second"}[score]
    chains = part["chains"].sel(hop=hop).transpose("run", "edit").values
    shares = part["by_edit"].sel(score=score).transpose("run", "edit").values
    if role is not None:
        of_role = part["role"].transpose("run", "edit").values == ROLES.index(role)
        shares = np.where(of_role, shares, np.nan)
    return chains, shares


def binned(arm: Arm, score: str) -> dict[str, np.ndarray]:
    """Return the mean share of every run by the number of chains of the fact, of all roles.

    A run is nan in a bin with fewer than 10 edits. The bins support no claim.
    """
    chains, shares = edits_of(arm, score)
    found = {}
    for name, (low, high) in BINS.items():
        inside = (chains >= low) & (chains <= high) & np.isfinite(shares)
        count = inside.sum(1)
        mean = np.where(inside, shares, 0).sum(1) / np.maximum(count, 1)
        found[name] = np.where(count >= MIN_CLUSTERS // 2, mean, np.nan)
    return found


def over_training(arm: Arm, score: str) -> np.ndarray:
    """Return the difference of question 2, of every run."""
    end, first = (share(arm, score, stage=stage).mean for stage in ("end", "memorised"))
    return end - first


def paired(arm: Arm, other: Arm, score: str) -> tuple[np.ndarray, Arm]:
    """Return a score of an arm minus that of another arm, by world and initialization.

    Returns:
      The differences of the runs that both arms have, and an arm with these runs.
    """
    seeds = [
        list(zip(one.worlds.tolist(), one.inits.tolist(), strict=True)) for one in (arm, other)
    ]
    both = [pair for pair in seeds[0] if pair in seeds[1]]
    values = [
        share(one, score).mean[[pairs.index(pair) for pair in both]]
        for one, pairs in zip((arm, other), seeds, strict=True)
    ]
    columns = np.array(both, int).reshape(-1, 2).T
    return values[0] - values[1], Arm({}, columns[0], columns[1])


class Reasons(NamedTuple):
    """Numbers and answers of question 4; arrays [run]."""

    beyond_state: np.ndarray
    overwritten: str
    new_decoded: Ends
    read: Ends
    read_elsewhere: Ends
    stored: Mapping[str, Rule]


def reasons(arm: Arm) -> Reasons:
    """Ask question 4 of the runs of an arm."""
    beyond = share(arm, "first hop").mean - share(arm, "first hop", editor=STATE).mean
    part = at_stage(arm, "edits", "end").sel(group="id")
    layer = int(part["layer"].values[0])
    claimed = at_stage(arm, "claims", "end")["claimed"]
    stored = {str(kind): rule(claimed.sel(claim=kind).values) for kind in claimed["claim"].values}
    return Reasons(
        beyond,
        near_zero(beyond, arm),
        ends_of(part, "decoded", tail="new", layer=layer),
        ends_of(part, "read", use="second hop"),
        ends_of(part, "read", use="other facts"),
        stored,
    )


def near_zero(difference: np.ndarray, arm: Arm) -> str:
    """Return whether the interval over worlds is between -.1 and .1."""
    if not enough(arm) or np.isfinite(difference).sum() < len(arm.worlds) - 1:
        return too_few(arm)
    found = over(difference, arm)
    return "yes" if found.low > -SAME and found.high < SAME else "open"


def first_hop_by_state(arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Return the first hop of edits whose state codes the new tail, and of others, by run.

    The state is that right after the edited block, at the end. Facts of all roles count. A run is
    nan if fewer than 10 edits count.
    """
    part = at_stage(arm, "edits", "end")
    shares = part["by_edit"].sel(score="first hop").transpose("run", "edit").values
    decoded = part["new_decoded"].isel(layer=0).transpose("run", "edit").values
    found = []
    for value in (1, 0):
        inside = (decoded == value) & np.isfinite(shares)
        mean = np.where(inside, shares, 0).sum(1) / np.maximum(inside.sum(1), 1)
        found.append(np.where(inside.sum(1) >= MIN_CLUSTERS // 2, mean, np.nan))
    return found[0], found[1]


class Chained(NamedTuple):
    """Numbers and the answer of rule 4 (e); arrays [run]."""

    taught: Ends
    others: Ends
    fact: Ends
    locality: Ends
    read: Mapping[str, Ends]
    own_place: Rule


def through_chains(arm: Arm) -> Chained:
    """Ask rule 4 (e): whether chains read the fact from a place of their own."""
    part = arm.parts["through_chains"].isel(group=0)
    taught = ends_of(part, "taught")
    others, fact, locality = (
        ends_of(part, "share", score=score) for score in ("second hop", "efficacy", "locality")
    )
    read = {str(one): ends_of(part, "read", reader=one) for one in part["reader"].values}
    own = rule(taught.is_high & others.is_high & fact.is_low)
    return Chained(taught, others, fact, locality, read, own)


def at_place(arm: Arm, place: str, score: str, editor: str = ROME) -> Ends:
    """Return a score of edits at a place, of every run."""
    part = arm.parts["places"].isel(group=0)
    return ends_of(part, "share", place=place, score=score, editor=editor)


def beside_rome(arm: Arm, editor: str, score: str) -> str:
    """Return whether an editor is better or worse than rank-one edits (question 6)."""
    difference = share(arm, score, editor=editor).mean - share(arm, score).mean
    return sign(difference, arm, ("better", "worse"))


def back(arm: Arm, score: str) -> Ends:
    """Return a score of edits that are edited back, of every run."""
    return ends_of(arm.parts["sequences"].isel(group=0), "back", score=score)


def undone(arm: Arm) -> Rule:
    """Ask question 7: whether edits can be undone."""
    return rule(np.all([back(arm, score).is_high for score in UNDONE], axis=0))


def in_sequence(arm: Arm, score: str, count: int | None = None) -> Ends:
    """Return a score of the edits made so far, of every run, after a number of edits.

    The default is the largest number of edits.
    """
    part = arm.parts["sequences"].isel(group=0)
    last = int(part["count"].values[-1]) if count is None else count
    return ends_of(part, "in_sequence", score=score, count=last)
