"""Figures and table of `feature_birth.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.figures import BLACK, BLUE, GREY, ORANGE, VERMILION, new_drawing

CONCEPTS = {
    "e2@r1": (BLUE, "o", "bridge that chains use"),
    "decoy@r1": (VERMILION, "s", "bridge that is taught, unused"),
}
_ACCURACIES = {"train_ii": (BLACK, "--"), "test_ii": (BLACK, "-")}
_STEPS = {"memorised": "train_ii .99", "in_distribution_half": "test_ii .5"}
_HALF = 0.5


def draw_all(out: Path, studies: Mapping[str, xr.DataTree]) -> None:
    """Write every figure as PNG."""
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in {"births": draw_births, "use": draw_use, "lasting": draw_lasting}.items():
        draw(studies).savefig(out / f"{name}.png", dpi=150)


def draw_births(studies: Mapping[str, xr.DataTree]) -> Any:
    """Plot the share of entities that a feature represents, and the accuracies of the run."""
    drawing, axes = _panels(studies)
    for ax, study in zip(axes, studies.values(), strict=True):
        features, training = _parts(study)
        for concept, (color, marker, label) in CONCEPTS.items():
            if concept in features["concept"]:
                share = features["standing"].sel(concept=concept).mean("value")
                _lines(ax, share, label, color=color, marker=marker)
        for split, (color, line) in _ACCURACIES.items():
            if split in training["split"]:
                curve = training["accuracy"].sel(split=split).rename(evaluation="step")
                _lines(ax, curve, f"accuracy, {split}", color=color, linestyle=line, marker="")
    axes[0].set_ylabel("share of values with a feature; accuracy")
    return _finished(drawing, axes)


def draw_use(studies: Mapping[str, xr.DataTree]) -> Any:
    """Plot the share of answers that follow a swap of bridge features or a swap of class means."""
    drawing, axes = _panels(studies)
    styles = {
        "class means": {"color": BLACK, "marker": "x"},
        "truth": {"color": BLUE, "marker": "o"},
        "attribution": {"color": ORANGE, "marker": "D"},
        "null": {"color": GREY, "marker": "v", "linestyle": ":"},
    }
    for ax, study in zip(axes, studies.values(), strict=True):
        features, _ = _parts(study)
        for rule, style in styles.items():
            moved = features["use"].sel(rule=rule, change="swap", outcome="moved")
            _lines(ax, moved.mean("seed"), rule, **style)
    axes[0].set_ylabel("answers that follow a swap")
    return _finished(drawing, axes)


def draw_lasting(studies: Mapping[str, xr.DataTree]) -> Any:
    """Plot the similarity of dictionaries between adjacent checkpoints and between seeds."""
    drawing, axes = _panels(studies)
    styles = {
        "kept": ("checkpoint before", {"color": BLUE, "marker": "o"}),
        "agreement": ("another seed", {"color": ORANGE, "marker": "s"}),
        "kept_null": ("null", {"color": GREY, "marker": "v", "linestyle": ":"}),
    }
    for ax, study in zip(axes, studies.values(), strict=True):
        features, _ = _parts(study)
        for name, (label, style) in styles.items():
            _lines(ax, features[name].mean("seed"), label, **style)
    axes[0].set_ylabel("cosine of the nearest feature, mean")
    return _finished(drawing, axes)


def write_table(path: Path, studies: Mapping[str, xr.DataTree]) -> None:
    """Write a Markdown table with one row per run."""
    lines = [
        "A value is born at the first checkpoint at which a feature stands for it: the feature has "
        "an F1 of at least .5 on facts that it was not chosen on (mean of two seeds). The steps of "
        "accuracies are those of the first of three consecutive evaluations, and the steps of "
        "features are those of the first of ten checkpoints. The null is the highest mean F1 of 20 "
        "permutations of the values, over all checkpoints. The columns of swaps are the shares of "
        "answers that follow a swap of bridges at the end.",
        "",
        "| arm | world | "
        + " | ".join(_STEPS.values())
        + " | concept | half of the values born | born by the end | lost again | F1 at the end "
        "| null | swap, truth | swap, class means |",
        "|" + "---|" * (10 + len(_STEPS)),
    ]
    for arm, study in studies.items():
        features, training = _parts(study)
        for number, world in enumerate(study.to_dataset()["world"].values):
            phases = [_step(training[name].values[number]) for name in _STEPS]
            for concept in CONCEPTS:
                if concept in features["concept"]:
                    part = features.isel(run=number).sel(concept=concept)
                    cells = [arm, str(world), *phases, concept, *_numbers(part)]
                    lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parts(study: xr.DataTree) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the features and the training curves."""
    return study.children["features"].to_dataset(), study.children["training"].to_dataset()


def _numbers(part: xr.Dataset) -> list[str]:
    known = part["standing"].notnull().any("step")
    share = part["standing"].mean("value")
    half = part["step"].values[np.flatnonzero(share >= _HALF)]
    born = part["birth"].where(known, drop=True).notnull()
    last = part.isel(step=-1)
    moved = last["use"].sel(change="swap", outcome="moved").mean("seed")
    return [
        _step(half[0] if len(half) else np.nan),
        f"{int(born.sum())} of {int(known.sum())}",
        f"{int((part['value_kept'] == 0).sum())}",
        f"{float(last['f1'].mean()):.2f}",
        f"{float(part['f1_null'].max()):.2f}",
        f"{float(moved.sel(rule='truth')):.2f}",
        f"{float(moved.sel(rule='class means')):.2f}",
    ]


def _step(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def _panels(studies: Mapping[str, xr.DataTree]) -> tuple[Any, list[Axes]]:
    drawing, axes = new_drawing(1.5 + 3.6 * len(studies), 3.4, ncols=len(studies), sharey=True)
    for ax, (arm, study) in zip(axes, studies.items(), strict=True):
        n = study.sizes["run"]
        ax.set_title(f"{arm} ({n} run{'s' if n > 1 else ''})", fontsize=10)
        ax.set_ylim(-0.02, 1.02)
    return drawing, axes


def _lines(ax: Axes, values: xr.DataArray, label: str, **style: Any) -> None:
    """Plot one thin line per run, because three runs are too few for an interval."""
    for number in range(values.sizes["run"]):
        one = values.isel(run=number)
        shown = label if number == 0 else None
        ax.plot(one["step"], one, label=shown, linewidth=1.0, markersize=3.5, alpha=0.8, **style)


def _finished(drawing: Any, axes: list[Axes]) -> Any:
    drawing.supxlabel("training step", fontsize=10)
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= {
            label: handle
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
            if label not in handles
        }
    drawing.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5
    )
    return drawing
