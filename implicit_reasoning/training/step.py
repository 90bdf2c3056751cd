"""One update of the parameters, and the compiled loop that makes many of them without the host."""

from __future__ import annotations

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
from implicit_reasoning.training.optimizer import Hyperparameters, apply_updates, decay_mask


class TrainState(NamedTuple):
    """Everything that a step reads and writes; what `resume/` holds.

    Attributes:
      params: of the model.
      moments: Adam's.
      step: updates made, int32.
      finite: False from the first step whose loss, gradient or rates were not finite; nothing
        changes from that step on. Also False after a call of `run` that left parameters which are
        not finite.
      window: per-step metrics since the last row of `metrics.jsonl`, each `[log_every]`.
    """

    params: Params
    moments: Any
    step: Int[Array, ""]
    finite: Bool[Array, ""]
    window: dict[str, Float[Array, " window"]]


class TrainingRows(NamedTuple):
    """Training rows on the device; those of several worlds stand one after the other.

    Attributes:
      tokens: `[row, pos]`.
      positions: of the supervised positions, ascending, `[row, slot]`.
      answers: the token to predict there, -1 where a row has fewer of them, `[row, slot]`.
      first: number of the first row that a run is trained on, int32.
      n_rows: how many rows from there on, int32.
    """

    tokens: Int[Array | np.ndarray, "row pos"]
    positions: Int[Array | np.ndarray, "row slot"]
    answers: Int[Array | np.ndarray, "row slot"]
    first: Int[Array | np.ndarray, ""]
    n_rows: Int[Array | np.ndarray, ""]


def dropout_edits(model: Transformer, key: Key[Array, ""], rate: float) -> dict[str, Edit]:
    """Dropout as edits: of the embeddings, and at the sites that the block names.

    GPT-2's are the attention patterns, and the outputs of attention and MLP.
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
    """Mean cross entropy over the supervised slots, nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answers, 0))
    supervised = answers >= 0
    return jnp.where(supervised, losses, 0).sum() / supervised.sum()


@dataclass(frozen=True)
class StepRecipe:
    """What is fixed while a run is compiled; everything that may vary is an argument of `step`."""

    model: Transformer
    preconditioner: optax.GradientTransformation
    relative_rate: optax.Schedule
    batch_size: int
    order: str
    dropout: float
    log_every: int
    batch_sharding: NamedSharding | PartitionSpec | None = None

    def init(self, key: Key[Array, ""]) -> TrainState:
        """The state before the first step."""
        params = self.model.init(key)
        return TrainState(
            params=params,
            moments=self.preconditioner.init(params),
            step=jnp.int32(0),
            finite=jnp.bool_(True),
            window={name: jnp.zeros(self.log_every) for name in ("loss", "grad_norm")},
        )

    def step(
        self, state: TrainState, rows: TrainingRows, hyper: Hyperparameters, key: Key[Array, ""]
    ) -> TrainState:
        """One update, on a batch and with dropout that depend on (key, step) only."""
        data_key, dropout_key = jax.random.split(key)
        chosen = rows.first + batches.rows_of_step(
            data_key, state.step, rows.n_rows, batch_size=self.batch_size, order=self.order
        )
        batch = jax.tree.map(
            lambda column: self._shard(column[chosen]), (rows.tokens, rows.positions, rows.answers)
        )
        edits = (
            dropout_edits(self.model, jax.random.fold_in(dropout_key, state.step), self.dropout)
            if self.dropout
            else None
        )

        def loss_of(params: Params) -> Array:
            tokens, positions, answers = batch
            return answer_loss(
                forward_at(self.model, params, tokens, positions, edits=edits)[0], answers
            )

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return self._update(state, loss, gradients, hyper)

    def _shard(self, column: Array) -> Array:
        if self.batch_sharding is None:
            return column
        return jax.lax.with_sharding_constraint(column, self.batch_sharding)

    def _update(
        self, state: TrainState, loss: Array, gradients: Params, hyper: Hyperparameters
    ) -> TrainState:
        grad_norm = optax.tree.norm(gradients)
        directions, moments = self.preconditioner.update(gradients, state.moments)
        rate = self.relative_rate(state.step)
        params = apply_updates(state.params, directions, hyper, rate, decay_mask(self.model))
        shrinking = rate * hyper.learning_rate * hyper.weight_decay
        seen = {"loss": loss, "grad_norm": grad_norm}
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
        """`n_steps` updates in one compiled loop; the count is traced, so no length recompiles."""
        state = jax.lax.fori_loop(
            0, n_steps, lambda _, state: self.step(state, rows, hyper, key), state
        )
        # Parameters may overflow all the same. Here, not in every step: looking at all takes as
        # long as to update them.
        return state._replace(finite=state.finite & _finite(state.params))

    def snapshot(self, state: TrainState, hyper: Hyperparameters) -> dict[str, Any]:
        """Copies of what the host reads late, as the state itself is donated to the next chunk."""
        return {
            "step": state.step,
            "finite": state.finite,
            "window": state.window,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": hyper.learning_rate * self.relative_rate(state.step),
        }


def _finite(tree: Any) -> Array:
    """Whether every number is; not by their norm, whose squares overflow before they do."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
