"""Run directories of edited models: a copy of a run with one checkpoint, whose parameters changed.

The dataset and the configuration are those of the source. The metrics and the steps of first
correct answers are those of the source up to the step of the checkpoint, before the edit. The last
entry of `provenance.json` says what was edited.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_folder, atomic_write, write_json, write_npz
from implicit_reasoning.model import Params
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs.checkpoints import Checkpoints, check_path
from implicit_reasoning.runs.layout import Layout
from implicit_reasoning.runs.run import Run
from implicit_reasoning.runs.starts import read_starts
from implicit_reasoning.runtime.machine import provenance

_NEVER = -1  # the step of a row without a correct answer, in `first_correct.npz`


def check_new(workdir: str | os.PathLike[str], name: str = "workdir") -> Path:
    """Return the path of a run directory that can be made.

    Args:
      workdir: the directory.
      name: what the path is called in error messages, such as `--save`.

    Raises:
      InputError: the path exists already, or checkpoints cannot be saved there.
    """
    folder = local_folder(workdir, name)
    if os.path.lexists(folder):
        raise InputError(f"{name} is {str(folder)!r}, which exists already; give a new folder")
    check_path(folder)
    return folder


def save_edited(
    run: Run,
    workdir: str | os.PathLike[str],
    step: int,
    params: Params,
    about: Mapping[str, Any],
) -> Run:
    """Write the run directory of an edited model. It appears in one atomic step.

    Args:
      run: the source.
      workdir: the new directory, which must not exist.
      step: the step of the checkpoint that was edited. It is the only step of the new run.
      params: the edited parameters.
      about: what was edited, as JSON values. The step, and the path and the fingerprint of the
        source are added.

    Returns:
      The opened new run.

    Raises:
      InputError: `workdir` exists already, or checkpoints cannot be saved there.
    """
    folder = check_new(workdir)
    source = {"source": str(run.files.workdir.absolute()), "fingerprint": run.fingerprint(step)}
    starts = read_starts(run.files.provenance)
    edited = {"step": step, "time": time.time(), "edited": {**about, "step": step, **source}}
    with atomic_folder(folder) as made:
        files = Layout(made)
        with contextlib.closing(Checkpoints(files.checkpoints)) as store:
            store.save(step, params)
        with atomic_write(files.metrics) as metrics:
            metrics.writelines(json.dumps(row) + "\n" for row in run.metrics if row["step"] <= step)
        if run.files.first_correct.exists():
            kept = run.first_correct
            first = np.where(kept["step"] <= step, kept["step"], _NEVER)
            write_npz(files.first_correct, {**kept, "step": first.astype(kept["step"].dtype)})
        write_json(files.provenance, [*starts, {**edited, **provenance()}])
        shutil.copyfile(run.files.world, files.world)
        shutil.copyfile(run.files.config, files.config)
    return Run(folder)


def edited_from(files: Layout) -> Mapping[str, Any] | None:
    """Return what was edited in a run directory; None if it is not that of an edited model."""
    starts = read_starts(files.provenance)
    found: Mapping[str, Any] | None = starts[-1].get("edited") if starts else None
    return found
