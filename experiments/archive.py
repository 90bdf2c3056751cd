"""Saved results of a study: one netCDF file per arm, along the dimension `run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import runs
import xarray as xr
from apart import Command, run_apart
from arms import Seeds, crossed

from implicit_reasoning.config import Flag, parse_flags, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.runs import Run
from implicit_reasoning.runs.results import current_instrument, with_current_names
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.training import run_phases
from implicit_reasoning.worlds import shortcuts

FLAGS: Mapping[str, Any] = {
    "scale": "pocket",
    "worlds": Flag(kind=int),
    "inits": Flag(kind=int),
    "arms": Flag(many=True, default=()),
    "jobs": 2,
    "runs": Flag(kind=Path, default=runs.ROOT),
}
"""Flags of a study with arms, to which the study adds `out`.

By default, arms and seeds are those in `arms.py`.
"""


def run_arms(
    study: str,
    argv: Sequence[str],
    flags: Mapping[str, Any],
    measuring: Callable[[Run], Sequence[list[str]]],
    kept: Callable[[Run, int, int], xr.DataTree],
    version: int = 1,
) -> Path:
    """Train, measure and save the missing runs of a study, run by run.

    A saved run of another version counts as missing, and is replaced after its measurement.

    Args:
      study: name of the study in the table of runs.
      argv: arguments of the script.
      flags: flags for `parse_flags`: `FLAGS` and the output folder.
      measuring: function that returns the commands that measure a run.
      kept: function of a run, its world seed and its initialization seed that returns the data to
        save.
      version: version of the data that `kept` returns, which is saved with every run.

    Returns:
      The folder `out`, with one file per arm.

    Raises:
      InputError: an override was given, an arm is unknown, or a folder contains a different run.
    """
    given, overrides = parse_flags(list(argv), dict(flags))
    if overrides:
        raise InputError("this study takes no overrides: its arms are files of configs/")
    out, root, scale = given["out"], given["runs"], given["scale"]
    wanted = runs.chosen(study, scale, given["arms"], seeds(study, given))
    writing = Lock()

    def job(state: runs.State, command: Command) -> None:
        run, trained = state.run, runs.train_missing(state, command)
        for words in measuring(trained):
            command(words)
        with writing:
            keep(out / f"{run.arm}.nc", kept(trained, run.world, run.init), version)

    saved = {run.arm: there(out / f"{run.arm}.nc", version) for run in wanted}
    missing = [run for run in wanted if (run.world, run.init) not in saved[run.arm]]
    jobs = {run.name: partial(job, runs.state_of(run, root)) for run in missing}
    run_apart(jobs, given["jobs"], root / "compiled")
    return out


def analyses(run: Run, instruments: Mapping[tuple[int, ...], Sequence[str]]) -> list[list[str]]:
    """Return the commands that measure a run, one for each set of checkpoints.

    Args:
      run: the run.
      instruments: names or import paths of instruments, by the steps that they measure.
    """
    return [
        [
            "analyze",
            f"--workdir={run.files.workdir}",
            f"--instruments={','.join(names)}",
            f"--steps={','.join(map(str, steps))}",
        ]
        for steps, names in instruments.items()
    ]


def seeds(study: str, given: Mapping[str, Any]) -> Seeds | None:
    """Return the seeds that the flags request.

    None means that the flags request no seeds, and that the seeds of the table of runs are used.
    """
    if given["worlds"] is None and given["inits"] is None:
        return None
    own = [(run.world, run.init) for run in runs.chosen(study, given["scale"])]
    counts = [len({pair[axis] for pair in own}) for axis in range(2)]
    worlds, inits = (given[name] for name in ("worlds", "inits"))
    return crossed(counts[0] if worlds is None else worlds, counts[1] if inits is None else inits)


def there(path: Path, version: int = 1) -> set[tuple[int, int]]:
    """Return the seeds of the runs of one version that the file of an arm contains.

    Args:
      path: the file, which may be missing.
      version: the version of the saved data.

    Returns:
      The pairs of world seed and initialization seed.
    """
    if not path.exists():
        return set()
    runs = read(path).to_dataset()
    columns = (runs[name].values.tolist() for name in ("world", "init", "version"))
    return {(world, init) for world, init, saved in zip(*columns, strict=True) if saved == version}


def read(path: Path) -> xr.DataTree:
    """Load the file of an arm, with the current names of instruments and outputs.

    Files of earlier studies do not state the version of their runs; it is 1.
    """
    parts = _parts(xr.load_datatree(path))
    if "version" not in parts["/"]:
        parts["/"] = parts["/"].assign(version=xr.ones_like(parts["/"]["world"]))
    return xr.DataTree.from_dict(
        {
            f"/{current_instrument(name.strip('/'))}": with_current_names(
                part.assign_attrs(instrument=name.strip("/"))
            ).drop_attrs()
            for name, part in parts.items()
        }
    )


def keep(path: Path, run: xr.DataTree, version: int = 1) -> None:
    """Add a run to the file of its arm, compressed. A run with the same seeds is replaced.

    Arrays that an earlier run of another version does not have are nan for this run.
    """
    new = _parts(run)
    new["/"] = new["/"].assign(version=("run", [version]))
    parts = [new]
    if path.exists():
        old = _parts(read(path))
        seeds = [
            np.stack([part["/"][name].values for name in ("world", "init")]) for part in (old, new)
        ]
        others = np.flatnonzero((seeds[0] != seeds[1]).any(0))
        filled = {
            name: old.get(name, node.isel(run=np.zeros(len(seeds[0][0]), int)).where(False))
            for name, node in new.items()
        }
        parts = [{name: node.isel(run=others) for name, node in filled.items()}, new]
    nodes = {name: xr.concat([part[name] for part in parts], "run", join="outer") for name in new}
    if "/training" in nodes:  # a replaced run may have been longer
        nodes["/training"] = nodes["/training"].dropna("evaluation", how="all")
    order = np.lexsort((nodes["/"]["world"], nodes["/"]["init"]))
    nodes = {name: node.isel(run=order) for name, node in nodes.items()}
    packed = {
        name: {v: {"zlib": True, "complevel": 9} for v in node if node[v].dtype.kind in "fiu"}
        for name, node in nodes.items()
    }
    with atomic_write(path, "wb") as file:
        file.write(xr.DataTree.from_dict(nodes).to_netcdf(engine="h5netcdf", encoding=packed))


def _parts(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the arrays of a tree by node."""
    return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}


def spaced(run: Run, count: int) -> list[int]:
    """Choose regularly saved checkpoints, denser early in training, with step 0 and the last step.

    Args:
      run: the run.
      count: number of checkpoints.
    """
    regular = [step for step in run.steps if step and step % run.config.checkpoints.every == 0]
    places = np.linspace(0, 1, count - 1) ** 1.5 * (len(regular) - 1)
    return [0, *dict.fromkeys(regular[round(place)] for place in places)]


def about(run: Run, world: int, init: int) -> xr.Dataset:
    """Return the seeds of a run, its configuration and its provenance."""
    made = {"config": to_json(run.config), "training": run.starts, "measured": provenance()}
    return xr.Dataset({"world": world, "init": init, "made_with": json.dumps(made)})


def along_run(nodes: dict[str, xr.Dataset]) -> xr.DataTree:
    """Combine the parts of one run for `keep`, rounded to four decimals."""
    return xr.DataTree.from_dict(
        {name: rounded(node).expand_dims("run") for name, node in nodes.items()}
    )


def rounded(arrays: xr.Dataset) -> xr.Dataset:
    """Round to four decimals. The intervals of all values are wider than the rounding error."""
    return arrays.map(lambda x: x.round(4).astype("f4") if x.dtype.kind == "f" else x)


def curves(run: Run) -> xr.Dataset:
    """Return the accuracy at every evaluation, the phases, and the best shortcut for each split."""
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
