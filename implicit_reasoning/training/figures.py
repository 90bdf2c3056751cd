"""Figures of a training run: accuracy, loss, first correct answers and optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Figure,
    darken,
    label_ends,
    log_axis,
    new_drawing,
    split_style,
    spread_apart,
    step_axis,
)
from implicit_reasoning.runs import Run
from implicit_reasoning.training.cues import cue_splits
from implicit_reasoning.training.phases import Phases, run_phases
from implicit_reasoning.training.task_figures import cue_figure, difference_figure, thought_figure
from implicit_reasoning.training.unanswered import ACCURACY, MIN_BRIDGES, ROWS
from implicit_reasoning.worlds import Dataset, shortcuts

Row = Mapping[str, Any]

_PHASES = {
    "memorised": "memorised",
    "in_distribution_half": "half in-distribution",
    "in_distribution": "whole in-distribution",
    "cross_distribution": "cross-distribution",
}


_NO_LOSS = 1e-8  # nats; below the resolution of a float32 loss


def figures(run: Run) -> list[Figure]:
    """Draw all figures of a run in the order of the report. Figures without data are omitted."""
    rows = run.metrics
    if not rows:
        return []
    rules = shortcuts(run.dataset)
    floors, found = best_shortcuts(rules), run_phases(run)
    first_correct = run.first_correct if run.files.first_correct.exists() else None
    drawn = (
        _accuracy(rows, run.dataset, found, floors),
        cue_figure(rows, run.dataset),
        thought_figure(rows, run.dataset),
        difference_figure(rows, run.dataset),
        _loss(rows, run.dataset),
        _first_correct(first_correct, rows[-1]["step"], run.dataset),
        _optimisation(rows),
    )
    return [figure for figure in drawn if figure is not None]


def best_shortcuts(rules: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, str]]:
    """Find the most accurate shortcut rule on each split.

    Args:
      rules: `{rule: {split: accuracy}}`, for example from `worlds.shortcuts`.

    Returns:
      `{split: (accuracy, rule)}` with the most accurate rule of each split.
    """
    splits = {split for by_split in rules.values() for split in by_split}
    return {
        split: max((by_split[split], rule) for rule, by_split in rules.items())
        for split in sorted(splits)
    }


def _accuracy(
    rows: Sequence[Row], dataset: Dataset, found: Phases, floors: Mapping[str, tuple[float, str]]
) -> Figure | None:
    curves = _by_split(rows, "accuracy", dataset)
    if not curves:
        return None
    drawing, (ax,) = new_drawing(9.5, 5.2)
    step_axis(ax, rows[-1]["step"])
    ax.set_ylim(-0.015, 1.015)
    ax.set_ylabel("accuracy on probe rows")
    for split, (steps, values) in curves.items():
        _curve(ax, steps, values, **split_style(split))
        low_steps, low = _series(rows, f"accuracy_low95/{split}")
        if len(low):
            color = split_style(split)["color"]
            ax.plot(low_steps, low, color=color, linewidth=0.7)
            mean = np.interp(low_steps, steps, values)
            ax.fill_between(low_steps, low, mean, color=color, alpha=0.15, linewidth=0)
    unanswered = _draw_unanswered(ax, rows, dataset)
    _draw_floors(ax, {split: floors[split] for split in curves if split in floors})
    _draw_phases(ax, found)
    _label(ax, curves, percent=True, extra=unanswered)
    caption = (
        "Each curve shows the share of a split's probe rows that the model answers correctly, "
        "at every evaluation. The name and the last value of the split are at the right end of "
        "the curve. Dashed curves are splits that the model is trained on, dotted curves are "
        "single facts, and solid curves are splits that the model is not trained on. "
    )
    if cue_splits(dataset):
        caption += (
            "The dotted curve of a test split counts the answers that follow the triple of the "
            "first fact and not its training chains. "
        )
    if floors:
        caption += (
            "Each thin dash-dotted line is the accuracy of the best shortcut on the split with "
            "the same color, and is named at the left. A shortcut does not compose facts, so "
            "only an accuracy above its line can show composition. "
        )
    if any(key.startswith("accuracy_low95/") for row in rows for key in row):
        caption += (
            "The shading extends from a curve down to the lower end of its 95% interval, which "
            "is clustered by bridge (in runs of versions before 2026-11-28, by first fact). "
        )
    if unanswered:
        caption += (
            "Each thin line with short dashes is the accuracy on only those rows of the split "
            "that no shortcut answers correctly. It is drawn if these rows have at least "
            f"{MIN_BRIDGES} different bridges, and if shortcuts answer at least "
            f"{1 - _MOST_UNANSWERED:.0%} of the split's rows. "
        )
    caption += f"The numbers of probe rows are: {_counts(curves, dataset)}."
    return Figure("accuracy", "Accuracy by split", caption, drawing)


def _loss(rows: Sequence[Row], dataset: Dataset) -> Figure | None:
    curves = _by_split(rows, "loss", dataset)
    if not curves:
        return None
    # A logarithmic axis cannot show a loss that float32 rounds to 0.
    curves = {name: (steps, np.maximum(loss, _NO_LOSS)) for name, (steps, loss) in curves.items()}
    steps, batch_loss = _series(rows, "loss")
    batch = steps, np.maximum(batch_loss, _NO_LOSS)
    saturated = _by_split(rows, "saturated", dataset)  # missing in runs before 2026-11-28
    below = {"nrows": 2, "sharex": True, "height_ratios": (3, 1)} if saturated else {}
    drawing, axes = new_drawing(9.5, 5.4 if saturated else 4.2, **below)
    ax = axes[0]
    log_axis(ax)
    ax.set_ylabel("cross-entropy of the answer (nats)")
    if len(batch[0]):
        _curve(ax, *batch, color=GREY, linewidth=3.5, alpha=0.35, zorder=1.5)
    for split, (steps, values) in curves.items():
        _curve(ax, steps, values, **split_style(split))
    step_axis(ax, rows[-1]["step"])
    _label(ax, curves, extra=[(batch[1][-1], "training batches", GREY)] if len(batch[0]) else [])
    guessing = dataset.answers.shape[1] * np.log(dataset.n_vocab)
    caption = (
        "Each curve shows the mean loss of a split's probe rows at every evaluation, on a "
        f"logarithmic axis. A model that gives all {dataset.n_vocab:,} tokens the same "
        f"probability has a loss of {guessing:.2f} nats per answer. The wide gray line is the "
        "loss of the training batches, averaged over the steps since the previous logged row. "
        f"Losses below {_NO_LOSS:g} are drawn at {_NO_LOSS:g}."
    )
    if saturated:
        ax.set_xlabel("")
        _saturation(axes[1], saturated, rows[-1]["step"])
        caption += (
            " The lower panel shows the share of probe rows whose answer has a probability that "
            "float32 rounds to 1. The loss of such a row has a gradient of 0, so a training row "
            "of this kind no longer changes the parameters."
        )
    return Figure("loss", "Loss by split", caption, drawing)


def _saturation(ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], last: int) -> None:
    """Draw the share of saturated rows by split; splits without any such row get no label."""
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of rows with\nprobability 1")
    for split, (steps, values) in curves.items():
        _curve(ax, steps, values, **split_style(split))
    step_axis(ax, last)
    _label(ax, {split: curve for split, curve in curves.items() if curve[1].any()}, percent=True)


def _first_correct(
    outcome: Mapping[str, np.ndarray] | None, last: int, dataset: Dataset
) -> Figure | None:
    if outcome is None or not len(outcome["row"]):
        return None
    split_of, curves = dataset.split[outcome["row"]], {}
    for index, split in enumerate(dataset.splits):
        first = outcome["step"][split_of == index]
        if len(first):
            # A run that resumes from an earlier state drops its later metrics rows, but
            # `first_correct.npz` may still have steps after the last remaining row.
            reached = np.sort(first[(first >= 0) & (first <= last)])
            steps = np.unique(np.append(reached, [0, last]))
            curves[split] = steps, np.searchsorted(reached, steps, side="right") / len(first)
    drawing, (ax,) = new_drawing(9.5, 4.2)
    step_axis(ax, last)
    ax.set_ylim(-0.015, 1.015)
    ax.set_ylabel("share of probe rows\never answered correctly")
    for split, (steps, values) in curves.items():
        _curve(ax, steps, values, drawstyle="steps-post", **split_style(split))
    _label(ax, curves, percent=True)
    caption = (
        "Each curve shows the share of a split's probe rows that the model has answered "
        "correctly in at least one evaluation up to the step. This share is at least as high as "
        "the accuracy. A gap between the two means that some rows were answered correctly at an "
        "earlier evaluation, perhaps by a guess, and wrongly later. The numbers of probe rows "
        f"are: {_counts(curves, dataset)}."
    )
    return Figure("first_correct", "When each row was first answered correctly", caption, drawing)


def _optimisation(rows: Sequence[Row]) -> Figure | None:
    quantities = {
        "grad_norm": (
            "gradient norm",
            VERMILION,
            "The gradient norm is the L2 norm of the gradient before clipping, averaged over the "
            "steps since the previous logged row, on a logarithmic axis.",
        ),
        "param_norm": (
            "parameter norm",
            BLUE,
            "The parameter norm is the L2 norm of all parameters.",
        ),
        "learning_rate": (
            "learning rate",
            GREEN,
            "The learning rate is the one of the logged step.",
        ),
    }
    series = {name: _series(rows, name) for name in quantities}
    series = {name: points for name, points in series.items() if len(points[0])}
    if not series:
        return None
    drawing, axes = new_drawing(9.5, 2.9, ncols=len(series))
    for ax, (name, (steps, values)) in zip(axes, series.items(), strict=True):
        title, color, _ = quantities[name]
        if name == "grad_norm":
            log_axis(ax)
        else:
            ax.ticklabel_format(axis="y", scilimits=(-2, 4))
        _curve(ax, steps, values, color=color)
        step_axis(ax, rows[-1]["step"])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("training step (log)")
        ax.tick_params("both", labelsize=8)
    caption = " ".join(quantities[name][2] for name in series)
    return Figure("optimisation", "Optimisation", caption, drawing)


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of one quantity, from the rows that have it."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def _by_split(
    rows: Sequence[Row], quantity: str, dataset: Dataset
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    series = {split: _series(rows, f"{quantity}/{split}") for split in dataset.splits}
    return {split: points for split, points in series.items() if len(points[0])}


def _curve(ax: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    # A line through one point is invisible, so a curve with one point is drawn as a dot.
    marker = "o" if len(steps) == 1 else None
    ax.plot(steps, values, **{"linewidth": 1.7, "marker": marker, "clip_on": False, **style})


def _label(
    ax: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    percent: bool = False,
    extra: Sequence[tuple[float, str, str]] = (),
) -> None:
    ends = [
        (
            values[-1],
            f"{split}  {values[-1]:{'.1%' if percent else '.2g'}}",
            split_style(split)["color"],
        )
        for split, (_, values) in curves.items()
    ]
    label_ends(ax, [*ends, *extra])


def _draw_floors(ax: Axes, floors: Mapping[str, tuple[float, str]]) -> None:
    """Draw the best shortcut of each split as a thin line, labeled at the left.

    The labels are at the left because the accuracy curves are low there.
    """
    lowest_first = sorted((accuracy, split, rule) for split, (accuracy, rule) in floors.items())
    heights = spread_apart([accuracy + 0.024 for accuracy, _, _ in lowest_first], gap=0.042)
    # The labels have a white background. They cover the lines but not the measured curves.
    line: dict[str, Any] = {"linestyle": (0, (6, 2, 1, 2)), "linewidth": 0.9, "zorder": 1.8}
    name: dict[str, Any] = {
        "fontsize": 7.5,
        "va": "center_baseline",
        "zorder": 1.9,
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        "transform": ax.get_yaxis_transform(),
    }
    for (accuracy, split, rule), height in zip(lowest_first, heights, strict=True):
        color = split_style(split)["color"]
        ax.axhline(accuracy, color=color, alpha=0.8, **line)
        text = f"shortcut on {split}: {rule.replace('_', ' ')}, {accuracy:.1%}"
        if accuracy > 0.95:  # A label above the line would be outside the axes.
            height = accuracy - 0.028
        ax.text(0.008, height, text, color=darken(color), **name)


# If shortcuts answer fewer than 10% of the rows of a split, the accuracy on the remaining rows is
# nearly the accuracy on all rows and is not drawn.
_MOST_UNANSWERED = 0.9


def _draw_unanswered(
    ax: Axes, rows: Sequence[Row], dataset: Dataset
) -> list[tuple[float, str, str]]:
    """Draw the accuracy on the rows that no shortcut answers correctly.

    Return, for each curve, its last value, its label and its color.
    """
    labels = []
    for split in dataset.splits:
        steps, values = _series(rows, f"{ACCURACY}/{split}")
        _, counts = _series(rows, f"{ROWS}/{split}")
        if not len(steps) or counts[-1] > _MOST_UNANSWERED * len(dataset.probes(split)):
            continue
        color = split_style(split)["color"]
        _curve(ax, steps, values, color=color, linewidth=1.1, linestyle=(0, (2, 1.5)))
        text = f"{split}, {int(counts[-1]):,} rows that no shortcut answers  {values[-1]:.1%}"
        labels.append((float(values[-1]), text, color))
    return labels


def _draw_phases(ax: Axes, found: Phases) -> None:
    """Draw a vertical line for each phase; the names are stacked above the axes."""
    reached = [(getattr(found, name), label) for name, label in _PHASES.items()]
    reached = sorted((step, label) for step, label in reached if step is not None)
    if not reached:
        return
    start, end = found.memorised, found.in_distribution
    if start is not None and end is not None and start < end:
        ax.axvspan(start, end, color=BLACK, alpha=0.05, linewidth=0)
    # If there is room, each name is to the left of its line, and the earliest phase is at the
    # bottom. Otherwise each name is to the right of its line, and the earliest phase is at the top.
    # In both cases no line crosses a name.
    in_axes = (ax.transData + ax.transAxes.inverted()).transform
    left = in_axes((reached[0][0], 0))[0] > 0.3
    frame = ax.get_xaxis_transform()
    line: dict[str, Any] = {"color": BLACK, "linewidth": 0.8, "clip_on": False}
    name: dict[str, Any] = {
        "fontsize": 8.5,
        "ha": "right" if left else "left",
        "xytext": (-4 if left else 4, 0),
        "textcoords": "offset points",
    }
    for row, (step, label) in enumerate(reached if left else reached[::-1]):
        height = 1.035 + 0.048 * row
        ax.plot([step, step], [0, height + 0.03], transform=frame, **line)
        ax.annotate(f"{label}, step {step:,}", (step, height), xycoords=frame, **name)


def _counts(curves: Mapping[str, Any], dataset: Dataset) -> str:
    return ", ".join(f"{len(dataset.probes(split)):,} {split}" for split in curves)
