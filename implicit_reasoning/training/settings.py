"""Settings of training: the fields of a configuration that training reads, as plain values."""

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
    """The fields of a configuration that training reads; `runs.fields` documents each field.

    Attributes:
      model: the fields of the group `model`, for `Spec.from_config`.
      optimizer: the fields of the group `optimizer`.
      schedule: the steps of all events, and the number of steps.
      mesh: the number of devices along each mesh axis, for `sharding.make_mesh`.
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
        """Read the settings from a configuration that passes `setup.check_config`."""
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
    """A run to train: its configuration, its dataset and its run directory."""

    config: ConfigDict
    dataset: Dataset
    files: Layout

    @functools.cached_property
    def settings(self) -> TrainingSettings:
        """The training settings in the configuration."""
        return TrainingSettings.from_config(self.config)
