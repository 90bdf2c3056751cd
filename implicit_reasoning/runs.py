"""One run directory: where its files are, its checkpoints, and opening it all as a `Run`."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import xarray as xr
from ml_collections import ConfigDict

from implicit_reasoning.config import from_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, read_json, read_npz
from implicit_reasoning.model import Params, Spec, Transformer
from implicit_reasoning.worlds import Dataset

# What the system says of a file that cannot be written.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
)


@dataclass(frozen=True)
class Layout:
    """The files of a run directory.

    `config.json` is written last when a run begins: a directory that has it is a run.
    """

    workdir: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.workdir / "config.json"

    @property
    def world(self) -> Path:
        """The dataset: rows, splits, truth."""
        return self.workdir / "world.npz"

    @property
    def provenance(self) -> Path:
        """Versions and hardware, and how long each start of the run took."""
        return self.workdir / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.workdir / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.workdir / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Parameters, on the schedule, kept for ever."""
        return self.workdir / "checkpoints"

    @property
    def resume(self) -> Path:
        """The full training state, the last two."""
        return self.workdir / "resume"

    @property
    def first_correct(self) -> Path:
        """Per probe row, the first evaluated step at which it was answered correctly."""
        return self.workdir / "first_correct.npz"

    @property
    def profile(self) -> Path:
        """Traces of early steps, where the configuration asked for one."""
        return self.workdir / "profile"

    @property
    def analysis(self) -> Path:
        """Results of instruments, `<name>.nc`."""
        return self.workdir / "analysis"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.workdir / "report" / "index.html"


class Damaged(InputError):
    """A checkpoint that has its name but cannot be read."""

    def __init__(self, folder: Path, error: Exception):
        said = str(error).strip() or type(error).__name__
        super().__init__(f"the checkpoint {folder} cannot be read: {said.splitlines()[0][:200]}")


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    # Orbax has no type of error for damage: whatever it says but for want of memory, or of a peer.
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise Damaged(folder, error) from error


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    # TensorStore reports what the system said of a file as a ValueError; only its text tells.
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = str(error)
        found = next((code for code in _SYSTEM_ERRORS if os.strerror(code) in said), None)
        if found is None:
            raise
        raise OSError(found, os.strerror(found), str(folder)) from error


class Checkpoints:
    """Pytrees of arrays under step numbers in one folder, for the processes that write them.

    A save is written under a temporary name and renamed when it is whole; what a killed process
    left half-written is never counted, and removed by the next writer. In a run of many processes
    all of them call every method, in the same order.
    """

    def __init__(self, folder: Path, *, keep: int | None = None):
        """Open `folder`, making it if need be; only the last `keep` steps stay (None: all)."""
        self._folder = folder.absolute()
        with _written(folder):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True
                ),
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """Finished steps, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, tree: Any) -> None:
        """Save in the background; a step that is there already is left as it is.

        Raises:
          OSError: this save, or the one before it, could not be written.
        """
        if step not in self._manager.all_steps():
            # Without `force` Orbax passes over a step before its latest, and says nothing.
            with _written(self._folder):
                self._manager.save(step, args=ocp.args.PyTreeSave(tree), force=True)

    def restore(self, step: int, like: Any) -> Any:
        """The tree of a step, on the devices and shardings of `like` (arrays or their shapes).

        Raises:
          Damaged: it cannot be read.
        """
        arguments = ocp.checkpoint_utils.construct_restore_args(like)
        with _readable(self._folder / str(step)):
            return self._manager.restore(
                step, args=ocp.args.PyTreeRestore(like, restore_args=arguments)
            )

    def drop_after(self, step: int) -> None:
        """Remove every later step: a run that goes on from `step` comes by them again."""
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Return when everything that was saved is on disk; raise what went wrong on the way."""
        with _written(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the folder."""
        with _written(self._folder):
            self._manager.close()


@runtime_checkable
class Store(Protocol):
    """Where a `Run` reads parameters from: a folder of checkpoints, or a row of stacked ones."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that have a checkpoint, ascending."""
        ...

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays."""
        ...


class FolderStore:
    """The checkpoints of a run that was trained alone; only read, also while training writes."""

    def __init__(self, folder: Path, model: Transformer):
        """Nothing is opened yet, and nothing need be there."""
        self._folder = folder
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbered folders; a save under way has another name."""
        if not self._folder.is_dir():
            return ()
        return tuple(sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal()))

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays, whatever devices wrote them.

        Raises:
          Damaged: they cannot be read.
        """
        path = (self._folder / str(step) / "default").absolute()
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), self._like)
        with _readable(path.parent), ocp.PyTreeCheckpointer() as reader:
            params: Params = reader.restore(path, item=self._like, restore_args=arguments)
        return params


class HeldStore:
    """A store that keeps in memory what was read, as far as a limit of bytes allows.

    For many instruments on the same checkpoints, one after the other.
    """

    def __init__(self, store: Store, limit: int):
        """Nothing is read yet."""
        self._store, self._left = store, limit
        self._held: dict[int, Params] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """As the store says now."""
        return self._store.steps

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays."""
        if step in self._held:
            return self._held[step]
        params = self._store.params(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        if size <= self._left:
            self._held[step], self._left = params, self._left - size
        return params


class Run:
    """A run directory, opened for reading, and for keeping what was measured on it."""

    def __init__(self, workdir: str | os.PathLike[str], store: Store | None = None):
        """Open `workdir`; an `InputError` if it is not a run directory.

        Args:
          workdir: where `train` wrote.
          store: where parameters are, if not in the directory's own `checkpoints/`.
        """
        self.files = Layout(Path(workdir))
        if not self.files.config.exists():
            raise InputError(
                f"{workdir} is not a run directory: it has no config.json; `train` makes one"
            )
        self.store: Store = store or FolderStore(self.files.checkpoints, self.model)

    def __repr__(self) -> str:
        steps = self.steps
        last = f" up to step {steps[-1]}" if steps else ""
        return f"Run({str(self.files.workdir)!r}, {len(steps)} checkpoints{last})"

    def held(self, limit: int) -> Run:
        """The same run, which keeps in memory what it reads, as far as a limit of bytes allows."""
        run = copy.copy(self)
        run.store = HeldStore(self.store, limit)
        return run

    @cached_property
    def config(self) -> ConfigDict:
        """The configuration as it was run."""
        return from_json(read_json(self.files.config))

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

    def params(self, steps: Sequence[int] | None = None) -> Params:
        """Parameters of some checkpoints (default: all), stacked along a leading axis.

        Raises:
          InputError: a step without a checkpoint.
        """
        steps = self.steps if steps is None else tuple(steps)
        missing = [step for step in steps if step not in self.steps]
        if missing or not steps:
            raise InputError(
                f"{self.files.workdir} has no checkpoint of step {missing}; there are {self.steps}"
            )
        trees = [self.store.params(step) for step in steps]
        return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)

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
        ends = [*(start["time"] for start in starts[1:]), float("inf")]
        rows = self.metrics
        for start, end in zip(starts, ends, strict=False):
            own = [row for row in rows if start["time"] <= row["time"] < end]
            start["until"] = own[-1]["step"] if own else None
            start["seconds"] = own[-1]["time"] - start["time"] if own else 0.0
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
        """What `save_result` kept."""
        path = self.files.analysis / f"{name}.nc"
        if not path.exists():
            raise InputError(f"there is no result {name!r} in {self.files.analysis}")
        return load_arrays(path)


def save_arrays(path: Path, arrays: xr.Dataset) -> None:
    """Write labelled arrays as netCDF 4, atomically; attributes may be whatever JSON holds."""
    plain = arrays.copy()
    # netCDF has no nested or missing attributes, JSON has.
    parts: list[Any] = [plain, *plain.variables.values()]
    for part in parts:
        part.attrs = {"json": json.dumps(part.attrs)} if part.attrs else {}
    with atomic_write(path, "wb") as file:
        file.write(plain.to_netcdf(engine="h5netcdf"))


def load_arrays(path: Path) -> xr.Dataset:
    """What `save_arrays` wrote."""
    arrays = xr.load_dataset(path, engine="h5netcdf")
    parts: list[Any] = [arrays, *arrays.variables.values()]
    for part in parts:
        part.attrs = json.loads(part.attrs.get("json", "{}"))
    return arrays


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a `metrics.jsonl`; a last line that a crash cut short is left out.

    Raises:
      InputError: another line is no row; it is named.
    """
    if not path.exists():
        return []
    # A bad byte spoils its own line only.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    advice = "training goes on when this line and those after it are removed"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{path}, line {number}, is not JSON: {line[:60]!r}; {advice}") from None
    numbers = isinstance(row, dict) and (row.get("step"), row.get("time", 0.0))
    if not numbers or not isinstance(numbers[0], int) or not isinstance(numbers[1], int | float):
        raise InputError(f"{path}, line {number}, is no row: {line[:60]!r}; {advice}")
    return row


def read_starts(path: Path) -> list[dict[str, Any]]:
    """What `provenance.json` says of every start; nothing where there is no such file."""
    starts = read_json(path) if path.exists() else []
    if not isinstance(starts, list) or not all(
        isinstance(start, dict)
        and isinstance(start.get("step"), int)
        and isinstance(start.get("time"), int | float)
        for start in starts
    ):
        raise InputError(
            f"{path} is no list of starts; remove it to go on, only their history is lost"
        )
    return starts
