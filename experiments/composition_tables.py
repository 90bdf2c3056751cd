"""Tables of `composition_phases.py`, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from composition_figures import STAGES, Study, causal_strength

from implicit_reasoning.statistics import p_value, permutation_null

_PERMUTATIONS = 9999
# Per arm. Eight worlds can be assigned to two arms in 70 ways, so p can be as low as .03.
_FEWEST_WORLDS = 4


def write_tables(out: Path, studies: Mapping[str, Study]) -> None:
    """Write `table.md`, `decoding.md` and, if there are enough worlds, `contrasts.md`."""
    made = {"table": table, "decoding": decoding_table, "contrasts": contrasts}
    for name, make in made.items():
        if text := make(studies):
            (out / f"{name}.md").write_text(text, encoding="utf-8")


def table(studies: Mapping[str, Study]) -> str:
    """Return Markdown: quantities by arm and stage, with intervals over worlds."""
    lines = [
        "Each cell is a mean over runs, its 95% interval (t interval over worlds, in square "
        "brackets) and its range (lowest - highest run). The columns are stages of training, which "
        "begin at the first checkpoint after a condition holds: train_ii is at least .9 (fitted), "
        "test_ii is at least .5 (half), train_ii is at least .99 (memorised). The last column is "
        "the last checkpoint. A mean over fewer than 20 clusters is not shown.",
        "",
        "| arm | quantity | " + " | ".join(STAGES) + " |",
        "|---|---|" + "---|" * len(STAGES),
    ]
    for arm, study in studies.items():
        reached = study.stages()
        total = len(study.worlds)
        counts = [f"{sum(step is not None for step in reached[stage])}/{total}" for stage in STAGES]
        lines.append(f"| {arm} | runs that reached the stage | {' | '.join(counts)} |")
        for name, values in quantities(study).items():
            cells = [_cell(study, values, stage) for stage in STAGES]
            lines.append(f"| {arm} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def quantities(study: Study) -> dict[str, xr.DataArray]:
    """Return the quantities that the study reports, by name, each [run, step]."""
    parts, strength = study.parts, causal_strength(study).sel(layer=1)
    followed = parts["activation_patching"]["fraction"].sel(
        group="train_ii", outcome="counterfactual", layer=1
    )
    accuracy = parts["training"]["accuracy"].rename(evaluation="step")
    ranks = parts["lens"]["reciprocal_rank"].sel(group="train_ii", truth="true", layer=1)
    share = parts["cross_query_patching"]["fraction"].sel(
        outcome="counterfactual", layer=1, pos="r1"
    )
    other = share.sel(group="another bridge")
    cosine = study.cosine(1)
    bridge, second = study.used("e2", 1, "r1"), study.used("r2", 1, "r2")
    return {
        "accuracy, test_ii": accuracy.sel(split="test_ii"),
        "accuracy, test_oi": accuracy.sel(split="test_oi"),
        "reciprocal rank of e2 at S[1, r1]": ranks.sel(variable="e2", pos="r1"),
        "reciprocal rank of r2 at S[1, r2]": ranks.sel(variable="r2", pos="r2"),
        "causal strength of S[1, e1]": strength.sel(pos="e1"),
        "causal strength of S[1, r1]": strength.sel(pos="r1"),
        "causal strength of S[1, r2]": strength.sel(pos="r2"),
        "answers that follow S[1, r1] of another r1": followed.sel(pos="r1", token="r1"),
        "cross-query at S[1, r1], another bridge": other.sel(expected="true"),
        "cross-query at S[1, r1], shuffled answers (null)": other.sel(expected="shuffled"),
        "cross-query at S[1, r1], O source": share.sel(group="O source", expected="true"),
        "ID cohesion at S[1, r1], centroid without the state": cosine.sel(
            group="id", centroid="without itself"
        ),
        "OOD alignment at S[1, r1]": cosine.sel(group="ood", centroid="with itself"),
        "e2 decoded at S[1, r1], held-out states": bridge["decoded"],
        "answers that follow a swap of e2 at S[1, r1]": bridge["follows"],
        "answers that follow the swap, highest control": bridge["follows_random"],
        "answers lost when e2 is erased at S[1, r1]": bridge["lost"],
        "answers lost to the erasure, control": bridge["lost_control"],
        "answers that follow a swap of r2 at S[1, r2]": second["follows"],
    }


def decoding_table(studies: Mapping[str, Study]) -> str:
    """Return Markdown: the decoding table of Ye et al., by unembedding and by later blocks."""
    lines = [
        "Each cell is the share of facts whose bridge e2 is the top-1 token when the state at r1 "
        "is read: the mean over runs, its 95% interval (t interval over worlds) and its range. The "
        "last column is the null: the share for the bridge of another fact.",
        "",
        "| arm | facts | layer | reading | " + " | ".join(STAGES) + " | null, end |",
        "|---|---|---|---|" + "---|" * (len(STAGES) + 1),
    ]
    for arm, study in studies.items():
        top1 = study.parts["decoding"]["top1"].sel(variable="e2")
        for group in top1["group"].values:
            for layer in top1["layer"].values[1:]:
                for reading in ("immediate", "full run"):
                    here = top1.sel(group=group, layer=layer, reading=reading)
                    cells = [_cell(study, here.sel(truth="true"), stage) for stage in STAGES]
                    cells.append(_cell(study, here.sel(truth="another's"), "end"))
                    lines.append(f"| {arm} | {group} | {layer} | {reading} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def contrasts(studies: Mapping[str, Study]) -> str:
    """Return Markdown: every arm compared with composition at the last checkpoint.

    The permutation test exchanges worlds between the two arms. A world is exchanged with all its
    runs. The text is empty if there are too few worlds.
    """
    enough = {arm: s for arm, s in studies.items() if len(set(s.worlds)) >= _FEWEST_WORLDS}
    base = enough.pop("composition", None)
    if base is None or not enough:
        return ""
    lines = [
        "Each number is the mean over runs of an arm minus that of `composition`, at the last "
        f"checkpoint. p is two-sided, from {_PERMUTATIONS:,} random permutations of whole worlds "
        "between the two arms. There are few different permutations: with four worlds in each arm, "
        "p is never below .03. The p values are not corrected for the number of rows.",
        "",
        "| quantity | " + " | ".join(f"{arm} | p" for arm in enough) + " |",
        "|---|" + "---|---|" * len(enough),
    ]
    for name, values in quantities(base).items():
        cells = [_contrast(base, values, arm, quantities(arm)[name]) for arm in enough.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _contrast(base: Study, values: xr.DataArray, arm: Study, others: xr.DataArray) -> str:
    """Return `difference | p` for one quantity."""
    both = [part.transpose("run", "step").isel(step=-1).values for part in (values, others)]
    value = np.concatenate(both).astype(float)
    is_arm = np.repeat([False, True], [len(part) for part in both])
    world = np.concatenate([base.worlds, arm.worlds]) + is_arm * (1 + max(base.worlds))
    if np.isnan(value).any():
        return "- | -"

    def difference(labels: np.ndarray) -> float:
        return float(value[labels].mean() - value[~labels].mean())

    null = permutation_null(
        lambda labels: abs(difference(labels)),
        is_arm,
        n_permutations=_PERMUTATIONS,
        seed=0,
        clusters=world,
    )
    # Subtract a small number, so that the observed labels count as reached despite rounding errors.
    p = p_value(abs(difference(is_arm)) - 1e-12, null)
    return f"{difference(is_arm):+.2f} | {p:.2f}"


def _cell(study: Study, values: xr.DataArray, stage: str) -> str:
    values = values.transpose("run", "step")
    steps = study.stages()[stage]
    runs = [run for run, step in enumerate(steps) if step is not None]
    return study.summary([float(values.isel(run=run).sel(step=steps[run])) for run in runs], runs)
