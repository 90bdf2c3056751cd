"""Where dictionaries are kept in a run, and opening them.

`dictionaries/<name>/` has `config.json`, `members.json` (what each is of), `finished.npz` (all
parameters, stacked), `measured/<instrument>.nc`, `metrics.jsonl` and `provenance.json` (training),
and `resume/` while it is trained.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from implicit_reasoning.dictionaries.architectures import ARCHITECTURES
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
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
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Run, fingerprint
from implicit_reasoning.runtime.machine import provenance

ALL_STEPS = -1
"""In place of a step: of a crosscoder, which is of all checkpoints."""


TRAINED, UNTRAINED = "trained", "untrained model"
"""What a dictionary is, among names of baselines; the second is of step 0."""


class Source(NamedTuple):
    """Where states are from: the checkpoints, and the sites that are read and written there."""

    steps: tuple[int, ...]
    sites: Sites


class Member(NamedTuple):
    """What one dictionary is of.

    Attributes:
      steps: of the checkpoint; a crosscoder's of all of them.
      read: sites it reads.
      write: sites it writes.
      sparsity: see its activation function.
      seed: of its start.
    """

    steps: tuple[int, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    sparsity: float
    seed: int

    @property
    def step(self) -> int:
        """The checkpoint, or `ALL`."""
        return self.steps[0] if len(self.steps) == 1 else ALL_STEPS

    @property
    def sites(self) -> Sites:
        """Both, as splicing wants them."""
        return Sites(self.read, self.write)

    @property
    def source(self) -> Source:
        """Where its states are from."""
        return Source(self.steps, self.sites)

    @property
    def site(self) -> str:
        """A name for tables: what is written."""
        return self.write[0] if len(self.write) == 1 else f"{len(self.write)} sites"


@dataclass(frozen=True)
class Files:
    """The files of one set of dictionaries."""

    folder: Path

    @staticmethod
    def of(run: Run, name: str) -> Files:
        """In a run."""
        return Files(run.files.workdir / "dictionaries" / name)

    @property
    def config(self) -> Path:
        """As it was asked for."""
        return self.folder / "config.json"

    @property
    def members(self) -> Path:
        """What each dictionary is of."""
        return self.folder / "members.json"

    @property
    def finished(self) -> Path:
        """Parameters; written last, so that it vouches for the rest."""
        return self.folder / "finished.npz"

    def result(self, instrument: str) -> Path:
        """What an instrument measured."""
        return self.folder / "measured" / f"{instrument}.nc"

    @property
    def results(self) -> list[Path]:
        """What was measured, a file for each instrument."""
        return sorted((self.folder / "measured").glob("*.nc"))

    @property
    def page(self) -> Path:
        """The page of dashboards, as the report shows it."""
        return self.folder / "page.json"

    @property
    def measured_before(self) -> Path:
        """What versions before there were instruments of dictionaries measured; only read."""
        return self.folder / "measured.nc"

    @property
    def metrics(self) -> Path:
        """A row every `log_every` steps."""
        return self.folder / "metrics.jsonl"

    @property
    def provenance(self) -> Path:
        """Versions, settings and hardware of each start of training."""
        return self.folder / "provenance.json"

    @property
    def resume(self) -> Path:
        """The state of training, the last two."""
        return self.folder / "resume"


@dataclass(frozen=True)
class Dictionaries:
    """A set of finished dictionaries of one shape.

    Attributes:
      dictionary: how they encode and decode.
      params: stacked, one after the other.
      members: what each is of.
      config: as they were trained.
    """

    dictionary: InferenceDictionary
    params: Params
    members: tuple[Member, ...]
    config: ConfigDict

    def __len__(self) -> int:
        return len(self.members)

    def params_of(self, number: int | Int[np.ndarray, " some"]) -> Params:
        """Of one dictionary; of several, stacked."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)

    def numbers(self, **wanted: Any) -> list[int]:
        """Numbers of the members with these attributes, such as `step=6000, site="..."`."""
        return [
            number
            for number, member in enumerate(self.members)
            if all(getattr(member, name) == value for name, value in wanted.items())
        ]

    def fingerprint(self, step: int) -> str:
        """A digest of the parameters of the dictionaries of a step, and of what each is of."""
        numbers = self.numbers(step=step)
        about = json.dumps([self.members[number]._asdict() for number in numbers]).encode()
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[numbers], self.params)
        return fingerprint({"params": own, "about": np.frombuffer(about, np.uint8)})

    @cached_property
    def shown(self) -> list[int]:
        """One for each site, to stand for all: last checkpoint, middle sparsity, seed 0."""
        last = max(member.steps for member in self.members)
        ordered = sorted({member.sparsity for member in self.members})
        return self.numbers(steps=last, sparsity=ordered[len(ordered) // 2], seed=0)

    def directions(self, number: int) -> Float[np.ndarray, "feature width"]:
        """What each feature of one dictionary writes, at length 1."""
        rows = np.asarray(self.dictionary.architecture.rows(self.params_of(number)))
        unit: np.ndarray = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)
        return unit


def save(files: Files, dictionaries: Dictionaries) -> None:
    """Keep finished dictionaries; `finished.npz` comes last."""
    about = {
        FORMAT_VERSION: FORMAT,
        # Keys of files keep the names that they had.
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
    """Open a set of dictionaries.

    Raises:
      InputError: there is none of that name, or it is not finished.
    """
    files = Files.of(run, name)
    if not files.finished.exists():
        there = ", ".join(names(run)) or "none"
        raise InputError(f"there are no finished dictionaries {name!r} in {run}; there are {there}")
    about = read_json(files.members)
    check_format(files.members, about.get(FORMAT_VERSION, 1), FORMAT)
    architecture = ARCHITECTURES[about["kind"]](**about["sizes"])
    finished = InferenceDictionary(architecture, about["architecture"], about["most"])
    members = read_members(files)
    arrays = read_npz(files.finished, "set of dictionaries")
    params = jax.device_put(arrays)  # `jnp.asarray` would compile a program for every shape
    return Dictionaries(finished, params, members, read_config(files.config))


def read_members(files: Files) -> tuple[Member, ...]:
    """What the dictionaries of a set are of, without their parameters."""
    about = read_json(files.members)
    check_format(files.members, about.get(FORMAT_VERSION, 1), FORMAT)
    return tuple(_member(member) for member in about["members"])


def names(run: Run) -> list[str]:
    """The finished sets of a run."""
    folder = run.files.workdir / "dictionaries"
    return sorted(path.parent.name for path in folder.glob("*/finished.npz"))


def _member(kept: dict[str, Any]) -> Member:
    """From JSON, which has lists for tuples."""
    tuples = {name: tuple(kept[name]) for name in ("steps", "read", "write")}
    return Member(**{**kept, **tuples})
