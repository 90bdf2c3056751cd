"""One training step, and the compiled loop that runs many steps on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.model import Edit, Params, Transformer, drop
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.training import batches
from implicit_reasoning.training.early import EarlySupervision, EarlyTargets
from implicit_reasoning.training.optimizer import Hyperparameters, apply_updates, decay_mask


class TrainState(NamedTuple):
    """The full training state, as it is saved in `resume/`.

    Attributes:
      params: the model parameters.
      moments: the state of the preconditioner (Adam's moments).
      step: the number of updates so far, int32.
      finite: False from the first step with a loss, a gradient norm or an amount of weight decay
        that is not finite. From this step on, the state does not change. `finite` is also False if
        the parameters at the end of `StepRecipe.run` are not finite.
      window: dict from the metric names in `StepRecipe.logged` to the values of the last
        `log_every` steps, `[log_every]`. Step `s` is at the index `s % log_every`.
    """

    params: Params
    moments: Any
    step: Int[Array, ""]
    finite: Bool[Array, ""]
    window: dict[str, Float[Array, " window"]]


class RowTable(NamedTuple):
    """The columns of all training rows, or of the rows of one batch.

    Attributes:
      tokens: the input tokens, `[row, pos]`.
      positions: the supervised positions in ascending order, `[row, slot]`.
      answers: the token to predict at each of these positions, `[row, slot]`; -1 for unused slots.
      early: the targets of early supervision (a loss on states after earlier blocks), or None.
    """

    tokens: Int[Array | np.ndarray, "row pos"]
    positions: Int[Array | np.ndarray, "row slot"]
    answers: Int[Array | np.ndarray, "row slot"]
    early: EarlyTargets | None = None


class TrainingRows(NamedTuple):
    """The training rows on the device. The rows of several worlds are concatenated.

    Attributes:
      table: the rows of all worlds.
      first: the index of this run's first row, int32.
      n_rows: the number of this run's rows, int32.
    """

    table: RowTable
    first: Int[Array | np.ndarray, ""]
    n_rows: Int[Array | np.ndarray, ""]


def dropout_edits(model: Transformer, key: Key[Array, ""], rate: float) -> dict[str, Edit]:
    """Return edits that apply dropout to the embeddings and to the dropout sites of all blocks.

    The dropout sites of a GPT-2 block are the attention pattern and the outputs of attention and
    MLP.

    Args:
      model: the model.
      key: the random key of this step.
      rate: the probability that an element is dropped.
    """
    sites = ["blocks.0.hook_resid_pre"] + [
        f"blocks.{layer}.{site}"
        for layer in range(model.spec.depth)
        for site in model.block.dropout_sites
    ]
    keys = jax.random.split(key, len(sites))
    return {
        site: Edit(drop, (key, jnp.float32(rate))) for site, key in zip(sites, keys, strict=True)
    }


def answer_loss(
    logits: Float[Array, "batch slot d_vocab"], answers: Int[Array, "batch slot"]
) -> Float[Array, ""]:
    """Compute the mean cross-entropy over the supervised slots, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answers, 0))
    supervised = answers >= 0
    return jnp.where(supervised, losses, 0).sum() / supervised.sum()


@dataclass(frozen=True)
class StepRecipe:
    """A training step with all static settings. All traced values are arguments of `step`."""

    model: Transformer
    preconditioner: optax.GradientTransformation
    relative_rate: optax.Schedule
    batch_size: int
    order: str
    dropout: float
    log_every: int
    batch_sharding: NamedSharding | PartitionSpec | None = None
    early: EarlySupervision | None = None

    @property
    def logged(self) -> tuple[str, ...]:
        """The names of the metrics of a step that `TrainState.window` contains.

        `loss` is the loss of the answers. `early_loss` is the weighted loss of early supervision.
        """
        return ("loss", "grad_norm") + ("early_loss",) * (self.early is not None)

    def init(self, key: Key[Array, ""]) -> TrainState:
        """Return the state before the first step."""
        params = self.model.init(key)
        return TrainState(
            params=params,
            moments=self.preconditioner.init(params),
            step=jnp.int32(0),
            finite=jnp.bool_(True),
            window={name: jnp.zeros(self.log_every) for name in self.logged},
        )

    def step(
        self, state: TrainState, rows: TrainingRows, hyper: Hyperparameters, key: Key[Array, ""]
    ) -> TrainState:
        """Make one update. The batch and the dropout depend only on `key` and `state.step`."""
        data_key, dropout_key = jax.random.split(key)
        chosen = rows.first + batches.rows_of_step(
            data_key, state.step, rows.n_rows, batch_size=self.batch_size, order=self.order
        )
        batch = jax.tree.map(lambda column: self._shard(column[chosen]), rows.table)
        edits = (
            dropout_edits(self.model, jax.random.fold_in(dropout_key, state.step), self.dropout)
            if self.dropout
            else None
        )

        def loss_of(params: Params) -> tuple[Array, dict[str, Array]]:
            return self.loss(params, batch, edits)

        (_, losses), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return self._update(state, losses, gradients, hyper)

    def loss(
        self, params: Params, batch: RowTable, edits: Mapping[str, Edit] | None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss that training minimizes, and its parts by name, in nats.

        Args:
          params: the parameters.
          batch: the rows of the batch.
          edits: the edits that apply dropout; None if there is no dropout.
        """
        tokens, positions, answers = map(jnp.asarray, batch[:3])
        sites = self.early.sites if self.early else ()
        logits, states = forward_at(self.model, params, tokens, positions, edits=edits, sites=sites)
        losses = {"loss": answer_loss(logits, answers)}
        if self.early is None or batch.early is None:
            return losses["loss"], losses
        losses["early_loss"] = self.early.loss(self.model, params, states, batch.early, answers)
        return losses["loss"] + losses["early_loss"], losses

    def _shard(self, column: Array) -> Array:
        if self.batch_sharding is None:
            return column
        return jax.lax.with_sharding_constraint(column, self.batch_sharding)

    def _update(
        self,
        state: TrainState,
        losses: Mapping[str, Array],
        gradients: Params,
        hyper: Hyperparameters,
    ) -> TrainState:
        grad_norm = optax.tree.norm(gradients)
        directions, moments = self.preconditioner.update(gradients, state.moments)
        rate = self.relative_rate(state.step)
        params = apply_updates(state.params, directions, hyper, rate, decay_mask(self.model))
        shrinking = rate * hyper.learning_rate * hyper.weight_decay
        seen = {**losses, "grad_norm": grad_norm}
        finite = state.finite & jnp.isfinite(jnp.stack([*seen.values(), shrinking])).all()

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(finite, new, old)

        slot = state.step % self.log_every
        return TrainState(
            params=jax.tree.map(keep, params, state.params),
            moments=jax.tree.map(keep, moments, state.moments),
            step=state.step + finite,
            finite=finite,
            window={
                name: w.at[slot].set(keep(seen[name], w[slot])) for name, w in state.window.items()
            },
        )

    def run(
        self,
        state: TrainState,
        rows: TrainingRows,
        hyper: Hyperparameters,
        key: Key[Array, ""],
        n_steps: Int[Array, ""],
    ) -> TrainState:
        """Make `n_steps` updates in one loop.

        `n_steps` is traced, so a different number of steps does not cause recompilation.
        """
        state = jax.lax.fori_loop(
            0, n_steps, lambda _, state: self.step(state, rows, hyper, key), state
        )
        # Parameters can overflow although loss and gradient are finite. They are checked here and
        # not in every step, because the check takes as long as an update.
        return state._replace(finite=state.finite & _finite(state.params))

    def snapshot(self, state: TrainState, hyper: Hyperparameters) -> dict[str, Any]:
        """Return copies of the values that the host reads.

        The values are copied, because the state is donated to the next chunk of steps before the
        host reads the values.

        Returns:
          `step`, `finite` and `window` of the state, the L2 norm of the parameters (`param_norm`),
          and the current `learning_rate`.
        """
        return {
            "step": state.step,
            "finite": state.finite,
            "window": state.window,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": hyper.learning_rate * self.relative_rate(state.step),
        }


def _finite(tree: Any) -> Array:
    """Return whether all values are finite.

    Whether the norm is finite would be a wrong test, because squares of finite values can overflow.
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
