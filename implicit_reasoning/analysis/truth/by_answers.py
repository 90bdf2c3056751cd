"""Decide from the answers of a trained model whether `factors` and `grounded` are true of it.

The mechanism of a trained model is not written into its weights, so its answers are the truth for
the claims of instruments. The rules here were fixed before any model was measured. They use probe
rows only, so they need no intervention on the model and no checkpoint other than the one to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, Claim, Mechanism
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import Interval, clustered_interval
from implicit_reasoning.training.evaluation import Evaluation
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import shortcut_correctness

ABOVE_RULES = 0.05
"""The lower end of an accuracy must be at least this much above the accuracy of the best rule."""

SHARE = 0.8
"""An accuracy must be at least this share of the accuracy that it is compared with."""

RULES_WITHOUT_BRIDGES = ("modal_r2", "modal_e1_r2", "modal_r1_r2")
"""Rules that do not group prefixes by their bridge, so they need no shared code of prefixes."""


class Judged(NamedTuple):
    """The truth of a claim, and the numbers that it follows from.

    Attributes:
      holds: whether the claim is true; None if it is open.
      accuracy: the accuracy on the rows that decide, with its 95% interval, clustered by bridge.
      compared: the accuracy on the rows for comparison, in the same form.
      rule: the name of the best rule on the rows that decide.
      by_rule: the accuracy of this rule on these rows.
    """

    holds: bool | None
    accuracy: Interval
    compared: Interval
    rule: str
    by_rule: float


def grounded(dataset: Dataset, correct: Bool[np.ndarray, " probe"]) -> Judged:
    """Decide whether the model's code of the bridge is set by the atomic fact.

    The training chains do not identify the bridge of the chains in `test_c0`, and only the atomic
    fact does. Chains in `test_c2` have the same number of training chains per fact, and these
    chains identify the bridge. Let `threshold` be the accuracy of the best rule on `test_c0`, of
    all rules in `worlds.shortcuts.RULES` that apply, plus `ABOVE_RULES`. The claim is

    - true if the lower end of c0 is at least `threshold`, and c0 is at least `SHARE` times c2;
    - false if the upper end of c0 is below `threshold`, or if c0 - `SHARE` * c2 is negative at
      the upper end of its interval;
    - open otherwise, and if c0 or c2 has fewer than `MIN_CLUSTERS` bridges.

    The interval of the difference combines the intervals of c0 and c2, which have no bridge in
    common.

    Args:
      dataset: a dataset of the task `ladder`.
      correct: for each probe row, whether the model answers it correctly; in the order of
        `np.flatnonzero(dataset.probe)`, as `training.evaluation.ProbeMetrics.correct` returns it.

    Raises:
      InputError: the dataset has no split `test_c0` or `test_c2`, or `correct` has another length.

    Source: the rule was fixed for this project; the interval of the difference is that of Zou and
    Donner 2008, "Construction of confidence intervals about effect measures: a simple approach".
    """
    c0, c2 = (_accuracy(dataset, correct, name) for name in ("test_c0", "test_c2"))
    rule, by_rule = _best_rule(dataset, "test_c0")
    threshold = by_rule + ABOVE_RULES
    holds: bool | None = None
    if min(c0.n_clusters, c2.n_clusters) >= MIN_CLUSTERS:
        if c0.low >= threshold and c0.mean >= SHARE * c2.mean:
            holds = True
        elif c0.high < threshold or _upper_end_of_difference(c0, c2) < 0:
            holds = False
    return Judged(holds, c0, c2, rule, by_rule)


def factors(dataset: Dataset, correct: Bool[np.ndarray, " probe"]) -> Judged:
    """Decide whether held-out chains follow a code that the prefixes of one bridge share.

    A model that looks up whole chains answers a held-out chain no better than a rule that does not
    group prefixes by bridge (`RULES_WITHOUT_BRIDGES`). Rules that do group them, such as row
    completion, are not compared: a model that follows such a rule has a shared code, which is what
    the claim says. For the same reason, the rows that no rule answers do not decide: chains do not
    determine their bridge, so these rows test whether the code is grounded. Let `threshold` be the
    accuracy of the best of these rules on `test_ii`, plus `ABOVE_RULES`. The claim is

    - true if the lower end of test_ii is at least `threshold`, and test_ii is at least `SHARE`
      times train_ii;
    - false if the upper end of test_ii is below `threshold`;
    - open otherwise, because some prefixes then share a code and others do not, and if `test_ii`
      has fewer than `MIN_CLUSTERS` bridges.

    Args:
      dataset: a dataset of the task `ladder` or `composition`.
      correct: as for `grounded`.

    Raises:
      InputError: the dataset has no split `test_ii` or `train_ii`, or `correct` has another length.

    Source: the rule was fixed for this project, by analogy with `grounded`.
    """
    held_out, trained = (_accuracy(dataset, correct, name) for name in ("test_ii", "train_ii"))
    rule, by_rule = _best_rule(dataset, "test_ii", RULES_WITHOUT_BRIDGES)
    threshold = by_rule + ABOVE_RULES
    holds: bool | None = None
    if held_out.n_clusters >= MIN_CLUSTERS:
        if held_out.low >= threshold and held_out.mean >= SHARE * trained.mean:
            holds = True
        elif held_out.high < threshold:
            holds = False
    return Judged(holds, held_out, trained, rule, by_rule)


def mechanism_by_answers(dataset: Dataset, correct: Bool[np.ndarray, " probe"]) -> Mechanism:
    """Return the mechanism of a trained model of the ladder, for `claims.judge`.

    Only `factors` and `grounded` can be true or false. Claims of all other kinds are open.

    Args:
      dataset: a dataset of the task `ladder`.
      correct: as for `grounded`.

    Raises:
      InputError: as for `grounded` and `factors`.
    """
    judged = {
        Claim("factors", "e2"): factors(dataset, correct).holds,
        Claim("grounded", "e2"): grounded(dataset, correct).holds,
    }
    true, open_ = (
        frozenset(claim for claim, holds in judged.items() if holds is value)
        for value in (True, None)
    )
    return Mechanism(true, open_, frozenset({"factors", "grounded"}))


def correct_probes(
    subject: Subject, steps: Sequence[int] | None = None
) -> Bool[np.ndarray, "step probe"]:
    """Return which probe rows a run answers correctly at some checkpoints.

    All checkpoints share one compiled program.

    Args:
      subject: a run, or a model with data and checkpoints.
      steps: the checkpoints; None evaluates all.
    """
    evaluation = Evaluation(subject.model, subject.dataset)
    found = []
    for step in subject.steps if steps is None else steps:
        # Indexing numpy arrays compiles nothing.
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[0], subject.params((step,)))
        found.append(evaluation.correct(evaluation.launch(params)))
    return np.stack(found)


def _accuracy(dataset: Dataset, correct: Bool[np.ndarray, " probe"], split: str) -> Interval:
    """Return the accuracy on the probes of a split, with its interval clustered by bridge."""
    probes = np.flatnonzero(dataset.probe)
    if len(correct) != len(probes):
        raise InputError(
            f"`correct` has {len(correct)} values, and the dataset has {len(probes)} probe rows; "
            "they must be equal"
        )
    if split not in dataset.splits:
        raise InputError(
            f"the truth of this claim needs the split {split!r}; this dataset has "
            f"{', '.join(dataset.splits)}"
        )
    rows = dataset.probes(split)
    return clustered_interval(
        correct[np.searchsorted(probes, rows)], clusters_of(dataset, rows).astype(np.int64)
    )


def _best_rule(
    dataset: Dataset, split: str, rules: Sequence[str] | None = None
) -> tuple[str, float]:
    """Return the name and the accuracy of the best of some rules on the probes of a split."""
    by_rule = shortcut_correctness(dataset, (split,))
    accuracy = {name: float(by_rule[name][split].mean()) for name in rules or by_rule}
    best = max(accuracy, key=lambda name: accuracy[name])
    return best, accuracy[best]


def _upper_end_of_difference(one: Interval, other: Interval) -> float:
    """Return the upper end of the interval of `one - SHARE * other`, which are independent."""
    spread = np.hypot(one.high - one.mean, SHARE * (other.mean - other.low))
    return float(one.mean - SHARE * other.mean + spread)
