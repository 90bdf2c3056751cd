r"""The phases from inside: what appears in the states while a model learns to compose.

    python experiments/composition_phases.py --scale=pocket --out=results/composition_phases/pocket
    python experiments/composition_phases.py --scale=desk --jobs=1 \
        --out=results/composition_phases/desk

Four arms, of which two are controls of known mechanism: `composition`; `shadow`, whose chains
follow a second table that is never taught by single facts, so that the taught bridge is there to
be decoded and of no use; `scrambled`, whose chains have random answers, so that memorising is all
there is; and `tied`, composition with the embedding as unembedding, as both papers have it: without
that, a lens cannot read what is never a target, such as r2. World seed and initialisation seed are
crossed: at `pocket` four worlds and two initialisations, at `desk` one of each, unless `--worlds`
and `--inits` say otherwise. The runs are those of `runs.py`, and are trained where they are
missing. A run is trained and measured in processes of its own, `--jobs` at a time; the script
resumes run by run: what is in `--out` is not measured again. `--arms` says which to run; figures
are drawn from all there is in `--out`.

Rebuilt, beside the published numbers: the reciprocal ranks and causal strengths of Wang et al. 2024
(Figs. 4 and 9); the heat map of cross-query patching, the table of decoding and the cosine curves
of Ye et al. 2025. And what neither has: what is used of what is decodable.

Smoke test:
    python experiments/composition_phases.py --scale=smoke --worlds=1 --inits=1 \
        --arms=composition --jobs=0 --runs=runs/smoke --out=runs/smoke/composition_phases
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import archive
import runs
import xarray as xr
from archive import about, along_run, curves, run_arms, spaced
from composition_figures import draw_all, read_study
from composition_tables import write_tables

from implicit_reasoning.config import Flag
from implicit_reasoning.runs import Run

FLAGS = {
    **archive.FLAGS,
    "out": Flag(kind=Path, default=Path("results/composition_phases/pocket")),
}
CHECKPOINTS = 10  # measured in a run, step 0 among them


class Part(NamedTuple):
    """What is kept of an instrument's result: some variables, with their ends, of a selection."""

    variables: tuple[str, ...]
    selected: dict[str, Any]


KEPT = {
    "behaviour": Part(("fraction", "chance"), {}),
    "lens": Part(("reciprocal_rank", "top1"), {"norm": "final norm", "vocabulary": "all tokens"}),
    "decoding": Part(("top1", "by_construction"), {}),
    "probes": Part(("accuracy",), {"held_out": "prefix"}),
    "geometry": Part(("cosine", "retrieval"), {}),
    "activation_patching": Part(
        ("fraction", "null_fraction", "both_correct"),
        {"kind": "counterfactual", "direction": "noising"},
    ),
    "cross_query_patching": Part(("fraction",), {}),
    "mean_swap": Part(("counterfactual", "unchanged"), {}),
    "erasure": Part(("unchanged",), {}),
}


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then draw."""
    out = run_arms("composition_phases", argv, FLAGS, measuring, kept)
    studies = {arm: study for arm in runs.ARMS if (study := read_study(out / f"{arm}.nc"))}
    draw_all(out, studies)
    write_tables(out, studies)


def measuring(run: Run) -> list[str]:
    """The command that measures it."""
    steps = ",".join(map(str, spaced(run, CHECKPOINTS)))
    return [
        "analyze",
        f"--workdir={run.files.workdir}",
        f"--instruments={','.join(KEPT)}",
        f"--steps={steps}",
    ]


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """The parts of a run's results that the figures need, and its curves, along `run`."""
    steps = spaced(run, CHECKPOINTS)  # others may have measured further checkpoints
    results = {name: run.result(name).sel(step=steps) for name in KEPT}
    parts = {name: part_of(results[name], part) for name, part in KEPT.items()}
    return along_run({"/": about(run, world, init), "training": curves(run), **parts})


def part_of(result: xr.Dataset, part: Part) -> xr.Dataset:
    """A part of one result."""
    ends = ("", "_low", "_high", "_n")
    names = [f"{name}{end}" for name in part.variables for end in ends]
    counts = ["n_examples", "n_states"]
    found = result[[name for name in (*names, *counts) if name in result]]
    found = found.sel({dim: value for dim, value in part.selected.items() if dim in found.dims})
    return found.drop_attrs()


if __name__ == "__main__":
    main(sys.argv[1:])
