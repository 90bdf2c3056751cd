"""What training reads of a configuration: the one place where its fields are picked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.runs import Layout
from implicit_reasoning.training.optimizer import OptimizerSettings
from implicit_reasoning.training.schedule import Schedule
from implicit_reasoning.worlds import Dataset


@dataclass(frozen=True)
class TrainingSettings:
    """The fields that training reads, as plain values; `runs.fields` documents each of them.

    Attributes:
      model: fields of the group `model`, for `Spec.from_config`.
      optimizer: the group `optimizer`.
      schedule: what happens at which step; also the number of steps.
      mesh: devices by axis, for `sharding.make_mesh`.
    """

    seed: int
    batch_size: int
    order: str
    dropout: float
    model: Mapping[str, Any]
    optimizer: OptimizerSettings
    schedule: Schedule
    mesh: Mapping[str, int]
    fsdp: bool
    profile: bool
    progress: bool
    tensorboard: bool

    @classmethod
    def from_config(cls, config: ConfigDict) -> TrainingSettings:
        """The settings of a configuration in which `setup.check_config` finds no fault."""
        mesh = config.mesh.to_dict()
        return cls(
            seed=config.seed,
            batch_size=config.batch_size,
            order=config.order,
            dropout=config.model.dropout,
            model=config.model.to_dict(),
            optimizer=OptimizerSettings(**config.optimizer.to_dict()),
            schedule=Schedule.from_config(config),
            fsdp=mesh.pop("fsdp"),
            mesh=mesh,
            profile=config.profile,
            progress=config.writers.progress,
            tensorboard=config.writers.tensorboard,
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """A run to train: its configuration, its data, where it writes."""

    config: ConfigDict
    dataset: Dataset
    files: Layout

    @functools.cached_property
    def settings(self) -> TrainingSettings:
        """What training reads of the configuration."""
        return TrainingSettings.from_config(self.config)
