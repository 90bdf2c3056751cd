"""`Run`: access to the files, checkpoints and results of one run directory."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Sharding
from ml_collections import ConfigDict

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_npz
from implicit_reasoning.model import Params, Spec, Transformer
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs.arrays import fingerprint, save_arrays
from implicit_reasoning.runs.config import read_config
from implicit_reasoning.runs.layout import Layout
from implicit_reasoning.runs.results import find_result, load_result
from implicit_reasoning.runs.stacked import open_store
from implicit_reasoning.runs.starts import read_starts
from implicit_reasoning.runs.stores import CachedStore, Store
from implicit_reasoning.runs.summary import run_html
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.worlds import Dataset


class Run:
    """An opened run directory. It reads the data of a run, and saves and loads analysis results."""

    def __init__(self, workdir: str | os.PathLike[str], store: Store | None = None):
        """Open a run directory.

        Args:
          workdir: the directory that `train` wrote.
          store: the store from which parameters are read; by default the store of `workdir`.

        Raises:
          InputError: `workdir` is not a run directory.
        """
        self.files = Layout(local_folder(workdir, "workdir"))
        if not self.files.config.exists():
            raise InputError(
                f"{self.files.workdir} is not a run directory, because it has no config.json; give "
                "the --workdir of a `train` command"
            )
        self.store: Store = store or open_store(self.files, self.model)
        self._fingerprints: dict[int, str] = {}

    def __repr__(self) -> str:
        steps = self.steps
        last = f" up to step {steps[-1]}" if steps else ""
        return f"Run({str(self.files.workdir)!r}, {len(steps)} checkpoints{last})"

    def _repr_html_(self) -> str:
        return run_html(self)

    def with_cache(self, limit: int) -> Run:
        """Return the same run with a parameter cache of at most `limit` bytes in memory."""
        run = copy.copy(self)
        run.store = CachedStore(self.store, limit)
        return run

    @cached_property
    def config(self) -> ConfigDict:
        """The complete configuration of the run, including fields that were introduced later."""
        return read_config(self.files.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset: rows, splits and ground truth."""
        return Dataset.load(self.files.world)

    @cached_property
    def model(self) -> Transformer:
        """The model for analysis, which computes in true float32."""
        exact = {"dtype": "float32", "precision": "highest"}
        return Transformer(
            Spec.from_config(
                {**self.config.model.to_dict(), **exact},
                d_vocab=self.dataset.n_vocab,
                n_ctx=self.dataset.n_ctx,
            )
        )

    @cached_property
    def n_params(self) -> int:
        """The number of parameters of the model, computed without reading a checkpoint."""
        shapes = jax.eval_shape(lambda: self.model.init(jax.random.key(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, ascending."""
        return self.store.steps

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Return the parameters of checkpoints, stacked along a leading axis.

        The arrays are transferred from the host once, and each device receives only its shard.

        Args:
          steps: the steps of the checkpoints; by default all steps. A step that is listed several
            times is read only once.
          sharding: the sharding of every array. None puts whole arrays on the default device.

        Raises:
          InputError: a step has no checkpoint.
        """
        steps = self.steps if steps is None else tuple(steps)
        missing = [step for step in steps if step not in self.steps]
        if missing or not steps:
            raise InputError(
                f"{self.files.workdir} contains no checkpoint of the steps {missing}; choose one "
                f"or more of the steps {self.steps}"
            )
        read = {step: self.store.params(step) for step in dict.fromkeys(steps)}
        trees = [read[step] for step in steps]
        # `jnp.asarray` would compile one program per shape.
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *trees), sharding)

    def fingerprint(self, step: int) -> str:
        """Return a digest of the parameters of a checkpoint. The digest is computed only once."""
        if step not in self._fingerprints:
            self._fingerprints[step] = fingerprint(self.store.params(step))
        return self._fingerprints[step]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`."""
        return read_metrics(self.files.metrics)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """All starts of the run, with step, time, versions, hardware and outcome.

        `until` is the step of the last metrics row that was written between this start and the next
        start, or None if no such row exists. `seconds` is the time from this start to that row, or
        0 if no such row exists.
        """
        starts = read_starts(self.files.provenance)
        own: list[list[dict[str, Any]]] = [[] for _ in starts]
        for row in self.metrics if starts else []:
            own[_start_of(row, starts)].append(row)
        for start, rows in zip(starts, own, strict=True):
            trained = [] if "imported" in start else rows
            start["until"] = trained[-1]["step"] if trained else None
            # The system clock may have been set back between the start and the row.
            start["seconds"] = max(0.0, trained[-1]["time"] - start["time"]) if trained else 0.0
        return starts

    @property
    def first_correct(self) -> dict[str, np.ndarray]:
        """The step of the first correct answer to each probe row (row that training evaluates).

        The array `row` contains indices of dataset rows. The array `step` contains steps, or -1 if
        the row was never answered correctly.
        """
        what = "record of first correct answers, which training writes when it saves"
        kept = read_npz(self.files.first_correct, what)
        if kept.keys() != {"row", "step"}:
            raise InputError(
                f"{self.files.first_correct} contains the arrays {', '.join(kept)}; it must "
                "contain the arrays row and step"
            )
        return kept

    def save_result(self, name: str, result: xr.Dataset) -> Path:
        """Save labeled arrays of an analysis as `analysis/<name>.nc` (netCDF 4).

        Returns:
          The path of the file.
        """
        path = self.files.analysis / f"{name}.nc"
        save_arrays(path, result)
        return path

    def result(self, name: str) -> xr.Dataset:
        """Load the result that `save_result` saved under a name.

        Args:
          name: the name of the result. Old names of an instrument also work.

        Raises:
          InputError: no result has this name.
        """
        path = find_result(self.files.analysis / f"{name}.nc")
        if not path.exists():
            raise InputError(
                f"there is no result {name!r} in {self.files.analysis}; run the command `analyze` "
                "to compute this result"
            )
        return load_result(path)


def _start_of(row: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the start during which a row was written.

    When a run resumes at a step, all rows after that step are removed. A row was therefore written
    during the last start whose step is before the step of the row. Steps are compared and not
    times, because the clock may have been set back. Only for a row of step 0, times are compared,
    to choose one of the starts at step 0.
    """
    earlier = [n for n, start in enumerate(starts) if start["step"] < row["step"]]
    if earlier:
        return earlier[-1]
    zero = [n for n, start in enumerate(starts) if start["step"] == 0]
    return max((n for n in zero if starts[n]["time"] <= row["time"]), default=0)
