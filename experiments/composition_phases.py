"""The phases from inside: what appears in the states while a model learns to compose.

    python experiments/composition_phases.py --scale=pocket --out=results/composition_phases/pocket
    python experiments/composition_phases.py --scale=desk --worlds=1 --inits=1 --jobs=1 \
        --out=results/composition_phases/desk

Four arms, of which two are controls of known mechanism: `composition`; `shadow`, whose chains
follow a second table that is never taught by single facts, so that the taught bridge is there to
be decoded and of no use; `scrambled`, whose chains have random answers, so that memorising is all
there is; and `tied`, composition with the embedding as unembedding, as both papers have it: without
that, a lens cannot read what is never a target, such as r2. `--worlds` times `--inits` runs each,
world seed and initialisation seed crossed. A run is trained and measured in processes of its own,
`--jobs` at a time; the script resumes run by run: what is in `--out` is not measured again.
`--arms` says which to run; figures are drawn from all there is in `--out`.

Rebuilt, beside the published numbers: the reciprocal ranks and causal strengths of Wang et al. 2024
(Figs. 4 and 9); the heat map of cross-query patching, the table of decoding and the cosine curves
of Ye et al. 2025. And what neither has: what is used of what is decodable.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from apart import Command, run_apart
from composition_figures import draw_all, read_study
from composition_tables import write_tables

from implicit_reasoning.config import parse_flags, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.machine import provenance
from implicit_reasoning.runs import Run
from implicit_reasoning.training import run_phases
from implicit_reasoning.worlds import shortcuts

FLAGS = {
    "scale": "pocket",
    "worlds": 4,
    "inits": 2,
    "arms": "composition,shadow,scrambled,tied",
    "jobs": 2,
    "runs": "runs/composition_phases",
    "out": "results/composition_phases/pocket",
}
ARMS = {
    "composition": ("composition", ()),
    "shadow": ("shadow", ()),
    "scrambled": ("scrambled", ()),
    "tied": ("composition", ("--config.model.tied=true",)),
}
"""Name to the file of `configs/`, and what is changed in it."""
CHECKPOINTS = 10  # measured in a run, step 0 among them


class Part(NamedTuple):
    """What is kept of an instrument's result: some variables, with their ends, of a selection."""

    variables: tuple[str, ...]
    selected: dict[str, Any]


KEPT = {
    "behaviour": Part(("share", "chance"), {}),
    "lens": Part(("reciprocal_rank", "top1"), {"norm": "final norm", "vocabulary": "all tokens"}),
    "decoding": Part(("top1", "by_construction"), {}),
    "probes": Part(("accuracy",), {"held_out": "prefix"}),
    "geometry": Part(("cosine", "retrieval"), {}),
    "corruption": Part(
        ("share", "null_share", "both_correct"),
        {"kind": "counterfactual", "direction": "noising"},
    ),
    "cross_query": Part(("share",), {}),
    "swap": Part(("counterfactual", "unchanged"), {}),
    "erasure": Part(("unchanged",), {}),
}


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then draw."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides: its arms are files of configs/")
    arms = flags["arms"].split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise InputError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    out, runs = Path(flags["out"]), Path(flags["runs"]) / flags["scale"]
    writing = Lock()

    def job(arm: str, world: int, init: int, command: Command) -> None:
        workdir = runs / f"{arm}_w{world}_i{init}"
        command(training(arm, flags["scale"], world, init, workdir))
        command(measuring(workdir))
        with writing:
            keep(out / f"{arm}.nc", kept(Run(workdir), world, init))

    # Initialisation by initialisation, so that what is there when it is stopped is even.
    seeds = [
        (i, w, arm) for i in range(flags["inits"]) for w in range(flags["worlds"]) for arm in arms
    ]
    jobs = {
        f"{arm}_w{world}_i{init}": partial(job, arm, world, init)
        for init, world, arm in seeds
        if (world, init) not in there(out / f"{arm}.nc")
    }
    run_apart(jobs, flags["jobs"], runs / "compiled")
    studies = {arm: study for arm in ARMS if (study := read_study(out / f"{arm}.nc"))}
    draw_all(out, studies)
    write_tables(out, studies)


def training(arm: str, scale: str, world: int, init: int, workdir: Path) -> list[str]:
    """The command that trains one run."""
    name, changes = ARMS[arm]
    return [
        "train",
        f"--config=configs/{name}.py:{scale}",
        f"--workdir={workdir}",
        f"--config.seed={init}",
        f"--config.task.world_seed={world}",
        "--config.writers.progress=false",
        "--config.writers.tensorboard=false",
        *changes,
    ]


def measuring(workdir: Path) -> list[str]:
    """The command that measures it."""
    steps = ",".join(map(str, spaced(Run(workdir).steps, CHECKPOINTS)))
    return [
        "analyze",
        f"--workdir={workdir}",
        f"--instruments={','.join(KEPT)}",
        f"--steps={steps}",
    ]


def there(path: Path) -> set[tuple[int, int]]:
    """World and initialisation seeds of the runs in an arm's file."""
    if not path.exists():
        return set()
    tree = xr.load_datatree(path)
    return set(zip(tree["world"].values.tolist(), tree["init"].values.tolist(), strict=True))


def keep(path: Path, run: xr.DataTree) -> None:
    """Put a run into the file of its arm: numbers to four places, compressed."""
    trees = [xr.load_datatree(path), run] if path.exists() else [run]
    nodes = {
        node.path: xr.concat([tree[node.path].to_dataset(inherit=False) for tree in trees], "run")
        for node in run.subtree
    }
    order = np.lexsort((nodes["/"]["world"], nodes["/"]["init"]))
    nodes = {name: node.isel(run=order) for name, node in nodes.items()}
    packed = {
        name: {v: {"zlib": True, "complevel": 9} for v in node if node[v].dtype.kind in "fiu"}
        for name, node in nodes.items()
    }
    with atomic_write(path, "wb") as file:
        file.write(xr.DataTree.from_dict(nodes).to_netcdf(engine="h5netcdf", encoding=packed))


def spaced(steps: tuple[int, ...], count: int) -> list[int]:
    """Step 0 and checkpoints evenly over the regular ones, the last among them, denser early on."""
    regular = [step for step in steps if step and step % 250 == 0]
    places = np.linspace(0, 1, count - 1) ** 1.5 * (len(regular) - 1)
    return [0, *dict.fromkeys(regular[round(place)] for place in places)]


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """The parts of a run's results that the figures need, and its curves, along `run`."""
    results = {name: run.result(name) for name in KEPT}
    made = {"config": to_json(run.config), "training": run.starts, "measured": provenance()}
    about = xr.Dataset({"world": world, "init": init, "made_with": json.dumps(made)})
    parts = {name: part_of(results[name], part) for name, part in KEPT.items()}
    nodes = {"/": about, "training": curves(run), **parts}
    return xr.DataTree.from_dict(
        {name: rounded(node).expand_dims("run") for name, node in nodes.items()}
    )


def rounded(arrays: xr.Dataset) -> xr.Dataset:
    """Four places, which is more than any of the intervals allows."""
    return arrays.map(lambda x: x.round(4).astype("f4") if x.dtype.kind == "f" else x)


def part_of(result: xr.Dataset, part: Part) -> xr.Dataset:
    """A part of one result."""
    ends = ("", "_low", "_high", "_n")
    names = [f"{name}{end}" for name in part.variables for end in ends]
    counts = ["n_examples", "n_states"]
    found = result[[name for name in (*names, *counts) if name in result]]
    found = found.sel({dim: value for dim, value in part.selected.items() if dim in found.dims})
    return found.drop_attrs()


def curves(run: Run) -> xr.Dataset:
    """Accuracies at every evaluation, the phases, and what shortcuts would answer."""
    rows = [row for row in run.metrics if f"accuracy/{run.dataset.splits[0]}" in row]
    splits = [name for name in run.dataset.splits if f"accuracy/{name}" in rows[0]]
    table = [[row[f"accuracy/{name}"] for name in splits] for row in rows]
    best = [
        max(
            (rule[name] for rule in shortcuts(run.dataset).values() if name in rule), default=np.nan
        )
        for name in splits
    ]
    phases = run_phases(run)
    begun = {
        name: np.nan if (step := getattr(phases, name)) is None else step
        for name in ("memorised", "in_distribution_half", "in_distribution")
    }
    return xr.Dataset(
        {
            "accuracy": (("evaluation", "split"), np.asarray(table, np.float32)),
            "shortcut": ("split", np.asarray(best, np.float32)),
            **{name: ((), step) for name, step in begun.items()},
        },
        {"evaluation": [row["step"] for row in rows], "split": splits},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
