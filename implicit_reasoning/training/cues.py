"""Measures for the task `cue_conflict`: which of two contradictory cues the answers follow.

The cues concern the tail of a fact. The atomic triple of the fact teaches one tail. Training chains
that contain the fact teach a different tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from implicit_reasoning.figures import BLUE, GREY, VERMILION, Figure, new_drawing, step_axis
from implicit_reasoning.worlds import Dataset

OTHER = "other"
"""Name of a column: `other/test_s1` is the share of answers that follow neither of the two cues."""

CUES = {"chains": BLUE, "fact": VERMILION}


def cue_splits(dataset: Dataset) -> dict[str, list[str]]:
    """Return a pair of splits for each number of training chains of the task `cue_conflict`.

    For example, the key `test_s1` has the splits `test_s1_chains` and `test_s1_fact`. The prompts
    of both splits are equal. In the first split, the answers agree with the training chains. In the
    second split, the answers agree with the atomic triples. Pairs without probe rows are omitted.
    For tasks other than `cue_conflict`, the result is empty.
    """
    if "decoy_answer" not in dataset.truth:
        return {}
    names = [name.removesuffix("_fact") for name in dataset.splits if name.endswith("_fact")]
    return {
        name: [f"{name}_{cue}" for cue in CUES]
        for name in names
        if len(dataset.probes(f"{name}_fact"))
    }


def cue_figure(rows: Sequence[Mapping[str, Any]], dataset: Dataset) -> Figure | None:
    """Draw the shares of answers that agree with the chains, the triple, or neither, by step.

    Return None if the task is not `cue_conflict`, or if no metrics row contains these shares.
    """
    pairs = cue_splits(dataset)
    shown = [row for row in rows if all(f"{OTHER}/{name}" in row for name in pairs)]
    if not pairs or not shown:
        return None
    drawing, axes = new_drawing(3.2 * len(pairs), 3.2, ncols=len(pairs), sharey=True)
    steps, labels = [row["step"] for row in shown], ("the chains", "the triple", "neither")
    for ax, (name, pair) in zip(axes, pairs.items(), strict=True):
        keys = [f"accuracy/{split}" for split in pair] + [f"{OTHER}/{name}"]
        shares = np.array([[row[key] for row in shown] for key in keys])
        ax.stackplot(steps, shares, labels=labels, colors=(*CUES.values(), GREY), alpha=0.8)
        step_axis(ax, shown[-1]["step"])
        ax.set_ylim(0, 1)
        n = len(dataset.probes(pair[0]))
        ax.set_title(f"{name}, {n:,} test chains", fontsize=10)
    axes[0].set_ylabel("share of answers")
    axes[0].legend(loc="upper left", fontsize=8)
    caption = (
        "The figure shows the answers to held-out chains of facts with two conflicting cues: "
        "the triple of such a fact teaches one bridge, while its training chains follow a "
        "different bridge. The panel test_s<n> has the facts with n training chains. The "
        "stacked areas are the shares of answers that follow the chains, that follow the "
        "triple, and that follow neither. The two cues always lead to different answers. A "
        f"uniform guess among all tokens gives each cue a share of {1 / dataset.n_vocab:.3f}."
    )
    return Figure("cue_conflict", "Which cue wins", caption, drawing)
