"""Figures of `components.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from components_rules import BRIDGES, NULLS, OVERLAP_COUNT, at_stage, bump, known
from matplotlib.axes import Axes
from reasoning_or_shortcut_arms import Arm

from implicit_reasoning.analysis.components.estimates import ESTIMATES
from implicit_reasoning.analysis.components.fourier_figures import phase_ends
from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    OLIVE,
    ORANGE,
    PURPLE,
    SERIES_COLORS,
    VERMILION,
    WINE,
    log_axis,
    new_drawing,
    step_axis,
)

TITLES = {
    "composition": "composition",
    "ladder": "ladder",
    "ladder_early": "ladder, early supervision",
    "shadow": "shadow (curves)",
    "scrambled": "scrambled (curves)",
    "modular_addition_larger_eps": "modular addition (curves)",
}


def draw_all(out: Path, arms: Mapping[str, Arm]) -> None:
    """Draw and save every figure for which there are results."""
    drawings = {
        "induction": draw_induction(arms),
        "addition": draw_addition(arms),
        "overlap": draw_overlap(arms),
        "gradients": draw_gradients(arms),
        "heads": draw_heads(arms),
        "neurons": draw_neurons(arms),
        "code": draw_code(arms),
        "steering": draw_steering(arms),
    }
    save_drawings(out, drawings)


def save_drawings(out: Path, drawings: Mapping[str, Any]) -> None:
    """Save drawings by name. A drawing without results is None, and is not saved."""
    for name, drawing in drawings.items():
        if drawing is not None:
            drawing.savefig(out / f"{name}.png", dpi=130)


def with_node(
    arms: Mapping[str, Arm], node: str, titles: Mapping[str, str] = TITLES
) -> dict[str, Arm]:
    """Return the arms that have results of an instrument, in the order of the titles."""
    return {name: arms[name] for name in titles if name in arms and node in arms[name].parts}


def count_of(arm: Arm) -> str:
    """Return the number of runs of an arm in words."""
    count = len(arm.worlds)
    return f"{count} run{'s' * (count > 1)}"


def grid(arms: Mapping[str, Arm], rows: int, *, sharey: Any = True, height: float = 2.5) -> Any:
    """Create a figure with a column for each arm; return it and the axes, [row, arm]."""
    count = len(arms)
    drawing, axes = new_drawing(
        2.2 + 2.9 * count, 0.8 + height * rows, nrows=rows, ncols=count, sharey=sharey, sharex="col"
    )
    table = np.array(axes, object).reshape(rows, count)
    for ax, (name, arm) in zip(table[0], arms.items(), strict=True):
        ax.set_title(f"{TITLES[name]}, {count_of(arm)}", fontsize=9)
    return drawing, table


def single_curves(values: xr.DataArray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the measured steps and the values of every run."""
    found = []
    for row in values.transpose("run", "step").values:
        there = np.isfinite(row)
        found.append((values["step"].values[there], row[there]))
    return found


def draw_runs(ax: Any, values: xr.DataArray, color: Any, label: str, **style: Any) -> None:
    """Draw a thin line for each run, and a thick line for their mean.

    Runs are measured at different steps, so the mean is over linear interpolations, between the
    latest first step and the earliest last step of all runs.
    """
    runs = [(steps, row) for steps, row in single_curves(values) if len(steps)]
    if not runs:
        return
    if len(runs) > 1:
        for steps, row in runs:
            ax.plot(steps, row, color=color, linewidth=0.6, alpha=0.45, **style)
    first, last = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    every = np.unique(np.concatenate([steps for steps, _ in runs]))
    every = every[(every >= first) & (every <= last)]
    mean = np.mean([np.interp(every, steps, row) for steps, row in runs], axis=0)
    style |= {"marker": "o", "markersize": 3} if len(every) == 1 else {}
    ax.plot(every, mean, color=color, linewidth=1.8, label=label, **style)


def draw_points(ax: Any, values: xr.DataArray, color: Any, label: str) -> None:
    """Draw a point for each run and measured step. Use this for values at few steps."""
    for number, (steps, row) in enumerate(single_curves(values)):
        ax.plot(steps, row, "o", color=color, markersize=3, label="" if number else label)


def draw_accuracy(ax: Axes, arm: Arm, splits: Sequence[str] = ("train_ii", "test_ii")) -> None:
    """Draw the accuracy of some splits in gray, for orientation."""
    curves = arm.parts["training"]["accuracy"].rename(evaluation="step")
    for split, line in zip(splits, (":", "-"), strict=True):
        if split in curves["split"]:
            draw_runs(ax, curves.sel(split=split), GREY, f"accuracy, {split}", linestyle=line)


def add_legend(drawing: Any, axes: Iterable[Any]) -> None:
    """Add one legend for several axes, with an entry for each label.

    A label that only later axes have stands behind the label that precedes it there.
    """
    entries: dict[str, Any] = {}
    order: list[str] = []
    for ax in axes:
        place = 0
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            if name not in entries:
                entries[name] = handle
                order.insert(place, name)
            place = order.index(name) + 1
    drawing.legend(
        [entries[name] for name in order],
        order,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
    )


def finish(drawing: Any, table: Any, arms: Mapping[str, Arm], labels: Sequence[str]) -> Any:
    """Set the axes and the legend of a figure with a column for each arm."""
    for place, (row, label) in enumerate(zip(table, labels, strict=True)):
        row[0].set_ylabel(label, fontsize=9)
        for ax, arm in zip(row, arms.values(), strict=True):
            step_axis(ax, int(arm.parts["training"]["evaluation"][-1]))
            ax.set_xlim(left=10)
            ax.set_xlabel("training step (log)" if place == len(table) - 1 else "", fontsize=9)
            ax.tick_params(labelsize=8)
    add_legend(drawing, table.flat)
    return drawing


def draw_induction(arms: Mapping[str, Arm]) -> Any:
    """Draw the loss, the accuracy and the attention of heads in repeated sequences, by run."""
    chosen = [arm for arm in arms.values() if "head_scores" in arm.parts]
    if not chosen:
        return None
    arm = chosen[0]
    part = arm.parts["head_scores"].isel(group=-1)
    drawing, axes = new_drawing(12.5, 3.4, ncols=3)
    draw_runs(axes[0], part["loss"], BLACK, "loss")
    axes[0].set_ylabel("cross-entropy (nats)")
    draw_runs(axes[1], part["correct"], BLACK, "accuracy")
    heads = bump(arm).head
    own = xr.concat(
        [
            part["attention"].isel(run=number, block=block, head=head, drop=True)
            for number, (block, head) in enumerate(heads)
        ],
        "run",
    )
    highest = part["attention"].max(("block", "head"))
    draw_runs(axes[2], own.sel(target="induction"), VERMILION, "head with the highest, induction")
    draw_runs(
        axes[2], highest.sel(target="previous token"), BLUE, "highest of all heads, previous token"
    )
    null = part["other_keys"].max(("block", "head")).sel(target="induction")
    draw_runs(axes[2], null, GREY, "null: other keys", linestyle="--")
    titles = ("loss", "accuracy of the last token", "attention")
    for ax, title in zip(axes, titles, strict=True):
        step_axis(ax, int(arm.parts["training"]["evaluation"][-1]))
        ax.set_xlim(left=10)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("training step (log)")
    for ax in axes[1:]:
        ax.set_ylim(-0.02, 1.02)
    handles, labels = axes[2].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return drawing


def draw_addition(arms: Mapping[str, Arm]) -> Any:
    """Draw the losses of every run of modular addition, the norms and the weights."""
    chosen = [arm for arm in arms.values() if "fourier_progress" in arm.parts]
    if not chosen:
        return None
    arm, count = chosen[0], len(chosen[0].worlds)
    drawing, axes = new_drawing(
        2.4 + 3.1 * count, 6.0, nrows=2, ncols=count, sharey="row", sharex=True
    )
    lines = (
        ("full_loss", "train_pairs", "full, training pairs", BLACK, "--"),
        ("full_loss", "test_pairs", "full, test pairs", BLUE, "-"),
        ("restricted_loss", "all_pairs", "restricted, all pairs", GREEN, "-"),
        ("excluded_loss", "train_pairs", "excluded, training pairs", VERMILION, "-"),
    )
    for number in range(count):
        top, low = axes[number], axes[count + number]
        run = arm.parts["fourier_progress"].isel(run=number).dropna("step", how="all")
        for name, group, label, color, style in lines:
            at = run.sel(group=group)
            top.plot(at["step"], at[name], color=color, linestyle=style, label=label, linewidth=1.5)
            if f"null_{name}" in run:
                null = at[f"null_{name}"].mean("draw")
                label = f"{name.partition('_')[0]}, null: other frequencies"
                top.plot(at["step"], null, color=color, linestyle=":", label=label)
        for matrix, color in zip(run["matrix"].values, (BLUE, VERMILION), strict=True):
            of = run.sel(matrix=matrix)
            low.plot(of["step"], of["gini"], color=color, label=f"Gini, {matrix}")
            low.plot(
                of["step"],
                of["key_norm"],
                color=color,
                linestyle="--",
                label=f"norm at key frequencies, {matrix}",
            )
        weights = run["squared_weights"] / float(run["squared_weights"].max())
        low.plot(run["step"], weights, color=GREY, label="squared weights / maximum")
        for ax in (top, low):
            for step in phase_ends(run).values():
                ax.axvline(step, color=GREY, linewidth=0.8)
        top.set_title(f"world {arm.worlds[number]}, initialization {arm.inits[number]}", fontsize=9)
        low.set_xlabel("training step")
    log_axis(axes[0])
    axes[0].set_ylabel("loss (nats)")
    axes[count].set_ylabel("share")
    above, below = (ax.get_legend_handles_labels() for ax in (axes[0], axes[count]))
    drawing.legend(*above, loc="outside right upper", frameon=False, fontsize=7.5)
    drawing.legend(*below, loc="outside right lower", frameon=False, fontsize=7.5)
    return drawing


def draw_overlap(arms: Mapping[str, Arm]) -> Any:
    """Draw the overlap of the neurons of both hops over training, and by the number of neurons."""
    arms = with_node(arms, "fact_neurons")
    if not arms:
        return None
    drawing, axes = new_drawing(2.2 + 2.9 * len(arms), 5.6, nrows=2, ncols=len(arms), sharey=True)
    table = np.array(axes, object).reshape(2, len(arms))
    for column, (name, arm) in enumerate(arms.items()):
        part = arm.parts["fact_neurons"].isel(group=0)
        counts = part["count"].values
        at = part.sel(count=counts[counts <= OVERLAP_COUNT].max())
        top, low = table[:, column]
        top.set_title(f"{TITLES[name]}, {count_of(arm)}", fontsize=9)
        draw_accuracy(top, arm)
        draw_runs(top, known(at, "overlap_by_count"), BLUE, "first and last hop of a fact")
        draw_runs(
            top, known(at, "null_overlap_by_count"), VERMILION, "null: two facts", linestyle="--"
        )
        step_axis(top, int(arm.parts["training"]["evaluation"][-1]))
        top.set_xlim(left=10)
        end = at_stage(arm, "fact_neurons", "end").isel(group=0)
        for output, color, line in (
            ("overlap_by_count", BLUE, "-"),
            ("null_overlap_by_count", VERMILION, "--"),
        ):
            values = known(end, output)
            style: dict[str, Any] = {"color": color, "linestyle": line}
            low.plot(counts, values.transpose("count", "run"), linewidth=0.6, alpha=0.45, **style)
            low.plot(counts, values.mean("run"), linewidth=1.8, **style)
        low.set_xscale("log", base=2)
        low.set_xlabel("number of strongest neurons", fontsize=9)
        for ax in (top, low):
            ax.set_ylim(-0.02, 1.02)
            ax.tick_params(labelsize=8)
    table[0, 0].set_ylabel(f"overlap of {OVERLAP_COUNT} neurons", fontsize=9)
    table[1, 0].set_ylabel("overlap at the end", fontsize=9)
    handles = table[0, 0].get_legend_handles_labels()
    drawing.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
    return drawing


def draw_gradients(arms: Mapping[str, Arm]) -> Any:
    """Draw the rank correlation of every estimate with exact patching over training."""
    arms = with_node(arms, "attribution")
    if not arms:
        return None
    kinds = ("states", "parts", "projections")
    drawing, table = grid(arms, len(kinds) + 1, sharey="row", height=2.1)
    colors = dict(zip(ESTIMATES, SERIES_COLORS, strict=False))
    for column, arm in enumerate(arms.values()):
        part = arm.parts["attribution"].isel(group=0)
        for row, kind in enumerate(kinds):
            ax = table[row, column]
            draw_accuracy(ax, arm, splits_of(arm))
            for estimate, color in colors.items():
                at = part.sel(estimator=estimate, kind=kind, ranked="effect")
                draw_runs(ax, known(at, "agreement"), color, estimate)
            ax.set_ylim(-0.3, 1.03)
        ax = table[-1, column]
        for estimate, color in colors.items():
            at = part.sel(estimator=estimate)
            draw_runs(ax, known(at, "incompleteness").max("layer"), color, estimate)
        ax.axhline(0.01, color=GREY, linewidth=0.8, linestyle="--")
        log_axis(ax)
    labels = [f"rank correlation,\n{kind}" for kind in kinds]
    return finish(drawing, table, arms, [*labels, "incompleteness,\nworst layer"])


def splits_of(arm: Arm) -> tuple[str, str]:
    """Return the first training split and the first test split of an arm."""
    names = [str(name) for name in arm.parts["training"]["split"].values]
    train, test = (next(n for n in names if n.startswith(p)) for p in ("train", "test"))
    return train, test


def draw_heads(arms: Mapping[str, Arm]) -> Any:
    """Draw how often the vectors of the best head identify each variable, over training."""
    arms = with_node(arms, "head_moves")
    if not arms:
        return None
    drawing, table = grid(arms, 3)
    colors = {"e1": ORANGE, "r1": GREEN, "e2": BLUE, "prefix": PURPLE}
    for column, arm in enumerate(arms.values()):
        part = arm.parts["head_moves"].isel(group=0)
        route = "r1->r2"
        top, mass, low = table[:, column]
        draw_accuracy(top, arm)
        for name, color in colors.items():
            if name not in part["variable"]:
                continue
            cells = known(part, "identified").sel(variable=name, route=route)
            best = cells.sel(truth="true").max(("block", "head"))
            draw_runs(top, best, color, f"{name}, best head")
        null = known(part, "identified").sel(route=route, truth="shuffled")
        draw_runs(
            top, null.max(("variable", "block", "head")), BLACK, "null: shuffled", linestyle="--"
        )
        for block, color in zip(part["block"].values, (VERMILION, BLUE), strict=False):
            highest = part["mass"].sel(block=block, route=route).max("head")
            draw_runs(mass, highest, color, f"block {block}, highest head")
        claims = arm.parts["claims"]
        moved = claims["moves"].sel(variable=list(BRIDGES)).max("variable")
        counted = moved.sum(("block", "head"), skipna=False)
        draw_runs(
            low, counted / moved[0, 0].size, BLUE, "heads that move the bridge or its cluster"
        )
        used = claims["part"].sum(("block", "head"), skipna=False) / moved[0, 0].size
        draw_points(low, used, VERMILION, "heads that are part of the answers (at stages)")
        for ax in (top, mass, low):
            ax.set_ylim(-0.02, 1.02)
    return finish(
        drawing,
        table,
        arms,
        ("facts identified,\nr1->r2", "attention\nr2 to r1", "share of heads\nwith the claim"),
    )


def draw_neurons(arms: Mapping[str, Arm]) -> Any:
    """Draw the kinds of keys of neurons, and the enrichment at e1, over training."""
    arms = with_node(arms, "neuron_keys")
    if not arms:
        return None
    drawing, table = grid(arms, 2, sharey="row")
    colors = (*SERIES_COLORS, OLIVE, WINE)
    for column, arm in enumerate(arms.values()):
        part, (top, low) = arm.parts["neuron_keys"], table[:, column]
        count = part["n_neurons"]
        for name, color in zip(part["trigger"].values, colors, strict=False):
            shares = part["kinds"].sel(trigger=name) / count
            draw_runs(top, shares.mean("block").max("pos"), color, f"key: {name}")
        null = (part["null_kinds"] / count).mean("block").max("pos")
        draw_runs(top, null, GREY, "null: permuted facts", linestyle="--")
        top.set_ylim(bottom=0)
        low.set_ylim(-0.02, 1.02)
        if "enrichment" in arm.parts:
            at = arm.parts["enrichment"].isel(group=0).sel(off="MLPs", layer=1)
            shares = known(at, "attributes")
            draw_runs(low, shares.sel(n_off=0, whose="own"), BLUE, "tails of e1 at S[1, e1]")
            draw_runs(low, shares.sel(n_off=1, whose="own"), VERMILION, "the same, first MLP off")
            draw_runs(
                low,
                shares.sel(n_off=0, whose="another's"),
                BLACK,
                "null: tails of another entity",
                linestyle="--",
            )
    return finish(drawing, table, arms, ("share of neurons\nwith F1 >= .5", "share of the tails"))


def draw_code(arms: Mapping[str, Arm]) -> Any:
    """Draw the accuracy with the shared code of the bridge alone and without it."""
    arms = with_node(arms, "composition_progress")
    if not arms:
        return None
    groups = ("train_ii", "test_ii", "test_oi", "test_c0")
    drawing, table = grid(arms, len(groups), height=2.0)
    styles = {
        "own": (BLACK, "-"),
        "restricted": (GREEN, "-"),
        "excluded": (VERMILION, "-"),
        "restricted, other bridge": (GREEN, "--"),
        "excluded, other bridge": (VERMILION, "--"),
    }
    for column, arm in enumerate(arms.values()):
        part = arm.parts["composition_progress"]
        for ax, group in zip(table[:, column], groups, strict=True):
            ax.set_ylim(-0.02, 1.02)
            if group not in part["group"]:
                ax.set_facecolor("#F2F2F2")
                continue
            for state, (color, line) in styles.items():
                values = part["correct"].sel(group=group, state=state)
                draw_runs(ax, values, color, state, linestyle=line)
    return finish(drawing, table, arms, [f"accuracy,\n{group}" for group in groups])


def draw_steering(arms: Mapping[str, Arm]) -> Any:
    """Draw the share of followed answers over the side effect at the end, and over training."""
    arms = {
        name: arm
        for name, arm in with_node(arms, "steering").items()
        if arm.parts["steering"]["side_divergence"].notnull().any()
    }
    if not arms:
        return None
    drawing, axes = new_drawing(
        2.6 + 2.9 * len(arms), 5.8, nrows=2, ncols=len(arms), sharey=True, sharex="row"
    )
    table = np.array(axes, object).reshape(2, len(arms))
    for column, (name, arm) in enumerate(arms.items()):
        part = arm.parts["steering"].isel(group=0)
        top, low = table[:, column]
        top.set_title(f"{TITLES[name]}, {count_of(arm)}", fontsize=9)
        names = [str(direction) for direction in part["direction"].values]
        for number, direction in enumerate(names):
            is_null = direction in NULLS
            color = GREY if is_null else SERIES_COLORS[number % len(SERIES_COLORS)]
            line = {"random": "--", "wrong bridge": ":"}.get(direction, "-")
            at = part.sel(direction=direction)
            means = [at[output].mean("run") for output in ("side_divergence", "fraction")]
            style = {"color": color, "linestyle": line, "linewidth": 1.4}
            top.plot(
                *means, marker=None if is_null else "o", markersize=2.5, label=direction, **style
            )
            shares = at["followed_at"].sel(cost=0.1, end="mean")
            draw_runs(low, shares, color, direction, linestyle=line)
        top.set_xscale("symlog", linthresh=0.01, linscale=0.4)
        top.set_xlim(left=0)
        top.set_xlabel("KL of unrelated chains (nats)", fontsize=9)
        step_axis(low, int(arm.parts["training"]["evaluation"][-1]))
        low.set_xlim(left=10)
        low.set_xlabel("training step (log)", fontsize=9)
        for ax in (top, low):
            ax.set_ylim(-0.02, 1.02)
            ax.tick_params(labelsize=8)
    table[0, 0].set_ylabel("followed answers at the end", fontsize=9)
    table[1, 0].set_ylabel("followed at a KL of .1", fontsize=9)
    handles = table[0, 0].get_legend_handles_labels()
    drawing.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
    return drawing
