"""Save and load the dictionaries of a run.

The folder `dictionaries/<name>/` of a run contains:

- `config.json`: the configuration;
- `members.json`: the checkpoint, sites, sparsity and seed of each dictionary;
- `finished.npz`: the parameters of all dictionaries, stacked;
- `measured/<instrument>.nc`: the results of each instrument;
- `metrics.jsonl`: metrics of training;
- `provenance.json`: versions, settings and hardware of each start of training;
- `page.json`: the dashboards;
- `resume/`: saved states, from which an interrupted training is resumed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from implicit_reasoning.analysis.subject import tree_rows
from implicit_reasoning.dictionaries.architectures import ARCHITECTURES
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary, describe
from implicit_reasoning.dictionaries.fields import FORMAT, read_config
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import (
    FORMAT_VERSION,
    check_format,
    read_json,
    read_npz,
    write_json,
    write_npz,
)
from implicit_reasoning.formatting import attempt, card, fields, plural, table
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Run, fingerprint
from implicit_reasoning.runtime.machine import provenance

ALL_STEPS = -1
"""The value of `step` for a crosscoder, which is trained on several checkpoints at once."""


TRAINED, UNTRAINED = "trained", "untrained model"
"""Values of the coordinate `what`: for a trained dictionary, and for the baseline of step 0."""


class Source(NamedTuple):
    """The checkpoints and hook sites from which a dictionary's training states are computed."""

    steps: tuple[int, ...]
    sites: Sites


class Member(NamedTuple):
    """Checkpoint, hook sites, sparsity and seed, which identify one dictionary in a set.

    Attributes:
      steps: the training step of the checkpoint on which the dictionary is trained. A crosscoder
        has several steps.
      read: names of the hook sites that the dictionary reads.
      write: names of the hook sites that the dictionary writes.
      sparsity: coefficient of the penalty or number of active features, depending on the activation
        function.
      seed: random seed of initialization and batches.
    """

    steps: tuple[int, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    sparsity: float
    seed: int

    @property
    def step(self) -> int:
        """The training step of the checkpoint. For a crosscoder, the value is `ALL_STEPS`."""
        return self.steps[0] if len(self.steps) == 1 else ALL_STEPS

    @property
    def sites(self) -> Sites:
        """The hook sites of the dictionary, as an argument for `splice.edits`."""
        return Sites(self.read, self.write)

    @property
    def source(self) -> Source:
        """The checkpoints and hook sites of the dictionary's training states."""
        return Source(self.steps, self.sites)

    @property
    def site(self) -> str:
        """A label for tables, made from the names of the hook sites that the dictionary writes."""
        return self.write[0] if len(self.write) == 1 else f"{len(self.write)} sites"


@dataclass(frozen=True)
class Files:
    """The paths of the files in which a set of dictionaries is saved."""

    folder: Path

    @staticmethod
    def of(run: Run, name: str) -> Files:
        """Return the paths for the set of dictionaries with the name `name`."""
        return Files(run.files.workdir / "dictionaries" / name)

    @property
    def config(self) -> Path:
        """Path of the saved configuration of the set."""
        return self.folder / "config.json"

    @property
    def members(self) -> Path:
        """Path of the file with checkpoint, hook sites, sparsity and seed of each dictionary."""
        return self.folder / "members.json"

    @property
    def finished(self) -> Path:
        """Path of the file with all trained parameters.

        The file exists only after the training of the set is finished.
        """
        return self.folder / "finished.npz"

    def result(self, instrument: str) -> Path:
        """Return the path of the file with an instrument's results."""
        return self.folder / "measured" / f"{instrument}.nc"

    @property
    def results(self) -> list[Path]:
        """Paths of all files with measured results, one file per instrument."""
        return sorted((self.folder / "measured").glob("*.nc"))

    @property
    def page(self) -> Path:
        """Path of the saved page of feature dashboards."""
        return self.folder / "page.json"

    @property
    def measured_before(self) -> Path:
        """Path of the results file of earlier package versions.

        The current version does not write this file.
        """
        return self.folder / "measured.nc"

    @property
    def metrics(self) -> Path:
        """Path of the file with training metrics, one row per `log_every` steps."""
        return self.folder / "metrics.jsonl"

    @property
    def provenance(self) -> Path:
        """Path of the file with versions, settings and hardware of each start of training."""
        return self.folder / "provenance.json"

    @property
    def resume(self) -> Path:
        """Path of the folder with the last two saved training states."""
        return self.folder / "resume"


@dataclass(frozen=True)
class Dictionaries:
    """A set of trained dictionaries that have the same shape.

    Attributes:
      dictionary: architecture and activation function of all dictionaries.
      params: the parameters of all dictionaries, stacked along the first axis.
      members: checkpoint, hook sites, sparsity and seed of each dictionary.
      config: the configuration with which the set was trained.
      files: the paths of the saved set, or None if the set is not saved. A comparison of two sets
        ignores this attribute.
    """

    dictionary: InferenceDictionary
    params: Params
    members: tuple[Member, ...]
    config: ConfigDict
    files: Files | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return (
            f"Dictionaries({self.config.name!r}, {plural(len(self), 'member')}, "
            f"{self.config.activation_fn}, {self.dictionary.architecture})"
        )

    def _repr_html_(self) -> str:
        about = describe(self.dictionary) | {"trained as": str(self.config.activation_fn)}
        l0 = attempt(lambda: _measured_l0(self.files, self.members))
        if isinstance(l0, str):
            about["L0"] = l0
        known = isinstance(l0, list) and any(value is not None for value in l0)
        rows = [
            (
                number,
                member.step if member.step != ALL_STEPS else plural(len(member.steps), "step"),
                _sites_text(member),
                f"{member.sparsity:g}",
                member.seed,
                *([l0[number]] if known else []),
            )
            for number, member in enumerate(self.members)
        ]
        header = ("member", "step", "site", "sparsity", "seed", *(["L0"] if known else []))
        where = self.config.name if self.files is None else self.files.folder
        return card("Dictionaries", where, fields(about), table(header, rows))

    def __len__(self) -> int:
        return len(self.members)

    def params_of(self, number: int | Int[np.ndarray, " some"]) -> Params:
        """Return the parameters of one dictionary, or the stacked parameters of several."""
        params: Params = tree_rows(self.params, number)
        return params

    def numbers(self, **wanted: Any) -> list[int]:
        """Return the indices of the dictionaries with given attributes.

        For example, `numbers(step=6000, seed=0)` selects one step and one seed.

        """
        return [
            number
            for number, member in enumerate(self.members)
            if all(getattr(member, name) == value for name, value in wanted.items())
        ]

    def fingerprint(self, step: int) -> str:
        """Return a hash of all dictionaries of one step.

        The hash covers the members and the parameters.
        """
        numbers = self.numbers(step=step)
        about = json.dumps([self.members[number]._asdict() for number in numbers]).encode()
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[numbers], self.params)
        return fingerprint({"params": own, "about": np.frombuffer(about, np.uint8)})

    @cached_property
    def shown(self) -> list[int]:
        """Indices of the dictionaries of the last checkpoint with the median sparsity and seed 0.

        There is one index per written hook site. Baselines and dashboards use the dictionaries with
        these indices.
        """
        last = max(member.steps for member in self.members)
        ordered = sorted({member.sparsity for member in self.members})
        return self.numbers(steps=last, sparsity=ordered[len(ordered) // 2], seed=0)

    def directions(self, number: int) -> Float[np.ndarray, "feature width"]:
        """Return the decoder rows of one dictionary, normalized to norm 1."""
        rows = np.asarray(self.dictionary.architecture.rows(self.params_of(number)))
        unit: np.ndarray = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)
        return unit


def save(files: Files, dictionaries: Dictionaries) -> None:
    """Save a set of trained dictionaries.

    The file `finished.npz` is written last, because its existence marks the set as finished.
    """
    about = {
        FORMAT_VERSION: FORMAT,
        # Keys in files keep their old names.
        "kind": dictionaries.config.architecture,
        "sizes": dataclasses.asdict(dictionaries.dictionary.architecture),
        "architecture": dictionaries.dictionary.saelens_architecture,
        "most": dictionaries.dictionary.max_k,
        "members": [member._asdict() for member in dictionaries.members],
        "made_with": provenance(),
    }
    write_json(files.members, about)
    arrays = {name: np.asarray(value) for name, value in dictionaries.params.items()}
    write_npz(files.finished, arrays)


def load(run: Run, name: str) -> Dictionaries:
    """Load a finished set of dictionaries from a run.

    Raises:
      InputError: the run has no set with this name, the set is not finished, or the package does
        not support the newer format of the file.
    """
    files = Files.of(run, name)
    if not files.finished.exists():
        there = ", ".join(names(run)) or "none"
        raise InputError(
            f"{run} has no finished set of dictionaries {name!r}; the finished sets are: {there}"
        )
    about = read_json(files.members)
    check_format(files.members, about.get(FORMAT_VERSION, 1), FORMAT)
    architecture = ARCHITECTURES[about["kind"]](**about["sizes"])
    finished = InferenceDictionary(architecture, about["architecture"], about["most"])
    members = read_members(files)
    arrays = read_npz(files.finished, "set of dictionaries")
    # `jnp.asarray` would compile a program for each shape.
    params = jax.device_put(arrays)
    return Dictionaries(finished, params, members, read_config(files.config), files)


def read_members(files: Files) -> tuple[Member, ...]:
    """Read which dictionaries a saved set contains, without their parameters."""
    about = read_json(files.members)
    check_format(files.members, about.get(FORMAT_VERSION, 1), FORMAT)
    return tuple(_member(member) for member in about["members"])


def names(run: Run) -> list[str]:
    """Return the names of all finished sets of dictionaries in a run."""
    folder = run.files.workdir / "dictionaries"
    return sorted(path.parent.name for path in folder.glob("*/finished.npz"))


def _sites_text(member: Member) -> str:
    read, write = ", ".join(member.read), ", ".join(member.write)
    return read if read == write else f"{read} → {write}"


def _measured_l0(files: Files | None, members: Sequence[Member]) -> list[float | None]:
    """Return the measured L0 of each member, or None if it has not been measured."""
    path = None if files is None else files.result("reconstruction")
    if path is None or not path.exists():
        return [None] * len(members)
    found: dict[tuple[Any, ...], list[float]] = {}
    names = ("step", "site", "sparsity", "seed")
    with xr.open_dataset(path, engine="h5netcdf") as result:  # only these columns are read
        trained = result["what"].values == TRAINED if "what" in result.coords else slice(None)
        columns = [result[name].values[trained].tolist() for name in (*names, "l0")]
    for *key, l0 in zip(*columns, strict=True):
        found.setdefault(tuple(key), []).append(l0)
    # Two members may have the same key. Their results are in the order of the members.
    own = [found.get((one.step, one.site, one.sparsity, one.seed), []) for one in members]
    return [measured.pop(0) if measured else None for measured in own]


def _member(kept: dict[str, Any]) -> Member:
    """Make a member from JSON, which has lists in place of tuples."""
    tuples = {name: tuple(kept[name]) for name in ("steps", "read", "write")}
    return Member(**{**kept, **tuples})
