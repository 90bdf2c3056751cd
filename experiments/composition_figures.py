"""Figures of `composition_phases.py`, made from its saved arrays.

Runs of the same world are not independent. Intervals are therefore computed by Student's t from the
mean of the runs of each world. With one run, there is no such interval. The file of the run has
intervals clustered by fact instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from archive import read
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from implicit_reasoning.analysis.claims import MIN_CLUSTERS
from implicit_reasoning.analysis.drawing import heat_maps, layer_colors
from implicit_reasoning.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    darken,
    label_ends,
    new_drawing,
    split_style,
    step_axis,
)
from implicit_reasoning.statistics import mean_over_seeds

SPLITS = ("train_ii", "test_ii", "test_oi", "test_io", "test_oo")
STAGES = ("fitted", "half", "memorised", "end")
"""Stages: train_ii >= .9, test_ii >= .5, train_ii >= .99, and the end.

The value of a stage is the value at the first measured checkpoint after the stage was reached.
"""
_FITTED = 0.9


class Study(NamedTuple):
    """The runs of one arm.

    Attributes:
      parts: arrays by instrument, with the leading dimension `run`.
      worlds: world seed of each run.
    """

    parts: dict[str, xr.Dataset]
    worlds: tuple[int, ...]

    def stages(self) -> dict[str, list[int | None]]:
        """Return the checkpoint of each stage, by run; None if the stage was not reached."""
        measured = self.parts["lens"]["step"].values
        curves = self.parts["training"]

        def at(reached: Sequence[float] | np.ndarray) -> list[int | None]:
            later = [measured[measured >= step] for step in reached]
            return [int(steps[0]) if len(steps) else None for steps in later]

        trained = curves["accuracy"].sel(split="train_ii")
        fitted = trained["evaluation"].where(trained >= _FITTED).min("evaluation")
        return {
            "fitted": at(fitted.values),
            "memorised": at(curves["memorised"].values),
            "half": at(curves["in_distribution_half"].values),
            "end": at([measured[-1]] * len(self.worlds)),
        }

    def at_stage(self, values: xr.DataArray, stage: str) -> xr.DataArray | None:
        """Return the values of runs at a stage, or None if no run reached the stage."""
        steps = self.stages()[stage]
        found = [
            values.isel(run=run).sel(step=step, drop=True)
            for run, step in enumerate(steps)
            if step is not None
        ]
        return xr.concat(found, "run") if found else None

    def cosine(self, layer: int) -> xr.DataArray:
        """Return the cosine of states at r1 with centroids, after subtraction of the mean state."""
        cosine = self.parts["geometry"]["cosine"]
        return cosine.sel(layer=layer, pos="r1", truth="true", centring="mean removed")

    def used(self, variable: str, layer: int, pos: str) -> xr.Dataset:
        """Return how well a variable is decoded, and how changing it affects the answers.

        The rows are held-out chains if enough of them are answered correctly at the end. Otherwise,
        the rows are training chains. The attribute `group` of the result names the split.
        """
        where = {"variable": variable, "layer": layer, "pos": pos}
        swap, erasure = (self.parts[name].sel(where) for name in ("mean_swap", "erasure"))
        counts = swap["counterfactual_n"].sel(edit="class means") >= MIN_CLUSTERS
        held_out = bool(counts.sel(group="test_ii").isel(step=-1).all())
        group = "test_ii" if held_out else "train_ii"
        swap, erasure = (part.sel(group=group) for part in (swap, erasure))
        counts = counts.sel(group=group)
        stays = erasure["unchanged"]
        changed = {
            "follows": swap["counterfactual"].sel(edit="class means"),
            "follows_random": swap["counterfactual"].drop_sel(edit="class means").max("edit"),
            "lost": 1 - stays.sel(edit="variable"),
            "lost_control": 1 - stays.sel(edit=["shuffled", "random"]).min("edit"),
        }
        decoded = self.parts["probes"]["accuracy"].sel(where | {"truth": "true", "group": "id"})
        made = {name: values.where(counts) for name, values in changed.items()}
        plain = {
            name: values.reset_coords(drop=True)
            for name, values in {**made, "decoded": decoded}.items()
        }
        return xr.Dataset(plain, attrs={"group": group})

    def summary(self, values: Sequence[float], runs: Sequence[int]) -> str:
        """Format values as `mean [low, high] (lowest - highest)`, with t interval over worlds."""
        array, worlds = np.asarray(values, float), np.asarray(self.worlds)[list(runs)]
        found = mean_over_seeds(array, worlds)
        if not found.n_clusters:
            return "-"
        text = f"{found.mean:.2f}"
        if found.n_clusters > 1:
            text += f" [{found.low:.2f}, {found.high:.2f}]"
            text += f" ({np.nanmin(array):.2f} - {np.nanmax(array):.2f})"
        return text


def draw_all(out: Path, studies: Mapping[str, Study]) -> None:
    """Draw and save every figure."""
    drawings = {
        "accuracy": draw_accuracy(studies),
        "reciprocal_rank": draw_reciprocal_ranks(studies),
        "causal_strength": draw_causal_strengths(studies),
        "cross_query": draw_cross_query(studies),
        "cosine": draw_cosines(studies),
        "used": draw_used(studies),
    }
    for name, drawing in drawings.items():
        drawing.savefig(out / f"{name}.png", dpi=130)


def read_study(path: Path) -> Study | None:
    """Load the runs of an arm; None if there is no file."""
    if not path.exists():
        return None
    tree = read(path)
    parts = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
    return Study(parts, tuple(tree.to_dataset()["world"].values.tolist()))


def draw_accuracy(studies: Mapping[str, Study]) -> Any:
    """Draw the curves of every run, their mean, and the best shortcut on the held-out chains."""
    drawing, axes = _panels(studies, 1)
    for ax, (arm, study) in zip(axes, studies.items(), strict=True):
        curves = study.parts["training"]
        step_axis(ax, int(curves["evaluation"][-1]))
        ends = []
        for split in (name for name in SPLITS if name in curves["split"]):
            style, values = split_style(split), curves["accuracy"].sel(split=split)
            ax.plot(curves["evaluation"], values.T, linewidth=0.6, alpha=0.45, **style)
            mean = values.mean("run")
            ax.plot(curves["evaluation"], mean, linewidth=1.8, **style)
            ends.append((float(mean[-1]), split, style["color"]))
        best = float(curves["shortcut"].sel(split="test_ii").mean())
        ax.axhline(best, color=BLUE, linewidth=0.9, linestyle="-.", alpha=0.8)
        # The position does not overlap with the curves.
        beside = best - 0.06 if best > 0.5 else 0.12
        ax.text(1, beside, f"best shortcut, test_ii: {best:.2f}", color=darken(BLUE), size=7)
        _title(ax, arm, study)
        label_ends(ax, ends)
    axes[0].set_ylabel("accuracy on probe rows")
    return drawing


def draw_reciprocal_ranks(studies: Mapping[str, Study]) -> Any:
    """Draw the reciprocal ranks of e2 at r1 and r2 at r2 by logit lens (Wang et al., Fig. 4c)."""

    def panel(ax: Axes, study: Study, variable: str, pos: str) -> None:
        ranks = study.parts["lens"]["reciprocal_rank"]
        ranks = ranks.sel(group="train_ii", variable=variable, pos=pos)
        layers = ranks["layer"].values
        for layer, color in zip(layers, layer_colors(len(layers)), strict=True):
            one = ranks.sel(truth="true", layer=layer)
            _line(ax, one, color=color, label=f"layer {layer}")
        null = ranks.sel(truth="shuffled").max("layer")
        _line(ax, null, color=GREEN, linestyle=":", label="shuffled truth")

    rows = {
        f"mean reciprocal rank\nof {variable} at {pos}": partial(panel, variable=variable, pos=pos)
        for variable, pos in (("e2", "r1"), ("r2", "r2"))
    }
    return _over_training(studies, rows)


def draw_causal_strengths(studies: Mapping[str, Study]) -> Any:
    """Draw the share of answers that change if a state comes from a prompt with a different token.

    The figure corresponds to Fig. 9 of Wang et al.
    """
    maps = {}
    for arm, study in studies.items():
        strength = causal_strength(study)
        start, end = (study.at_stage(strength, stage) for stage in ("fitted", "end"))
        for stage, found in (("fitted", start), ("end", end)):
            if found is not None:
                maps[f"{arm}\n{stage}"] = found.mean("run")
        if start is not None and end is not None and start.sizes == end.sizes:
            maps[f"{arm}\nend less fitted"] = (end - start).mean("run")
    return heat_maps(maps, "share of answers that change", ncols=3, lowest=-1.0)


def causal_strength(study: Study) -> xr.DataArray:
    """Return 1 minus the share of answers that patching leaves unchanged.

    The state that is patched in comes from a prompt with a different token at the patched position.
    """
    share = study.parts["activation_patching"]["fraction"].sel(
        group="train_ii", outcome="clean answer"
    )
    own = [share.sel(token=pos, pos=pos, drop=True) for pos in share["pos"].values]
    return 1 - xr.concat(own, share["pos"])


def draw_cross_query(studies: Mapping[str, Study]) -> Any:
    """Draw the heat map of Ye et al. at the last checkpoint, with the shuffled null."""
    maps, nulls = {}, {}
    for arm, study in studies.items():
        share = (
            study.parts["cross_query_patching"]["fraction"]
            .sel(outcome="counterfactual")
            .isel(step=-1)
        )
        for group in ("another bridge", "O source", "trained chain"):
            if group in share["group"]:
                title = f"{arm}\n{group}"
                of_group = share.sel(group=group).mean("run")
                maps[title] = of_group.sel(expected="true")
                nulls[title] = of_group.sel(expected="shuffled")
    return heat_maps(maps, "share of answers r2(bridge of the source)", ncols=3, nulls=nulls)


def draw_cosines(studies: Mapping[str, Study]) -> Any:
    """Draw the cosine curves of Ye et al. at r1, one row per layer, with nulls and accuracies."""
    lines = {
        "ID cohesion (left out)": (BLUE, "-", {"group": "id", "centroid": "without itself"}),
        "of other bridges": (SKY, ":", {"group": "id", "centroid": "of other bridges"}),
        "OOD alignment": (VERMILION, "-", {"group": "ood", "centroid": "with itself"}),
        "OOD, of other bridges": (ORANGE, ":", {"group": "ood", "centroid": "of other bridges"}),
    }

    def panel(ax: Axes, study: Study, layer: int) -> None:
        cosine = study.cosine(layer)
        for name, (color, linestyle, where) in lines.items():
            _line(ax, cosine.sel(where), color=color, linestyle=linestyle, label=name)
        curves = study.parts["training"]
        for split in ("test_ii", "test_oi"):
            mean = curves["accuracy"].sel(split=split).mean("run")
            style = {**split_style(split), "linestyle": "--", "linewidth": 0.9}
            ax.plot(curves["evaluation"], mean, label=f"accuracy, {split}", **style)

    layers = [int(x) for x in next(iter(studies.values())).parts["geometry"]["layer"] if x]
    rows = {
        f"cosine, mean removed,\nat S[{layer}, r1]": partial(panel, layer=layer) for layer in layers
    }
    return _over_training(studies, rows, lowest=-0.25)


def draw_used(studies: Mapping[str, Study]) -> Any:
    """Draw how well a variable is decoded, and the effect of changing it on answers."""
    lines = {
        "decoded": ("decoded, held out", GREY, "-"),
        "follows": ("answers follow its swap", BLUE, "-"),
        "follows_random": ("swap, control", BLUE, ":"),
        "lost": ("answers lost to its erasure", VERMILION, "-"),
        "lost_control": ("erasure, control", VERMILION, ":"),
    }

    def panel(ax: Axes, study: Study, variable: str, layer: int, pos: str) -> None:
        made = study.used(variable, layer, pos)
        for name, (label, color, linestyle) in lines.items():
            _line(ax, made[name], color=color, linestyle=linestyle, label=label)
        ax.text(0.98, 0.5, made.attrs["group"], transform=ax.transAxes, ha="right", size=8)

    rows = {
        f"{variable} at S[{layer}, {pos}]": partial(panel, variable=variable, layer=layer, pos=pos)
        for variable, layer, pos in (("e2", 1, "r1"), ("r2", 1, "r2"), ("e1", 1, "r2"))
    }
    return _over_training(studies, rows)


def _panels(studies: Mapping[str, Study], nrows: int) -> tuple[Any, list[Axes]]:
    size = (1.9 + 3.3 * len(studies), 0.6 + 2.6 * nrows)
    return new_drawing(*size, nrows=nrows, ncols=len(studies), sharey="row", sharex=True)


def _over_training(
    studies: Mapping[str, Study],
    rows: Mapping[str, Callable[[Axes, Study], None]],
    lowest: float = -0.015,
) -> Any:
    """Draw one panel per study and row. A row is a label and a function that draws a panel."""
    drawing, axes = _panels(studies, len(rows))
    panels = iter(axes)
    for label, draw in rows.items():
        for number, (arm, study) in enumerate(studies.items()):
            ax = next(panels)
            draw(ax, study)
            _title(ax, arm, study)
            ax.set_ylim(lowest, 1.03)
            if number == 0:
                ax.set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    drawing.supxlabel("training step", fontsize=10)
    return drawing


def _title(ax: Axes, arm: str, study: Study) -> None:
    runs = len(study.worlds)
    ax.set_title(f"{arm}, {runs} run{'s' * (runs > 1)}", fontsize=10)
    ax.set_ylim(-0.015, 1.03)


def _line(ax: Axes, values: xr.DataArray, **style: Any) -> None:
    """Plot the mean over runs, with a band from the lowest to the highest run."""
    steps, values = values["step"], values.transpose("run", "step")
    ax.set_xlim(0, int(steps[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ends = values.min("run"), values.max("run")
    ax.fill_between(steps, *ends, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(steps, values.mean("run"), **{"linewidth": 1.5, **style})
