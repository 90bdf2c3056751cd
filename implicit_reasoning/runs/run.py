"""One run directory, opened."""

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
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.worlds import Dataset


class Run:
    """A run directory, opened for reading, and for keeping what was measured on it."""

    def __init__(self, workdir: str | os.PathLike[str], store: Store | None = None):
        """Open `workdir`; an `InputError` if it is not a run directory.

        Args:
          workdir: where `train` wrote.
          store: where parameters are, if not where the directory says.
        """
        self.files = Layout(local_folder(workdir, "workdir"))
        if not self.files.config.exists():
            raise InputError(
                f"{self.files.workdir} is not a run directory: it has no config.json; `train` "
                "makes one"
            )
        self.store: Store = store or open_store(self.files, self.model)
        self._fingerprints: dict[int, str] = {}

    def __repr__(self) -> str:
        steps = self.steps
        last = f" up to step {steps[-1]}" if steps else ""
        return f"Run({str(self.files.workdir)!r}, {len(steps)} checkpoints{last})"

    def with_cache(self, limit: int) -> Run:
        """The same run, which keeps in memory what it reads, as far as a limit of bytes allows."""
        run = copy.copy(self)
        run.store = CachedStore(self.store, limit)
        return run

    @cached_property
    def config(self) -> ConfigDict:
        """The configuration as it was run, with the fields that were added since."""
        return read_config(self.files.config)

    @cached_property
    def dataset(self) -> Dataset:
        """Rows, splits and truth."""
        return Dataset.load(self.files.world)

    @cached_property
    def model(self) -> Transformer:
        """The model for analysis: true float32 on every device, whatever training used."""
        exact = {"dtype": "float32", "precision": "highest"}
        return Transformer(
            Spec.from_config(
                {**self.config.model.to_dict(), **exact},
                d_vocab=self.dataset.n_vocab,
                n_ctx=self.dataset.n_ctx,
            )
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a checkpoint, ascending."""
        return self.store.steps

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Parameters of some checkpoints (default: all), stacked along a leading axis.

        They go from the host to the device once, each device getting its own share.

        Args:
          steps: which; one that is named twice is read once.
          sharding: of every leaf; None: whole, on the default device.

        Raises:
          InputError: a step without a checkpoint.
        """
        steps = self.steps if steps is None else tuple(steps)
        missing = [step for step in steps if step not in self.steps]
        if missing or not steps:
            raise InputError(
                f"{self.files.workdir} has no checkpoint of step {missing}; there are {self.steps}"
            )
        read = {step: self.store.params(step) for step in dict.fromkeys(steps)}
        trees = [read[step] for step in steps]
        # `jnp.asarray` would compile a program for every shape.
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *trees), sharding)

    def fingerprint(self, step: int) -> str:
        """A digest of the parameters of a checkpoint; they are read once."""
        if step not in self._fingerprints:
            self._fingerprints[step] = fingerprint(self.store.params(step))
        return self._fingerprints[step]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`."""
        return read_metrics(self.files.metrics)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every start of the run: step, time, versions and hardware, and what came of it.

        `until` is the step of the last row it wrote that is still there (None if there is none),
        `seconds` how long it worked for it.
        """
        starts = read_starts(self.files.provenance)
        own: list[list[dict[str, Any]]] = [[] for _ in starts]
        for row in self.metrics if starts else []:
            own[_start_of(row, starts)].append(row)
        for start, rows in zip(starts, own, strict=True):
            trained = [] if "imported" in start else rows
            start["until"] = trained[-1]["step"] if trained else None
            # The clock may have been set back between the start and the row.
            start["seconds"] = max(0.0, trained[-1]["time"] - start["time"]) if trained else 0.0
        return starts

    @property
    def first_correct(self) -> dict[str, np.ndarray]:
        """Per probe row: `row` of the dataset, `step` of the first correct answer (-1: never)."""
        what = "record of first correct answers, which training writes when it saves"
        kept = read_npz(self.files.first_correct, what)
        if kept.keys() != {"row", "step"}:
            raise InputError(f"{self.files.first_correct} is no {what}: it has {', '.join(kept)}")
        return kept

    def save_result(self, name: str, result: xr.Dataset) -> Path:
        """Keep an instrument's labelled arrays as `analysis/<name>.nc` (netCDF 4)."""
        path = self.files.analysis / f"{name}.nc"
        save_arrays(path, result)
        return path

    def result(self, name: str) -> xr.Dataset:
        """What `save_result` kept; old names of instruments are understood."""
        path = find_result(self.files.analysis / f"{name}.nc")
        if not path.exists():
            raise InputError(f"there is no result {name!r} in {self.files.analysis}")
        return load_result(path)


def _start_of(row: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> int:
    """The number of the start that wrote a row; by steps, as a clock may be set back.

    A start drops all rows after its step, so a row is of the last start from an earlier step. Only
    of those that began at step 0 does the time say which of them wrote the row of step 0.
    """
    earlier = [n for n, start in enumerate(starts) if start["step"] < row["step"]]
    if earlier:
        return earlier[-1]
    zero = [n for n, start in enumerate(starts) if start["step"] == 0]
    return max((n for n in zero if starts[n]["time"] <= row["time"]), default=0)
