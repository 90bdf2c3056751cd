"""Figures of `editing.py`, made from its saved arrays, with a caption for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from components_figures import add_legend, count_of, save_drawings, with_node
from components_rules import at_stage
from editing_rules import (
    BINS,
    HOPS,
    at_place,
    binned,
    ends_of,
    last_known,
    share,
    stages_of,
)
from matplotlib.axes import Axes
from reasoning_or_shortcut_arms import Arm

from implicit_reasoning.analysis.editing.knowledge_editing import EDITORS, NO_EDIT, RANDOM
from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_drawing,
)

TITLES = {
    "composition": "composition",
    "ladder": "ladder",
    "ladder_looped": "ladder, two loops",
    "ladder_early": "ladder, early supervision (curves)",
    "ladder_chain_of_thought": "ladder, chain of thought (curves)",
}
SCORES = {
    "efficacy": ("efficacy", BLACK, "o"),
    "first hop": ("first hop", BLUE, "s"),
    "second hop": ("second hop", VERMILION, "^"),
    "same entity": ("same entity", SKY, "v"),
    "locality": ("locality", GREEN, "D"),
}
"""The label, the color and the marker of scores."""

OLD = {
    "stale first hop": ("old answer, first hop", BLUE, "P"),
    "stale second hop": ("old answer, second hop", VERMILION, "X"),
}
ROLES = {
    "I": ("rome, I facts", BLUE, "o"),
    "O": ("rome, O facts", ORANGE, "s"),
    "C": ("rome, C facts", PURPLE, "^"),
}
NULLS = {RANDOM: ("random change", GREY, "x"), NO_EDIT: ("no edit", BLACK, "+")}
SHOWN = {
    "efficacy": "efficacy",
    "first hop": "first hop",
    "second hop": "second hop",
    "both": "both hops",
    "stale first hop": "old answer,\nfirst hop",
    "stale second hop": "old answer,\nsecond hop",
    "same entity": "same\nentity",
    "same relation": "same\nrelation",
    "locality": "locality",
}
"""The scores of the first figure, with their labels."""

CAPTIONS = {
    "hops": "Scores of edits at the end of training (mean share of prompts). A small "
    "mark is a run, and a large mark is the mean over runs. Read an edit from left to right: it "
    "succeeds (efficacy), chains follow at one hop or both, or they keep their old answer, and "
    "other prompts keep theirs. Gray and black marks are the nulls.",
    "stages": "Scores of rank-one edits by stage of training, in the order of the median step at "
    "which the runs of an arm reach the stages. This order differs between arms. A thin line is a "
    "run, and a thick line is the mean over runs. A line that rises to the right means that an "
    "edit reaches more after further training. Dashed lines are chains "
    "that keep their old answer.",
    "chains": "Share of chains that follow an edit, by the number of training chains that use the "
    "fact at this hop; facts of all roles. O facts are in the bin 0. At the first hop, "
    "C facts are in the bin 1 - 2; at the second hop, they are used like I facts. The "
    "first bins therefore differ from the others in the role, too. Rule 1 (g) uses I "
    "facts only. A thin line is a run, and a thick line is the mean over runs. Flat "
    "lines mean that the number of training chains does not matter. Bins with fewer "
    "than 10 edits are left out.",
    "places": "Scores of rank-one edits by the block and the position whose output is edited, and "
    "(hollow marks) the read strength of the edited key where chains use the fact at the second "
    "hop, which is no share: values below 0 or above 1 are drawn at the edge. A small mark is a "
    "run. A place at which both hops are at 1 is one store for both hops.",
    "methods": "Scores of I facts by method at the end. A small mark is a run, and a large mark is "
    "the mean over runs. The methods `state` and `resid_mid` change no weights. They write at r1 "
    "for the first hop, and at the last position for the second hop. `memit` makes all edits in "
    "one model, so its locality is that of one model per run. A good method has all marks at the "
    "top.",
    "sequences": "Scores of the edits made so far, after several rank-one edits of one model. A "
    "thin line is a run, and a thick line is the mean over runs. A line that falls to the right "
    "means that later edits undo earlier ones. Points with fewer than 20 edits have no intervals.",
}


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results, and write the captions."""
    makers: Mapping[str, Callable[[Mapping[str, Arm]], Any]] = {
        "hops": draw_hops,
        "stages": draw_stages,
        "chains": draw_chains,
        "places": draw_places,
        "methods": draw_methods,
        "sequences": draw_sequences,
    }
    drawings = {name: make(arms) for name, make in makers.items()}
    save_drawings(out, drawings)
    there = [name for name, drawing in drawings.items() if drawing is not None]
    lines = [f"![{name}]({name}.png)\n\n{CAPTIONS[name]}\n" for name in there]
    (out / "figures.md").write_text("\n".join(lines), encoding="utf-8")


def panels(
    arms: Mapping[str, Arm], node: str, width: float = 3.4
) -> tuple[Any, list[tuple[Axes, Arm]]]:
    """Create a figure with a row of panels, one for each arm with results; None if there are none.

    Args:
      arms: the arms.
      node: the node of the results.
      width: width of a panel in inches.

    Returns:
      The figure, and each panel with its arm.
    """
    chosen = with_node(arms, node, TITLES)
    if not chosen:
        return None, []
    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    drawing, axes = new_drawing(
        2.0 + width * columns, 0.5 + 3.1 * rows, nrows=rows, ncols=columns, sharey=True
    )
    flat = list(np.array(axes, object).ravel())
    for ax in flat[len(chosen) :]:
        ax.remove()
    found = list(zip(flat, chosen.values(), strict=False))
    for (ax, arm), name in zip(found, chosen, strict=True):
        ax.set_title(f"{TITLES[name]}, {count_of(arm)}", fontsize=9)
        ax.set_ylim(-0.04, 1.04)
        ax.tick_params(labelsize=8)
    for ax, _ in found[::columns]:
        ax.set_ylabel("share of prompts", fontsize=9)
    return drawing, found


def finish(drawing: Any, found: Sequence[tuple[Axes, Arm]], label: str = "") -> Any:
    """Set the label of the horizontal axes, and add the legend."""
    for ax, _ in found:
        ax.set_xlabel(label, fontsize=9)
    add_legend(drawing, [ax for ax, _ in found])
    return drawing


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over runs, the first axis; nan where no run has a value."""
    there = np.isfinite(values)
    count = there.sum(0)
    found: np.ndarray = np.where(
        count > 0, np.where(there, values, 0).sum(0) / np.maximum(count, 1), np.nan
    )
    return found


def dots(
    ax: Axes,
    values: np.ndarray,
    style: tuple[str, str, str],
    shift: float,
    *,
    hollow: bool = False,
) -> None:
    """Draw a small mark for each run and a large one for their mean, at 0, 1, ....

    Args:
      ax: the axes.
      values: [run, place].
      style: label, color and marker.
      shift: distance to the left or right, so that series do not cover each other.
      hollow: whether the marks are not filled.
    """
    label, color, marker = style
    if not np.isfinite(values).any():
        return
    at = np.arange(values.shape[1]) + shift
    face: dict[str, Any] = {"markerfacecolor": "none"} if hollow else {}
    for row in values:
        ax.plot(at, row, marker, color=color, markersize=2.5, alpha=0.45, **face)
    ax.plot(at, mean(values), marker, color=color, markersize=6, label=label, **face)


def lines(
    ax: Axes, x: Sequence[float] | np.ndarray, values: np.ndarray, style: Any, line: str = "-"
) -> None:
    """Draw a thin line for each run and a thick one for their mean.

    Args:
      ax: the axes.
      x: the places.
      values: [run, place].
      style: label, color and marker.
      line: the style of the lines.
    """
    label, color, marker = style
    if not np.isfinite(values).any():
        return
    if len(values) > 1:
        for row in values:
            ax.plot(x, row, line, color=color, linewidth=0.6, alpha=0.45)
    ax.plot(
        x, mean(values), line, color=color, marker=marker, markersize=4, linewidth=1.8, label=label
    )


def draw_hops(arms: Mapping[str, Arm]) -> Any:
    """Draw all scores at the end, by role of the fact and beside the nulls."""
    drawing, found = panels(arms, "edits", width=4.6)
    for ax, arm in found:
        series = [({"role": role}, style) for role, style in ROLES.items()]
        series += [({"editor": editor}, style) for editor, style in NULLS.items()]
        for number, (at, style) in enumerate(series):
            values = [share(arm, score, **at).mean for score in SHOWN]
            dots(ax, np.array(values).T, style, 0.14 * (number - 2))
        ax.set_xticks(range(len(SHOWN)), list(SHOWN.values()), rotation=60, fontsize=7)
    return finish(drawing, found, "score") if drawing else None


def draw_stages(arms: Mapping[str, Arm]) -> Any:
    """Draw scores by stage of training."""
    drawing, found = panels(arms, "edits")
    for ax, arm in found:
        stages = stages_of(arm)
        shown = {score: style for score, style in SCORES.items() if score != "same entity"}
        for line, scores in (("-", shown), ("--", OLD)):
            for number, (score, style) in enumerate(scores.items()):
                values = [share(arm, score, stage=stage).mean for stage in stages]
                # Lines at 0 and 1 would cover each other.
                at = np.arange(len(stages)) + 0.03 * (number - 1) + 0.015 * (line == "--")
                lines(ax, at, np.array(values).T, style, line)
        ax.set_xticks(range(len(stages)), stages)
    return finish(drawing, found, "stage of training") if drawing else None


def draw_chains(arms: Mapping[str, Arm]) -> Any:
    """Draw the hops by the number of training chains."""
    drawing, found = panels(arms, "edits")
    for ax, arm in found:
        for hop in HOPS:
            values = np.array(list(binned(arm, hop).values())).T
            lines(ax, range(len(BINS)), values, SCORES[hop])
        ax.set_xticks(range(len(BINS)), list(BINS), fontsize=7)
    label = "training chains that use the fact at this hop\n(facts of all roles)"
    return finish(drawing, found, label) if drawing else None


def draw_places(arms: Mapping[str, Arm]) -> Any:
    """Draw scores by the block and the position that are edited."""
    drawing, found = panels(arms, "places")
    for ax, arm in found:
        names = [str(place) for place in arm.parts["places"]["place"].values]
        for number, (score, style) in enumerate(SCORES.items()):
            values = np.array([at_place(arm, place, score).mean for place in names]).T
            dots(ax, values, style, 0.11 * (number - 2))
        part = arm.parts["places"].isel(group=0)
        read = np.array([ends_of(part, "read", place=p, use="second hop").mean for p in names]).T
        style = ("read strength, second hop\n(cut at the edges)", VERMILION, "^")
        dots(ax, np.clip(read, -0.04, 1.04), style, 0.33, hollow=True)
        ax.set_xticks(range(len(names)), names, fontsize=8)
    return finish(drawing, found, "block and position of the edit") if drawing else None


def draw_methods(arms: Mapping[str, Arm]) -> Any:
    """Draw scores by method."""
    drawing, found = panels(arms, "edits", width=4.2)
    for ax, arm in found:
        known = at_stage(arm, "edits", "end")["editor"]
        names = [name for name in EDITORS if name in known]
        for number, (score, style) in enumerate(SCORES.items()):
            values = np.array([share(arm, score, editor=name).mean for name in names]).T
            dots(ax, values, style, 0.11 * (number - 2))
        ax.set_xticks(range(len(names)), names, rotation=50, ha="right", fontsize=7)
    return finish(drawing, found, "method") if drawing else None


def draw_sequences(arms: Mapping[str, Arm]) -> Any:
    """Draw scores by the number of edits of one model."""
    drawing, found = panels(arms, "sequences")
    for ax, arm in found:
        part = arm.parts["sequences"].isel(group=0)
        counts = [int(count) for count in part["count"].values]
        for score in ("efficacy", "first hop", "locality"):
            values = np.array([last_known(arm, score, count) for count in counts]).T
            lines(ax, counts, values, SCORES[score])
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
    return (
        finish(drawing, found, "edits of one model, one after another (log)") if drawing else None
    )
