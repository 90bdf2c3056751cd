"""Figures of `reasoning_or_shortcut.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from reasoning_or_shortcut_arms import IMPLICIT, RUNGS, Arm, ladders, number
from reasoning_or_shortcut_instruments import correlation, followed, measured, points
from reasoning_or_shortcut_tables import COUNTS

from implicit_reasoning.figures import (
    BLUE,
    GREY,
    SERIES_COLORS,
    VERMILION,
    darken,
    label_ends,
    new_drawing,
    split_style,
    step_axis,
)
from implicit_reasoning.statistics import mean_over_seeds
from implicit_reasoning.survival import draw_survival

TITLES = {
    "ladder": "answers without the bridge (implicit)",
    "ladder_chain_of_thought": "answers that say the bridge (chain of thought)",
    "ladder_early": "early supervision of facts",
    "ladder_early_1": "early supervision, weight 1",
    "ladder_looped": "two blocks, applied twice",
    "ladder_identity": "identity rows",
    "like_ladder_without_id_triples": "without the triples of I facts",
    "like_ladder_scrambled": "random answers of chains",
}
SPLITS = ("test_ii", "test_c2", "test_c1", "test_c0", "test_oi")
MEANINGS = {
    "test_ii": "ii: ordinary facts",
    "test_c2": "c2: cold facts, 2 of 2 chains give evidence",
    "test_c1": "c1: cold facts, 1 of 2 chains gives evidence",
    "test_c0": "c0: cold facts, no chain gives evidence",
    "test_oi": "oi: facts that no training chain uses",
}
MIN_CHAINS = 20
"""Minimum number of chains of a run in a mean of the figure of evidence."""

CURVES = (
    "ladder_early_1",
    "ladder_identity",
    "like_ladder_without_id_triples",
    "like_ladder_scrambled",
)


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results."""
    further = {name: arm for name, arm in arms.items() if "taught" in arm.parts}
    arms = {name: arm for name, arm in arms.items() if "stages" in arm.parts}
    every = ("train_ii", *SPLITS)
    drawings = {
        "talk": draw_curves(arms, (IMPLICIT, "ladder_chain_of_thought"), SPLITS, explained=True),
        "arms": draw_curves(arms, ("ladder_early", "ladder_looped"), (*every, "test_io")),
        "single_curves": draw_curves(arms, CURVES, every),
        "evidence": draw_evidence(arms),
        "cue_conflict": draw_cues(arms),
        "survival": draw_times(arms),
        "instruments": draw_instruments(arms),
        "taught": draw_taught(further),
    }
    for name, drawing in drawings.items():
        if drawing is not None:
            drawing.savefig(out / f"{name}.png", dpi=130)


def panels(count: int, width: float, height: float, columns: int) -> tuple[Any, list[Axes]]:
    """Create a figure with panels in rows of `columns`. Only the panels in use are visible."""
    columns = min(count, columns)
    rows = -(-count // columns)
    drawing, axes = new_drawing(
        1 + width * columns, height * rows, nrows=rows, ncols=columns, sharey=True
    )
    for ax in axes[count:]:
        ax.set_visible(False)
    return drawing, axes[:count]


def last_step(arms: Mapping[str, Arm]) -> int:
    """Return the last step of the longest run, for panels with equal axes."""
    return max(int(arm.parts["training"]["evaluation"][-1]) for arm in arms.values())


def draw_curves(
    arms: Mapping[str, Arm],
    names: tuple[str, ...],
    splits: tuple[str, ...],
    *,
    explained: bool = False,
) -> Any:
    """Draw accuracies over training: a thin line for each run, and a thick line for their mean.

    Args:
      arms: the results.
      names: arms to draw, one per panel; arms without results are left out.
      splits: splits to draw.
      explained: whether to write the meaning of each split into the first panel.
    """
    shown = {name: arms[name] for name in names if name in arms}
    if not shown:
        return None
    drawing, axes = panels(len(shown), 5.1, 4.2, 2)
    last = last_step(shown)
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        curves, ends = arm.parts["training"], []
        steps = curves["evaluation"].values
        step_axis(ax, last)
        ax.set_ylim(-0.015, 1.03)
        for split in (split for split in splits if split in curves["split"]):
            style = split_style(split)
            values = curves["accuracy"].sel(split=split).transpose("run", "evaluation").values
            if len(values) > 1:
                ax.plot(steps, values.T, linewidth=0.5, alpha=0.35, **style)
            mean = np.nanmean(values, 0)
            ax.plot(steps, mean, linewidth=2, **style)
            ends.append((float(mean[-1]), split.removeprefix("test_"), style["color"]))
        if steps[-1] < last:
            ax.axvline(steps[-1], color=GREY, linewidth=0.9)
            ax.text(steps[-1], 0.5, "end of training ", fontsize=7.5, ha="right", color=GREY)
        label_ends(ax, ends, size=9.5)
        ax.set_title(f"{TITLES[name]}, {_runs(arm)}", fontsize=10)
        if "test_c0" in curves["split"]:
            _best_rule(ax, float(curves["shortcut"].sel(split="test_c0").mean()))
    for ax in axes[::2]:
        ax.set_ylabel("accuracy" if "train_ii" in splits else "accuracy on held-out chains")
    if explained:
        for row, split in enumerate(splits):
            place: dict[str, Any] = {
                "x": 0.03,
                "y": 0.96 - 0.055 * row,
                "transform": axes[0].transAxes,
            }
            color = darken(split_style(split)["color"])
            axes[0].text(s=MEANINGS[split], color=color, fontsize=9, va="top", **place)
    return drawing


def _best_rule(ax: Axes, accuracy: float) -> None:
    color = split_style("test_c0")["color"]
    ax.axhline(accuracy, color=color, linewidth=0.9, linestyle="-.")
    where: dict[str, Any] = {
        "x": 0.01,
        "y": accuracy + 0.015,
        "transform": ax.get_yaxis_transform(),
    }
    ax.text(s="best rule on c0", color=darken(color), fontsize=7.5, **where)


def _runs(arm: Arm) -> str:
    worlds, runs = len(set(arm.worlds.tolist())), len(arm.worlds)
    return f"{runs} run{'s' * (runs > 1)} in {worlds} world{'s' * (worlds > 1)}"


def draw_evidence(arms: Mapping[str, Arm]) -> Any:
    """Draw the accuracy at the end by evidence and role of the first fact, one panel per arm.

    A point is the mean over worlds, with a 95% t interval, of the runs with at least `MIN_CHAINS`
    such chains.
    """
    shown = {name: arm for name, arm in arms.items() if "evidence" in arm.parts}
    if not shown:
        return None
    drawing, axes = panels(len(shown), 4.2, 3.6, 3)
    colors = {"I": BLUE, "C": split_style("test_c0")["color"], "O": VERMILION}
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        counts = arm.parts["evidence"]
        for role, color in colors.items():
            of_role = counts.sel(role=role).transpose("run", "evidence")
            chains = of_role["chains"].values
            enough = np.where(chains >= MIN_CHAINS, chains, np.nan)
            for column, style in (("right", "o-"), ("rule_right", ":")):
                found = mean_over_seeds(of_role[column].values / enough, arm.worlds)
                there = np.isfinite(found.mean)
                x, mean = of_role["evidence"].values[there], found.mean[there]
                label = f"facts with role {role}" if column == "right" else None
                ax.plot(x, mean, style, color=color, label=label, markersize=4)
                if column == "right":
                    half = np.nan_to_num((found.high - found.low)[there] / 2)
                    ax.errorbar(x, mean, half, fmt="none", color=color, linewidth=1, capsize=2)
        ax.plot([], [], ":", color=GREY, label="row completion")
        ax.set_title(f"{TITLES[name]},\n{_runs(arm)}", fontsize=9.5)
        ax.set_xlabel("evidence: shared training chains of the prefix", fontsize=9)
        ax.set_ylim(-0.015, 1.03)
    for ax in axes[::3]:
        ax.set_ylabel("accuracy on held-out chains, end", fontsize=9)
    axes[0].legend(fontsize=8, loc="lower right")
    return drawing


def draw_cues(arms: Mapping[str, Arm]) -> Any:
    """Draw the shares of answers that follow the chains and the fact, by number of chains."""
    found = [arm for name, arm in arms.items() if name.startswith("cue_conflict")]
    if not found:
        return None
    [arm] = found
    curves = arm.parts["training"]
    steps = curves["evaluation"].values
    drawing, axes = new_drawing(12.0, 4.0, ncols=len(COUNTS), sharey=True)
    for ax, count in zip(axes, COUNTS, strict=True):
        names = [f"test_s{count}_{cue}" for cue in ("chains", "fact")]
        shares = [
            curves["accuracy"].sel(split=name).transpose("run", "evaluation").values
            for name in names
        ]
        shares.append(1 - shares[0] - shares[1])
        colors = (BLUE, VERMILION, GREY)
        for values, color, name in zip(
            shares, colors, ("the chains", "the fact", "neither"), strict=True
        ):
            if len(values) > 1:
                ax.plot(steps, values.T, color=color, linewidth=0.5, alpha=0.35)
            mean = np.nanmean(values, 0)
            ax.plot(steps, mean, color=color, linewidth=2, label=f"follow {name}")
        for name, color in zip(names, colors, strict=False):
            rule = float(np.nanmean(arm.rule(name)))
            ax.axhline(rule, color=color, linewidth=0.9, linestyle="-.")
        ax.plot([], [], "-.", color=GREY, linewidth=0.9, label="best shortcut for either answer")
        step_axis(ax, int(steps[-1]))
        ax.set_ylim(-0.015, 1.03)
        ax.set_title(f"{count} training chain{'s' * (count > 1)}, {_runs(arm)}", fontsize=10)
    axes[0].set_ylabel("share of answers")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, fontsize=8.5, ncols=4, loc="outside lower center")
    return drawing


def draw_times(arms: Mapping[str, Arm]) -> Any:
    """Draw Kaplan-Meier curves of the step at which test_ii and c0 reach .5, one panel per arm."""
    shown = ladders(arms)
    if not shown:
        return None
    drawing, axes = panels(len(shown), 4.2, 3.2, 3)
    last = last_step(shown)
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        found = {split: arm.times(split) for split in ("test_ii", "test_c0")}
        times, reached = (np.concatenate(column) for column in zip(*found.values(), strict=True))
        groups = np.repeat(list(found), len(arm.worlds))
        colors = [split_style(split)["color"] for split in sorted(found)]
        step_axis(ax, last)
        draw_survival(ax, times, reached, groups, colors=colors)
        ax.set_title(f"{TITLES[name]},\n{_runs(arm)}", fontsize=9.5)
        ax.legend(fontsize=8, loc="lower left", title="runs that reach .5", title_fontsize=8)
    for ax in axes[::3]:
        ax.set_ylabel("share of runs below .5")
    return drawing


def draw_instruments(arms: Mapping[str, Arm]) -> Any:
    """Draw the share of answers that follow S[1, r1] against the accuracy of the rung, by stage."""
    shown = measured(arms)
    if not shown:
        return None
    titles = {"cross_query_patching": "cross-query patching", "mean_swap": "mean swap"}
    stages = [str(stage) for stage in next(iter(shown.values())).parts["stages"]["stage"].values]
    drawing, axes = new_drawing(
        1 + 3.7 * len(stages), 7.4, nrows=len(titles), ncols=len(stages), sharey=True, sharex=True
    )
    markers = dict(zip(RUNGS, "os^", strict=True))
    places = [(instrument, stage) for instrument in titles for stage in stages]
    for ax, (instrument, stage) in zip(axes, places, strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
        for arm, color in zip(shown.values(), SERIES_COLORS, strict=False):
            null = followed(arm, instrument, stage, null=True)
            for rung, share in followed(arm, instrument, stage).items():
                at = arm.accuracy(rung, stage)
                ax.plot(at, null[rung], "x", color=GREY, markersize=3, alpha=0.6)
                ax.plot(at, share, markers[rung], color=color, markersize=4.5, alpha=0.7)
        x, y, _ = (
            np.concatenate(column)
            for column in zip(*(points(a, instrument, stage) for a in shown.values()), strict=True)
        )
        about = f"Spearman {number(correlation(x, y))}, {len(x)} points"
        ax.set_title(f"{titles[instrument]}, {stage}: {about}", fontsize=8.5)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    for ax in axes[-len(stages) :]:
        ax.set_xlabel("accuracy of the rung")
    for ax in axes[:: len(stages)]:
        ax.set_ylabel("answers that follow S[1, r1]")
    handles: list[Any] = []
    for name, color in zip(shown, SERIES_COLORS, strict=False):
        handles += axes[0].plot([], [], "-", color=color, label=TITLES[name])
    for rung, marker in markers.items():
        handles += axes[0].plot([], [], marker, color="black", label=rung.removeprefix("test_"))
    handles += axes[0].plot([], [], "x", color=GREY, label="null control")
    drawing.legend(handles=handles, fontsize=8.5, ncols=4, loc="outside lower center")
    return drawing


def draw_taught(arms: Mapping[str, Arm]) -> Any:
    """Draw accuracies over the further training on a task in which cold facts are ordinary."""
    if not arms:
        return None
    drawing, axes = panels(len(arms), 5.6, 4.2, 2)
    for ax, arm in zip(axes, arms.values(), strict=True):
        found, ends = arm.parts["taught"]["accuracy"], []
        steps = found["step"].values
        step_axis(ax, int(steps[-1]))
        ax.set_ylim(-0.015, 1.03)
        for split in SPLITS:
            style = split_style(split)
            values = found.sel(split=split).transpose("run", "step").values.astype(float)
            over = mean_over_seeds(values, arm.worlds)
            ax.plot(steps, over.mean, linewidth=2, **style)
            if len(set(arm.worlds.tolist())) > 1:
                ax.fill_between(steps, over.low, over.high, color=style["color"], alpha=0.15)
            ends.append((float(over.mean[-1]), split.removeprefix("test_"), style["color"]))
            if split == "test_ii":
                ax.plot(steps, 0.8 * over.mean, ":", color=GREY, label="0.8 times ii")
        label_ends(ax, ends, size=9.5)
        ax.set_title(f"cold facts in new chains, {_runs(arm)}", fontsize=10)
        ax.set_xlabel("step of the further training (log scale above 1)")
        ax.legend(fontsize=8, loc="lower left")
    axes[0].set_ylabel("accuracy on chains that are never trained")
    return drawing
