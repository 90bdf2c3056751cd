r"""What changes in the hidden states while a model learns to compose?

    python experiments/composition_phases.py --scale=pocket --out=results/composition_phases/pocket
    python experiments/composition_phases.py --scale=desk --jobs=1 \
        --out=results/composition_phases/desk

There are four arms. `shadow` and `scrambled` are controls with known mechanisms:

- `composition`.
- `shadow`: chains follow a second table of facts, which single facts never teach. The bridge that
  single facts teach is decodable but irrelevant to chains.
- `scrambled`: chains have random answers, so the model can only memorize.
- `tied`: composition with a tied unembedding, as in both papers. Without a tied unembedding, a lens
  cannot read tokens that are never targets, such as r2.

World seeds and initialization seeds are crossed. The default is four worlds and two initializations
at `pocket`, and one world and one initialization at `desk`; `--worlds` and `--inits` set these
numbers. The runs come from the table in `arms.py`. Missing runs are trained. Runs are trained and
measured in separate processes, `--jobs` in parallel. The script resumes run by run: runs with
results in `--out` are not measured again. `--arms` restricts the arms. The figures show all results
in `--out`.

The study reproduces the reciprocal ranks and causal strengths of Wang et al. 2024 (Figs. 4 and 9),
and the heat map of cross-query patching, the decoding table and the cosine curves of Ye et al.
2025. In addition, it measures which decodable variables the model uses.

Smoke test:
    python experiments/composition_phases.py --scale=smoke --worlds=1 --inits=1 \
        --arms=composition --jobs=0 --runs=runs/smoke --out=runs/smoke/composition_phases
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import archive
import xarray as xr
from archive import about, along_run, analyses, curves, run_arms, spaced
from arms import ARMS
from composition_figures import draw_all, read_study
from composition_tables import write_tables

from implicit_reasoning.config import Flag
from implicit_reasoning.runs import Run

FLAGS = {
    **archive.FLAGS,
    "out": Flag(kind=Path, default=Path("results/composition_phases/pocket")),
}
CHECKPOINTS = 10  # number of checkpoints measured per run, including step 0


class Part(NamedTuple):
    """Part of the result of an instrument to keep: some variables, and a selection."""

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
    """Train and measure the missing runs, then draw the figures."""
    out = run_arms("composition_phases", argv, FLAGS, measuring, kept)
    studies = {arm: study for arm in ARMS if (study := read_study(out / f"{arm}.nc"))}
    draw_all(out, studies)
    write_tables(out, studies)


def measuring(run: Run) -> list[list[str]]:
    """Return the command that measures a run, in a list."""
    return analyses(run, {tuple(spaced(run, CHECKPOINTS)): tuple(KEPT)})


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the curves and the parts of a run's results that the figures need, along `run`."""
    steps = spaced(run, CHECKPOINTS)  # other studies may have measured further checkpoints
    results = {name: run.result(name).sel(step=steps) for name in KEPT}
    parts = {name: part_of(results[name], part) for name, part in KEPT.items()}
    return along_run({"/": about(run, world, init), "training": curves(run), **parts})


def part_of(result: xr.Dataset, part: Part) -> xr.Dataset:
    """Return a part of one result."""
    ends = ("", "_low", "_high", "_n")
    names = [f"{name}{end}" for name in part.variables for end in ends]
    counts = ["n_examples", "n_states"]
    found = result[[name for name in (*names, *counts) if name in result]]
    found = found.sel({dim: value for dim, value in part.selected.items() if dim in found.dims})
    return found.drop_attrs()


if __name__ == "__main__":
    main(sys.argv[1:])
