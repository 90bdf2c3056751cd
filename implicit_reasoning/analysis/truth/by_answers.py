"""Decide from the answers of a trained model whether the claims `factors` and `grounded` are true.

The mechanism of a trained model is unknown. The answers to probe rows, which are the rows for
evaluation, therefore decide whether the claims of instruments are true. The rules in this module
were fixed before any model was measured. The rules need no intervention on the model, and only the
answers of the judged checkpoint.
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
    """The truth of a claim, with the accuracies that decide the claim.

    Attributes:
      holds: whether the claim is true; None if the claim is open.
      accuracy: the accuracy on the deciding split, with a 95% interval that is clustered by bridge.
      compared: the accuracy on the split for comparison, with a 95% interval that is clustered by
        bridge.
      rule: the name of the shortcut with the highest accuracy on the deciding split.
      by_rule: the accuracy of this shortcut on the deciding split.
    """

    holds: bool | None
    accuracy: Interval
    compared: Interval
    rule: str
    by_rule: float


def grounded(dataset: Dataset, correct: Bool[np.ndarray, " probe"]) -> Judged:
    """Decide the claim `grounded`: the atomic fact alone sets the representation of the bridge.

    For chains in the split `test_c0`, the training chains do not identify the bridge (e2), so only
    the atomic fact identifies the bridge. For chains in `test_c2`, the same number of training
    chains per fact also identifies the bridge. Let c0 and c2 be the accuracies on the two splits.
    Let `threshold` be `ABOVE_RULES` plus the highest accuracy of a shortcut in
    `worlds.shortcuts.RULES` on `test_c0`. The claim is

    - true if the lower interval end of c0 is at least `threshold`, and c0 is at least `SHARE * c2`;
    - false if the upper interval end of c0 is below `threshold`, or if the upper interval end of
      `c0 - SHARE * c2` is negative;
    - open in all other cases, and if c0 or c2 has fewer than `MIN_CLUSTERS` bridges.

    The intervals of c0 and c2 are combined into an interval of the difference. The two splits have
    no bridge in common.

    Args:
      dataset: a dataset of the task `ladder`.
      correct: whether the model answers each probe row correctly. The rows have the order of
        `np.flatnonzero(dataset.probe)`, as in `training.evaluation.ProbeMetrics.correct`.

    Raises:
      InputError: the dataset has no split `test_c0` or `test_c2`, or the length of `correct`
        differs from the number of probe rows.

    Source: the rule was fixed for this project. The interval of the difference is from Zou and
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
    """Decide the claim `factors`: prefixes of one bridge share a representation.

    The claim is about the representation on which the answers to held-out chains depend.

    A model that looks up whole chains answers held-out chains no better than the shortcuts in
    `RULES_WITHOUT_BRIDGES`, which do not group prefixes by bridge (e2). All other shortcuts, such
    as row completion, are ignored, because a model that follows one of these shortcuts has a shared
    representation. The claim does not depend on the rows that no shortcut answers correctly.
    Training chains do not determine the bridge of these rows, so these rows test the claim
    `grounded`. Let `threshold` be `ABOVE_RULES` plus the highest accuracy of a shortcut in
    `RULES_WITHOUT_BRIDGES` on `test_ii`. The claim is

    - true if the lower interval end of the accuracy on `test_ii` is at least `threshold`, and this
      accuracy is at least `SHARE` times the accuracy on `train_ii`;
    - false if the upper interval end of the accuracy on `test_ii` is below `threshold`;
    - open in all other cases, in which only some prefixes may share a representation.

    The claim is also open if `test_ii` has fewer than `MIN_CLUSTERS` bridges.

    Args:
      dataset: a dataset of the task `ladder` or `composition`.
      correct: whether the model answers each probe row correctly; see `grounded` for the order.

    Raises:
      InputError: the dataset has no split `test_ii` or `train_ii`, or the length of `correct`
        differs from the number of probe rows.

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
    """Return the true and open claims about a model that is trained on `ladder`.

    Only claims of the kinds `factors` and `grounded` can be true or false. All other claims are
    open.

    Args:
      dataset: a dataset of the task `ladder`.
      correct: whether the model answers each probe row correctly; see `grounded` for the order.

    Raises:
      InputError: a split that `grounded` or `factors` needs is missing, or the length of `correct`
        differs from the number of probe rows.
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
    """Return whether each probe row is answered correctly, at some checkpoints.

    Probe rows are the rows for evaluation (`Dataset.probe`). All checkpoints share one compiled
    program.

    Args:
      subject: a run, or a model with data and checkpoints.
      steps: the steps of the checkpoints; None means all.
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
            f"`correct` has {len(correct)} values, but the dataset has {len(probes)} probe rows; "
            "pass one value for each probe row"
        )
    if split not in dataset.splits:
        raise InputError(
            f"the truth of this claim needs the split {split!r}, but the dataset has only the "
            f"splits {', '.join(dataset.splits)}"
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
