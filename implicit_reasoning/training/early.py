"""Early supervision: facts are also read from the residual stream after earlier blocks.

The loss of an answer constrains only the last state at a position. In a model of two blocks, the
second hop of a chain reads the state after the first block. Early supervision adds the loss of the
facts once more for the states after earlier blocks. They are read through the final norm and the
shared unembedding, so the model has no additional parameters.
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
    """Answers to read from earlier states; arrays of all training rows, or of one batch.

    Attributes:
      positions: the positions whose states are read, `[row, early_slot]`.
      answers: the token to predict at each of these positions; -1 for unused slots.
    """

    positions: Int[Array | np.ndarray, "row early_slot"]
    answers: Int[Array | np.ndarray, "row early_slot"]


@dataclass(frozen=True)
class EarlySupervision:
    """Static part of the additional loss.

    Attributes:
      weight: the factor of the additional loss.
      layers: the blocks whose output is read, counted from 0 in unrolled depth.
    """

    weight: float
    layers: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are read."""
        return tuple(f"blocks.{layer}.hook_resid_post" for layer in self.layers)

    def loss(
        self,
        model: Transformer,
        params: Params,
        states: Mapping[str, Float[Array, "batch pos d_model"]],
        targets: EarlyTargets,
        answers: Int[Array, "batch slot"],
    ) -> Float[Array, ""]:
        """Return the weighted sum over layers of the loss of the early answers, in nats.

        Like the loss of the answers, it is divided by the number of supervised slots of the batch.
        With weight 1, the early answers of a layer thus count like additional supervised slots.

        Args:
          model: the model.
          params: its parameters.
          states: the residual stream at `sites`.
          targets: the early answers of the batch.
          answers: the answers of the batch, whose slots are counted.
        """
        where = jnp.asarray(targets.positions)[None, :, :, None]
        read = jnp.take_along_axis(jnp.stack([states[site] for site in self.sites]), where, axis=2)
        logits = model.bind(params).readout(read, HookContext())
        wanted = jnp.broadcast_to(targets.answers, logits.shape[:-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(wanted, 0))
        return self.weight * jnp.where(wanted >= 0, losses, 0).sum() / (answers >= 0).sum()


@dataclass(frozen=True)
class EarlySettings:
    """Settings from the group `loss.early_supervision`; `runs.fields` documents each field."""

    weight: float
    layers: tuple[Any, ...]
    rows: str

    def resolve(self, model: Transformer) -> EarlySupervision | None:
        """Return the additional loss for a model, or None if its weight is 0.

        Raises:
          InputError: a layer does not exist or is the last one, or the model has only one block.
        """
        if not self.weight:
            return None
        earlier = range(model.spec.depth - 1)
        if not earlier:
            raise InputError(
                f"loss.early_supervision.weight is {self.weight:g}, but the model has one block; "
                "early supervision needs at least two"
            )
        if wrong := [layer for layer in self.layers if layer not in earlier]:
            raise InputError(
                f"loss.early_supervision.layers has {wrong[0]!r}; layers must be between 0 and "
                f"{earlier[-1]}, because the loss already reads the output of the last block"
            )
        return EarlySupervision(self.weight, tuple(sorted(set(self.layers or earlier))))


NO_EARLY = EarlySettings(weight=0.0, layers=(), rows="atomic")
"""Settings without early supervision."""


def early_targets(dataset: Dataset, rows: str) -> EarlyTargets:
    """Return the early answers of the training rows of a dataset as numpy arrays.

    Args:
      dataset: the dataset of a task of chains.
      rows: `atomic` for the answers of atomic rows; `chains` for the bridge entities of chains;
        `all` for both. A bridge entity is read at the position where the atomic row of the first
        fact is answered, if the chain begins with the tokens of that row.

    Raises:
      InputError: the task does not consist of chains, or no training row has an early answer.
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
            f"loss.early_supervision.rows is {rows!r}, but no training row has such an answer, "
            "because the task has no such rows or does not train on the facts alone"
        )
    return EarlyTargets(positions[:, used].astype(np.int32), answers[:, used])
