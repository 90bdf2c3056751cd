"""Early supervision that is read by trained linear maps in place of the model's unembedding.

`early_supervision.py` trains these models as its part `readout`. Each supervised block has its own
map, which is trained with the model and is not used after training. Initial parameters, batches and
all settings are those of the run with the unembedding, so that runs of one seed are pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks.parameters import Parameter, constant, normal
from implicit_reasoning.runtime import sharding
from implicit_reasoning.training import optimizer, setup
from implicit_reasoning.training.early import EarlySupervision
from implicit_reasoning.training.evaluation import Evaluation
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.step import StepRecipe
from implicit_reasoning.worlds import Dataset

GROUP = "early_readout"


@dataclass(frozen=True)
class WithReadout(Transformer):
    """A transformer with parameters of linear maps, one for each supervised block.

    The forward pass is that of the transformer without the maps.

    Attributes:
      n_maps: the number of maps.
    """

    n_maps: int = 1

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters of the transformer, and `early_readout.W` and `early_readout.b`."""
        shape = (self.n_maps, self.spec.d_model, self.spec.d_vocab)
        return super().parameters | {
            f"{GROUP}.W": Parameter(shape, normal(0.02), decayed=True),
            f"{GROUP}.b": Parameter((shape[0], shape[2]), constant(0.0)),
        }

    def init(self, key: Key[Array, ""]) -> Params:
        """Return the transformer's initial parameters for this key, and those of the maps."""
        weight = self.parameters[f"{GROUP}.W"].shape
        maps = {
            "W": 0.02 * jax.random.normal(jax.random.fold_in(key, 1), weight),
            "b": jnp.zeros((weight[0], weight[2])),
        }
        return super().init(key) | {GROUP: maps}

    def bind(self, params: Params) -> Any:
        """Return the transformer's modules, without the maps."""
        return super().bind(without_maps(params))


@dataclass(frozen=True)
class TrainedReadout(EarlySupervision):
    """Early supervision whose logits are linear in the states, with trained maps."""

    def logits(
        self,
        model: Transformer,
        params: Params,
        states: Float[Array, "layer batch early_slot d_model"],
    ) -> Float[Array, "layer batch early_slot d_vocab"]:
        """Map states to logits by the linear map of their block."""
        maps = params[GROUP]
        return jnp.einsum("lbsd,ldv->lbsv", states, maps["W"]) + maps["b"][:, None, None]


def without_maps(params: Params) -> Params:
    """Return the parameters of the transformer alone."""
    return {name: group for name, group in params.items() if name != GROUP}


def recipe_with_readout(
    settings: TrainingSettings, dataset: Dataset, mesh: jax.sharding.Mesh
) -> StepRecipe:
    """Return the training step of the settings, with trained maps for early supervision."""
    usual = setup.make_recipe(settings, dataset, mesh)
    assert usual.early is not None  # The settings have early supervision.
    return dataclasses.replace(
        usual,
        model=WithReadout(usual.model.spec, len(usual.early.layers)),
        early=TrainedReadout(usual.early.weight, usual.early.layers),
    )


def train_with_readout(config: ConfigDict, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Train a model with trained maps, and yield a row of metrics at each evaluation.

    A row has the columns of `Evaluation.summary`, and `step`.
    """
    settings = TrainingSettings.from_config(config)
    mesh = sharding.make_mesh(settings.mesh)
    recipe = recipe_with_readout(settings, dataset, mesh)
    rows = jax.device_put(setup.training_rows(dataset, settings.early), sharding.replicated(mesh))
    hyper = optimizer.hyperparameters(settings.optimizer)
    init_key, stream_key = setup.keys(settings.seed)
    evaluation = Evaluation(Transformer(recipe.model.spec), dataset)
    state, advance = jax.jit(recipe.init)(init_key), jax.jit(recipe.run, donate_argnums=0)
    every = config.evaluation.every
    for stop in range(0, config.steps + 1, every):
        if stop:
            state = advance(state, rows, hyper, stream_key, np.int32(every))
        outcome = jax.device_get(evaluation.launch(without_maps(state.params)))
        yield {"step": stop, **evaluation.summary(outcome)}
