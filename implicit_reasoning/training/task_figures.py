"""Figures of measures that only some tasks have: cues, chains of thought, and several right tokens.

The modules of the measures do not draw, so that training does not import matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from implicit_reasoning.figures import (
    BLUE,
    GREY,
    VERMILION,
    Figure,
    label_ends,
    new_drawing,
    split_style,
    step_axis,
)
from implicit_reasoning.training.cues import OTHER, cue_splits
from implicit_reasoning.training.probability_difference import COLUMN, RANGES
from implicit_reasoning.training.thoughts import ThoughtOutcome, thought_rows
from implicit_reasoning.worlds import Dataset


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
        ax.stackplot(steps, shares, labels=labels, colors=(BLUE, VERMILION, GREY), alpha=0.8)
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


def thought_figure(rows: Sequence[Mapping[str, Any]], dataset: Dataset) -> Figure | None:
    """Draw the fields of `ThoughtOutcome` by step, with one panel per field.

    Return None if answers contain no bridge entities.
    """
    splits = [split for split in thought_rows(dataset) if split.startswith("test_")]
    shown = [row for row in rows if all(f"bridge/{split}" in row for split in splits)]
    if not splits or not shown:
        return None
    drawing, axes = new_drawing(13.0, 4.0, ncols=3, sharey=True)
    steps = [row["step"] for row in shown]
    titles = ("bridge", "last entity after the true bridge", "last entity after its own bridge")
    for ax, name, title in zip(axes, ThoughtOutcome._fields, titles, strict=True):
        ends = []
        for split in splits:
            values = [row[f"{name}/{split}"] for row in shown]
            style = split_style(split)
            ax.plot(steps, values, **style)
            ends.append((values[-1], split, style["color"]))
        step_axis(ax, steps[-1])
        ax.set_ylim(-0.015, 1.015)
        ax.set_title(title, fontsize=10)
    label_ends(axes[-1], ends)
    axes[0].set_ylabel("share of probe rows")
    caption = (
        "The answer of a chain is its bridge, followed by its last entity. Left: the share of "
        "probe rows for which the model predicts the bridge. Middle: the share for which it "
        "predicts the last entity after it has read the true bridge (teacher forcing). Right: "
        "the share for which it predicts the last entity after it has read the bridge that it "
        "predicted itself (free running). The accuracy of a split counts the answers that are "
        "correct as a whole."
    )
    return Figure("chain_of_thought", "The parts of answers with a bridge", caption, drawing)


def difference_figure(rows: Sequence[Mapping[str, Any]], dataset: Dataset) -> Figure | None:
    """Draw the probability difference of every split by step.

    Return None if answers are single tokens, or if no metrics row contains the measure.
    """
    splits = [split for split in dataset.splits if len(dataset.probes(split))]
    shown = [row for row in rows if all(f"{COLUMN}/{split}" in row for split in splits)]
    if not dataset.truth.keys() >= set(RANGES) or not shown:
        return None
    drawing, (ax,) = new_drawing(7.0, 4.0)
    steps, ends = [row["step"] for row in shown], []
    for split in splits:
        values = [row[f"{COLUMN}/{split}"] for row in shown]
        style = split_style(split)
        ax.plot(steps, values, **style)
        ends.append((values[-1], split, style["color"]))
    step_axis(ax, steps[-1])
    ax.set_ylim(min(-0.015, *(value for value, *_ in ends)), 1.015)
    ax.set_ylabel("probability difference")
    label_ends(ax, ends)
    caption = (
        "The probability of all right answers minus the probability of all wrong answers, averaged "
        "over the probe rows of each split. It is 1 if a model predicts only right answers, and 0 "
        "if it predicts right and wrong answers with the same probability. Several answers are "
        "right for each row, and the row names one of them. The accuracy counts only this one, so "
        "it stays low."
    )
    return Figure(COLUMN, "Right and wrong answers", caption, drawing)
