"""Settings of training: the values of all configuration fields that training reads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.runs import Layout
from implicit_reasoning.training.early import EarlySettings
from implicit_reasoning.training.initial import Initial, read_initial
from implicit_reasoning.training.optimizer import OptimizerSettings
from implicit_reasoning.training.schedule import Schedule
from implicit_reasoning.worlds import Dataset


@dataclass(frozen=True)
class TrainingSettings:
    """The values of all configuration fields that training reads.

    The module `runs.fields` describes the fields that are not listed below.

    Attributes:
      early: the fields of the group `loss.early_supervision`.
      model: the fields of the group `model`, for `Spec.from_config`.
      optimizer: the fields of the group `optimizer`.
      schedule: the steps of all events, and the number of steps.
      mesh: the number of devices along each mesh axis, for `sharding.make_mesh`.
    """

    seed: int
    batch_size: int
    order: str
    dropout: float
    early: EarlySettings
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
            early=EarlySettings(**config.loss.early_supervision.to_dict()),
            model=config.model.to_dict(),
            optimizer=OptimizerSettings(**config.optimizer.to_dict()),
            schedule=Schedule.from_config(config),
            fsdp=mesh.pop("fsdp"),
            mesh=mesh,
            profile=config.profile,
            progress=config.writers.progress,
            tensorboard=config.writers.tensorboard,
        )


def make_model(fields: Mapping[str, Any], dataset: Dataset) -> Transformer:
    """Create the model for a dataset, with the dtype and precision of training.

    Args:
      fields: the fields of the configuration group `model`.
      dataset: the dataset, which determines the vocabulary and the number of positions.
    """
    return Transformer(Spec.from_config(fields, d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx))


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

    @functools.cached_property
    def model(self) -> Transformer:
        """The model with the dtype and precision of training."""
        return make_model(self.settings.model, self.dataset)

    @functools.cached_property
    def initial(self) -> Initial | None:
        """The initial parameters from a previous run; None if initialization is random.

        Raises:
          InputError: the parameters cannot be read, or their shapes do not fit the model.
        """
        return read_initial(self.config, self.model)
