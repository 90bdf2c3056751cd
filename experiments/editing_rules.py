"""The decision rules of `editing.py`, for the saved results of an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from components_rules import at_stage, enough, known, over, rule, too_few
from reasoning_or_shortcut_arms import Arm
from scipy.stats import spearmanr

from implicit_reasoning.analysis.claims import MAX_UPPER_BOUND, MIN_CLUSTERS, MIN_LOWER_BOUND
from implicit_reasoning.analysis.editing.knowledge_editing import MEMIT, RANDOM, ROME, STATE
from implicit_reasoning.worlds import ROLES

STAGES = ("memorised", "half", "end")
ROLE_GROUPS = {"I": "id", "O": "ood", "C": "cold"}
HOPS = ("first hop", "second hop")
SPECIFIC = ("same entity", "same relation", "locality")
UNDONE = ("efficacy", *HOPS, "locality")
EFFICACY = {"share": "efficacy", "back": "back_efficacy", "in_sequence": "in_sequence_efficacy"}
"""The output with the efficacy of other scores, whose interval is that of yes-or-no outcomes."""

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


class Verdict(NamedTuple):
    """A rule about runs, and its answer for an arm.

    Attributes:
      holds: [run], 1 if the rule holds in a run, and 0 if it fails.
      answer: the answer for the arm: yes, no, open or too few runs.
      missing: the number of runs in which a number is missing, so that the rule fails.
    """

    holds: np.ndarray
    answer: str
    missing: int

    def __str__(self) -> str:
        count = f"{int(np.nansum(self.holds))} of {len(self.holds)}"
        return f"{count}: {self.answer.partition(' (')[0]}{missing_text(self.missing)}"


def verdict(holds: np.ndarray, *numbers: Ends) -> Verdict:
    """Answer a rule for an arm.

    Args:
      holds: [run], whether the rule holds.
      numbers: the numbers that the rule needs.
    """
    return Verdict(*rule(holds), count_missing(*numbers))


def high(ends: Ends) -> Verdict:
    """Answer the rule that the lower end is at least .8."""
    return verdict(ends.is_high, ends)


def count_missing(*numbers: Ends) -> int:
    """Return the number of runs in which one of some numbers, or its interval, is missing."""
    gaps = [np.isnan(one.low) | np.isnan(one.high) for one in numbers]
    return int(np.any(gaps, axis=0).sum())


def missing_text(missing: int) -> str:
    """Return the number of runs without a number, to write after an answer."""
    return f" ({missing} missing)" if missing else ""


def stages_of(arm: Arm) -> tuple[str, ...]:
    """Return the stages of an arm in the order of the median step at which its runs reach them.

    `end` is the last one. A stage that no run reaches is the one before it.
    """
    reached = arm.parts["stages"]["reached"]

    def median(stage: str) -> float:
        steps = reached.sel(stage=stage).values
        there = steps[np.isfinite(steps)]
        return float(np.median(there)) if len(there) else np.inf

    return (*sorted(STAGES[:-1], key=median), STAGES[-1])


def ends_of(part: xr.Dataset, name: str, **at: object) -> Ends:
    """Return an output of every run, at some labels."""
    there = np.isfinite(known(part, name))
    arrays = (part[f"{name}{end}"].where(there).sel(at) for end in ("", "_low", "_high"))
    return Ends(*(np.asarray(array.values, float) for array in arrays))


def ends_of_score(part: xr.Dataset, score: str, name: str = "share", **at: object) -> Ends:
    """Return a score of every run, at some labels.

    Args:
      part: the results of an instrument.
      score: the score.
      name: the output with the scores.
      at: labels of other dimensions.
    """
    if score == "efficacy":
        return ends_of(part, EFFICACY[name], **at)
    return ends_of(part, name, score=score, **at)


def share(arm: Arm, score: str, *, editor: str = ROME, stage: str = "end", role: str = "I") -> Ends:
    """Return a score of every run at a stage, for facts of one role.

    The numbers are nan if the arm has no facts of the role, or was not edited in this way. The
    locality of `memit` is that of one model, and has no interval.
    """
    part = at_stage(arm, "edits", stage)
    group = ROLE_GROUPS[role]
    if group not in part["group"] or editor not in part["editor"]:
        return Ends(*(np.full(len(arm.worlds), np.nan) for _ in range(3)))
    if editor == MEMIT and score == "locality":
        return of_one_model(part.sel(editor=editor, group=group, score=score), "share")
    return ends_of_score(part, score, editor=editor, group=group)


def of_one_model(part: xr.Dataset, name: str) -> Ends:
    """Return an output that is equal for all edits that count, without an interval."""
    value = np.asarray(part[name].where(part[f"{name}_n"] > 0).values, float)
    return Ends(value, *(np.full(len(value), np.nan) for _ in range(2)))


def sign(difference: np.ndarray, arm: Arm, words: Sequence[str] = ("more", "less")) -> str:
    """Return the first word if the interval over worlds is above 0, the second if it is below."""
    if few := too_few_numbers(difference, arm):
        return few
    found = over(difference, arm)
    return words[0] if found.low > 0 else words[1] if found.high < 0 else "open"


def too_few_numbers(values: np.ndarray, arm: Arm) -> str:
    """Return what is said if too few runs have a number; empty if enough runs have one."""
    if not enough(arm):
        return too_few(arm)
    there = int(np.isfinite(values).sum())
    return f"too few runs ({there})" if there < len(arm.worlds) - 1 else ""


def follows(ends: Ends) -> str:
    """Return whether prompts follow, by counts of runs: yes, no, open or too few runs."""
    above, below = rule(ends.is_high), rule(ends.is_low)
    said = "yes" if above.answer == "yes" else "no" if below.answer == "yes" else "open"
    if "too few" in above.answer:
        said = "too few runs"
    counts = f"{int(above.holds.sum())} yes, {int(below.holds.sum())} no"
    return f"{counts}: {said}{missing_text(count_missing(ends))}"


def specific(arm: Arm, editor: str = ROME) -> Verdict:
    """Ask rule 1 (d): whether other prompts keep their answers."""
    found = [share(arm, score, editor=editor) for score in SPECIFIC]
    return verdict(np.all([ends.is_high for ends in found], axis=0), *found)


def nulls_do_nothing(arm: Arm) -> Verdict:
    """Ask rule 1 (e): whether random changes have no consequences."""
    found = [share(arm, score, editor=RANDOM) for score in ("efficacy", *HOPS)]
    return verdict(np.all([ends.is_low for ends in found], axis=0), *found)


def by_chains(arm: Arm, score: str) -> np.ndarray:
    """Return Spearman's correlation of a hop with the number of chains, of every run (1 g).

    The edits are those of I facts. A run is nan if fewer than 20 edits count, or if all have equal
    shares or equal numbers of chains.
    """
    found = []
    for chains, shares in counted_edits(arm, score):
        missing = len(chains) < MIN_CLUSTERS or is_constant(chains, shares)
        found.append(np.nan if missing else float(spearmanr(chains, shares)[0]))
    return np.array(found)


def chains_matter(arm: Arm, score: str) -> str:
    """Ask rule 1 (g): whether facts in more training chains follow more, or less."""
    rank = by_chains(arm, score)
    pairs = [pair for pair in counted_edits(arm, score) if len(pair[0]) >= MIN_CLUSTERS]
    constant = sum(is_constant(*pair) for pair in pairs)
    if enough(arm) and too_few_numbers(rank, arm) and constant:
        return f"no variation in {constant} runs"
    return sign(rank, arm)


def counted_edits(arm: Arm, score: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the numbers of chains and the shares of the edits of I facts that count, by run."""
    runs = zip(*edits_of(arm, score, "I"), strict=True)
    return [(chains[np.isfinite(of)], of[np.isfinite(of)]) for chains, of in runs]


def is_constant(chains: np.ndarray, shares: np.ndarray) -> bool:
    """Return whether all edits have equal numbers of chains, or equal shares."""
    return bool(np.ptp(chains) == 0 or np.ptp(shares) == 0)


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
    stored: Mapping[str, Verdict]


def reasons(arm: Arm) -> Reasons:
    """Ask question 4 of the runs of an arm."""
    beyond = share(arm, "first hop").mean - share(arm, "first hop", editor=STATE).mean
    part = at_stage(arm, "edits", "end").sel(group="id")
    layer = int(part["layer"].values[0])
    claimed = at_stage(arm, "claims", "end")["claimed"]
    needed = [share(arm, score) for score in ("efficacy", *HOPS, "locality")]
    stored = {
        str(kind): verdict(claimed.sel(claim=kind).values, *needed)
        for kind in claimed["claim"].values
    }
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
    if few := too_few_numbers(difference, arm):
        return few
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
    own_place: Verdict


def through_chains(arm: Arm) -> Chained:
    """Ask rule 4 (e): whether chains read the fact from a place of their own."""
    part = arm.parts["through_chains"].isel(group=0)
    taught = ends_of(part, "taught")
    others, fact, locality = (
        ends_of_score(part, score) for score in ("second hop", "efficacy", "locality")
    )
    read = {str(one): ends_of(part, "read", reader=one) for one in part["reader"].values}
    holds = taught.is_high & others.is_high & fact.is_low
    own = verdict(holds, taught, others, fact)
    return Chained(taught, others, fact, locality, read, own)


def at_place(arm: Arm, place: str, score: str, editor: str = ROME) -> Ends:
    """Return a score of edits at a place, of every run."""
    part = arm.parts["places"].isel(group=0)
    return ends_of_score(part, score, place=place, editor=editor)


def beside_rome(arm: Arm, editor: str, score: str) -> str:
    """Return whether an editor is better or worse than rank-one edits (question 6)."""
    difference = share(arm, score, editor=editor).mean - share(arm, score).mean
    return sign(difference, arm, ("better", "worse"))


def back(arm: Arm, score: str) -> Ends:
    """Return a score of edits that are edited back, of every run."""
    return ends_of_score(arm.parts["sequences"].isel(group=0), score, "back")


def undone(arm: Arm) -> Verdict:
    """Ask question 7: whether edits can be undone."""
    found = [back(arm, score) for score in UNDONE]
    return verdict(np.all([ends.is_high for ends in found], axis=0), *found)


def in_sequence(arm: Arm, score: str, count: int | None = None) -> Ends:
    """Return a score of the edits made so far, of every run, after a number of edits.

    The default is the largest number of edits. The interval of locality is over prompts.
    """
    part = arm.parts["sequences"].isel(group=0)
    last = int(part["count"].values[-1]) if count is None else count
    if score == "locality":
        return ends_of(part, "locality", count=last)
    return ends_of_score(part, score, "in_sequence", count=last)


def last_known(arm: Arm, score: str, count: int) -> np.ndarray:
    """Return a score after some edits, of every run, whatever the number of edits that count."""
    part = arm.parts["sequences"].isel(group=0).sel(count=count)
    name = "locality" if score == "locality" else "in_sequence"
    part = part if name == "locality" else part.sel(score=score)
    return np.asarray(part[name].where(part[f"{name}_n"] > 0).values, float)
