"""Early supervision: an additional loss for the states after blocks before the last block.

The usual loss of an answer constrains only the state after the last block. But in a model with two
blocks, the second hop of a chain reads the state after the first block. Early supervision therefore
adds a loss for predicting the tail of a fact from the states after earlier blocks. The model's
final norm and unembedding map these states to logits, so there are no additional parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.world import NONE


class EarlyTargets(NamedTuple):
    """The targets of early supervision, for all training rows or for the rows of one batch.

    Attributes:
      positions: the positions whose states are read, `[row, early_slot]`.
      answers: the token to predict at each of these positions; -1 for unused slots.
    """

    positions: Int[Array | np.ndarray, "row early_slot"]
    answers: Int[Array | np.ndarray, "row early_slot"]


@dataclass(frozen=True)
class EarlySupervision:
    """The additional loss for states after earlier blocks, without its targets.

    Attributes:
      weight: factor of the additional loss.
      layers: indices of the blocks whose outputs are supervised, in unrolled depth, from 0.
    """

    weight: float
    layers: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites (hook points) whose states are supervised."""
        return tuple(f"blocks.{layer}.hook_resid_post" for layer in self.layers)

    def loss(
        self,
        model: Transformer,
        params: Params,
        states: Mapping[str, Float[Array, "batch pos d_model"]],
        targets: EarlyTargets,
        answers: Int[Array, "batch slot"],
    ) -> Float[Array, ""]:
        """Return the additional loss of a batch, in nats.

        The losses of all early answers are summed over the layers, multiplied by `weight`, and
        divided by the number of supervised positions in the batch. The usual loss is divided by
        this number too. With `weight` 1, an early answer therefore counts as much as a usual
        answer.

        Args:
          model: the model.
          params: the parameters of the model.
          states: the residual stream at the sites in `sites`.
          targets: the early answers of the batch.
          answers: the usual answers of the batch, -1 where nothing is supervised.
        """
        where = jnp.asarray(targets.positions)[None, :, :, None]
        read = jnp.take_along_axis(jnp.stack([states[site] for site in self.sites]), where, axis=2)
        logits = self.logits(model, params, read)
        wanted = jnp.broadcast_to(targets.answers, logits.shape[:-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(wanted, 0))
        return self.weight * jnp.where(wanted >= 0, losses, 0).sum() / (answers >= 0).sum()

    def logits(
        self,
        model: Transformer,
        params: Params,
        states: Float[Array, "layer batch early_slot d_model"],
    ) -> Float[Array, "layer batch early_slot d_vocab"]:
        """Map states to logits, by the final norm and the unembedding of the model.

        Args:
          model: the model.
          params: the parameters of the model.
          states: the residual stream after the blocks in `layers`, at the supervised positions.
        """
        return model.bind(params).readout(states, HookContext())


@dataclass(frozen=True)
class EarlySettings:
    """Settings from the configuration group `loss.early_supervision`.

    The module `runs.fields` describes each field.
    """

    weight: float
    layers: tuple[Any, ...]
    rows: str

    def resolve(self, model: Transformer) -> EarlySupervision | None:
        """Return the additional loss for a model, or None if the weight of the loss is 0.

        Raises:
          InputError: a layer does not exist, a layer is the last block, or the model has only one
            block.
        """
        if not self.weight:
            return None
        earlier = range(model.spec.depth - 1)
        if not earlier:
            raise InputError(
                f"loss.early_supervision.weight is {self.weight:g}, but the model has one block; "
                "early supervision needs at least two blocks"
            )
        if wrong := [layer for layer in self.layers if layer not in earlier]:
            raise InputError(
                f"loss.early_supervision.layers contains {wrong[0]!r}; all layers must be between "
                f"0 and {earlier[-1]}, because the usual loss already supervises the last block"
            )
        return EarlySupervision(self.weight, tuple(sorted(set(self.layers or earlier))))


NO_EARLY = EarlySettings(weight=0.0, layers=(), rows="atomic")
"""Settings without early supervision."""


def early_targets(dataset: Dataset, rows: str) -> EarlyTargets:
    """Return the early-supervision targets of all training rows as numpy arrays.

    Args:
      dataset: a dataset whose task consists of chains.
      rows: the kind of rows that get an early target. With `atomic`, the target of a single fact is
        its usual answer. With `chains`, the target of a chain is its bridge entity (the tail of the
        first fact). `all` means both kinds. The target of a chain belongs to the position at which
        the row of the first fact alone is answered. A chain gets a target only if the chain and
        this row have equal tokens up to this position.

    Raises:
      InputError: the task does not consist of chains, or no training row gets a target.
    """
    if "fact2" not in dataset.truth:
        raise InputError(
            "loss.early_supervision.weight must be 0, because this task does not consist of chains"
        )
    train = slice(dataset.n_train)
    first, second = dataset.truth["fact1"][train], dataset.truth["fact2"][train]
    atomic = np.flatnonzero((first >= 0) & (second < 0))
    row_of_fact = np.full(first.max(initial=0) + 1, NONE, np.int32)
    row_of_fact[first[atomic]] = atomic
    source = row_of_fact[first]  # the atomic row of the first fact of every training row
    positions = np.maximum(dataset.answer_positions[source], 0)
    equal_so_far = np.logical_and.accumulate(
        dataset.tokens[train] == dataset.tokens[source], axis=1
    )
    wanted = {"atomic": second < 0, "chains": second >= 0, "all": np.ones_like(second, bool)}[rows]
    wanted &= (first >= 0) & (source >= 0)
    there = wanted[:, None] & np.take_along_axis(equal_so_far, positions, axis=1)
    answers = np.where(there, dataset.answers[source], np.int32(NONE))
    used = (answers >= 0).any(axis=0)
    if not used.any():
        raise InputError(
            f"loss.early_supervision.rows is {rows!r}, but no training row of this kind has a "
            "target for early supervision; choose a different kind of rows, or set "
            "loss.early_supervision.weight to 0"
        )
    return EarlyTargets(positions[:, used].astype(np.int32), answers[:, used])
