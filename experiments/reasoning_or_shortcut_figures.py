"""Figures of `reasoning_or_shortcut.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from reasoning_or_shortcut_tables import COUNTS, IMPLICIT, RUNGS, Arm, followed

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
CURVES = (
    "ladder_early_1",
    "ladder_identity",
    "like_ladder_without_id_triples",
    "like_ladder_scrambled",
)


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results."""
    arms = {name: arm for name, arm in arms.items() if "stages" in arm.parts}
    drawings = {
        "talk": draw_curves(arms, (IMPLICIT, "ladder_chain_of_thought"), SPLITS),
        "arms": draw_curves(arms, ("ladder_early", "ladder_looped"), (*SPLITS, "test_io")),
        "single_curves": draw_curves(arms, CURVES, ("train_ii", *SPLITS)),
        "evidence": draw_evidence(arms),
        "cue_conflict": draw_cues(arms),
        "survival": draw_times(arms),
        "instruments": draw_instruments(arms),
    }
    for name, drawing in drawings.items():
        if drawing is not None:
            drawing.savefig(out / f"{name}.png", dpi=130)


def draw_curves(arms: Mapping[str, Arm], names: tuple[str, ...], splits: tuple[str, ...]) -> Any:
    """Draw accuracies over training: a thin line for each run, and a thick line for their mean."""
    shown = {name: arms[name] for name in names if name in arms}
    if not shown:
        return None
    drawing, axes = new_drawing(1.3 + 4.9 * len(shown), 4.2, ncols=len(shown), sharey=True)
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        curves, ends = arm.parts["training"], []
        steps = curves["evaluation"].values
        step_axis(ax, int(steps[-1]))
        ax.set_ylim(-0.015, 1.03)
        for split in (split for split in splits if split in curves["split"]):
            style = split_style(split)
            values = curves["accuracy"].sel(split=split).transpose("run", "evaluation").values
            ax.plot(steps, values.T, linewidth=0.5, alpha=0.45, **style)
            mean = values.mean(0)
            ax.plot(steps, mean, linewidth=2, **style)
            ends.append((float(mean[-1]), split.removeprefix("test_"), style["color"]))
        label_ends(ax, ends, size=9.5)
        ax.set_title(f"{TITLES[name]}, {_runs(arm)}", fontsize=10)
        if "test_c0" in curves["split"]:
            rule = float(curves["shortcut"].sel(split="test_c0").mean())
            color = split_style("test_c0")["color"]
            ax.axhline(rule, color=color, linewidth=0.9, linestyle="-.")
            ax.text(
                0.01,
                rule + 0.015,
                "best rule on c0",
                color=darken(color),
                fontsize=7.5,
                transform=ax.get_yaxis_transform(),
            )
    axes[0].set_ylabel("accuracy on held-out chains")
    return drawing


def _runs(arm: Arm) -> str:
    worlds, runs = len(set(arm.worlds.tolist())), len(arm.worlds)
    return f"{runs} run{'s' * (runs > 1)} in {worlds} world{'s' * (worlds > 1)}"


def draw_evidence(arms: Mapping[str, Arm]) -> Any:
    """Draw the accuracy at the end by evidence and role of the first fact, one panel per arm."""
    shown = {name: arm for name, arm in arms.items() if "evidence" in arm.parts}
    if not shown:
        return None
    drawing, axes = new_drawing(1 + 3.9 * len(shown), 3.8, ncols=len(shown), sharey=True)
    colors = {"I": BLUE, "C": split_style("test_c0")["color"], "O": VERMILION}
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        counts = arm.parts["evidence"]
        for role, color in colors.items():
            of_role = counts.sel(role=role).sum("run")
            there = of_role["chains"].values >= 20
            x = of_role["evidence"].values[there]
            for column, style in (("right", "o-"), ("rule_right", ":")):
                share = (of_role[column] / of_role["chains"]).values[there]
                label = f"facts with role {role}" if column == "right" else None
                ax.plot(x, share, style, color=color, label=label, markersize=4)
        ax.plot([], [], ":", color=GREY, label="row completion")
        ax.set_title(f"{TITLES[name]}, {_runs(arm)}", fontsize=9)
        ax.set_xlabel("evidence: shared training chains of the prefix")
        ax.set_ylim(-0.015, 1.03)
    axes[0].set_ylabel("accuracy on held-out chains, end")
    axes[-1].legend(fontsize=8, loc="lower right")
    return drawing


def draw_cues(arms: Mapping[str, Arm]) -> Any:
    """Draw the shares of answers that follow the chains and the fact, by number of chains."""
    found = [arm for name, arm in arms.items() if name.startswith("cue_conflict")]
    if not found:
        return None
    [arm] = found
    curves = arm.parts["training"]
    steps = curves["evaluation"].values
    drawing, axes = new_drawing(12.0, 3.8, ncols=len(COUNTS), sharey=True)
    for ax, count in zip(axes, COUNTS, strict=True):
        shares = [
            curves["accuracy"].sel(split=f"test_s{count}_{cue}").transpose("run", ...).values
            for cue in ("chains", "fact")
        ]
        shares.append(1 - shares[0] - shares[1])
        for values, color, name in zip(
            shares, (BLUE, VERMILION, GREY), ("the chains", "the fact", "neither"), strict=True
        ):
            ax.plot(steps, values.T, color=color, linewidth=0.5, alpha=0.45)
            ax.plot(steps, values.mean(0), color=color, linewidth=2, label=f"follow {name}")
        step_axis(ax, int(steps[-1]))
        ax.set_ylim(-0.015, 1.03)
        ax.set_title(f"{count} training chain{'s' * (count > 1)}, {_runs(arm)}", fontsize=10)
    axes[0].set_ylabel("share of answers")
    axes[0].legend(fontsize=8)
    return drawing


def draw_times(arms: Mapping[str, Arm]) -> Any:
    """Draw Kaplan-Meier curves of the step at which test_ii and c0 reach .5, one panel per arm."""
    shown = {name: arm for name, arm in arms.items() if "test_c0" in arm.parts["stages"]["split"]}
    if not shown:
        return None
    drawing, axes = new_drawing(1 + 3.4 * len(shown), 3.6, ncols=len(shown), sharey=True)
    for ax, (name, arm) in zip(axes, shown.items(), strict=True):
        found = {split: arm.times(split) for split in ("test_ii", "test_c0")}
        times, reached = (np.concatenate(column) for column in zip(*found.values(), strict=True))
        groups = np.repeat(list(found), len(arm.worlds))
        colors = [split_style(split)["color"] for split in sorted(found)]
        draw_survival(ax, times, reached, groups, colors=colors)
        ax.set_title(TITLES[name], fontsize=9)
        ax.set_xlabel("training step")
        ax.legend(fontsize=8, loc="lower left")
    axes[0].set_ylabel("share of runs below .5")
    return drawing


def draw_instruments(arms: Mapping[str, Arm]) -> Any:
    """Draw the share of answers that follow S[1, r1] against the accuracy of the rung."""
    shown = {name: arm for name, arm in arms.items() if "mean_swap" in arm.parts}
    if not shown:
        return None
    names = {"cross_query_patching": "cross-query patching", "mean_swap": "mean swap"}
    drawing, axes = new_drawing(9.0, 4.2, ncols=len(names), sharey=True, sharex=True)
    markers = dict(zip(RUNGS, "os^", strict=True))
    for ax, (instrument, title) in zip(axes, names.items(), strict=True):
        for (name, arm), color in zip(shown.items(), SERIES_COLORS, strict=False):
            _scatter(ax, arm, instrument, markers, color, TITLES[name])
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
        ax.set_title(f"{title} at S[1, r1]", fontsize=10)
        ax.set_xlabel("accuracy of the rung")
    axes[0].set_ylabel("share of answers that follow the state")
    for rung, marker in markers.items():
        axes[1].plot([], [], marker, color=GREY, label=rung.removeprefix("test_"))
    axes[1].legend(fontsize=7.5)
    return drawing


def _scatter(
    ax: Axes, arm: Arm, instrument: str, markers: Mapping[str, str], color: str, label: str
) -> None:
    for stage in arm.parts["stages"]["stage"].values:
        for rung, share in followed(arm, instrument, str(stage)).items():
            ax.plot(
                arm.accuracy(rung, str(stage)),
                share,
                markers[rung],
                color=color,
                markersize=4,
                alpha=0.7,
            )
    ax.plot([], [], "-", color=color, label=label)
