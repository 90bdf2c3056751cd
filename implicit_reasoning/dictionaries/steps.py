"""Train a dictionary on a pool of states, in one compiled loop of training steps.

A step draws a random batch from the pool, computes the gradient of the loss, and applies Adam. A
feature fires if the feature is active on at least one state of a batch. A feature is dead if it has
not fired for more than `dead_after` steps. Resampling and the auxiliary loss AuxK act on dead
features.

Sources: SAELens (default settings of Adam, gradient clipping and `dead_after`). Bricken et al. 2023
(decoder rows of norm 1; in the appendix, resampling of dead features). If decoder rows are kept at
norm 1, the part of the gradient that is parallel to the rows is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.model import Params

Scalar = Float[Array, ""]
_RESAMPLED = 0.2  # norm of resampled encoder weights, relative to the mean norm of alive features


@dataclass(frozen=True)
class DictionaryTrainingSettings:
    """Training settings of a dictionary, which are static under `jax.jit`.

    Attributes:
      steps: total number of training steps.
      batch_size: number of states per step.
      learning_rate: the learning rate after warm-up and before decay.
      warmup_steps: number of steps over which the learning rate rises from 0.
      decay_steps: number of final steps over which the learning rate falls to 0.
      sparsity_warmup_steps: number of steps over which the coefficient of a sparsity penalty rises
        from 0.
      b1, b2: decay rates of Adam's first moment and second moment.
      clip_norm: maximum global norm of the gradient.
      dead_after: a feature is dead if it was not active for more than this number of steps.
      bias_at_mean: whether the decoder bias is initialized to the mean of a batch of targets. If
        false, the bias is initialized to 0, as in SAELens. If states are sums of sparse,
        non-negative features, training with the initial value 0 recovers more of the true features.
      unit_decoder: whether training keeps decoder rows at norm 1.
      frozen_decoder: whether decoder rows keep their random initial values, as in the baseline
        `frozen decoder`.
      resample_every: number of steps between resamplings of dead features. 0 means no resampling.
    """

    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    decay_steps: int = 0
    sparsity_warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    dead_after: int = 1000
    bias_at_mean: bool = True
    unit_decoder: bool = False
    frozen_decoder: bool = False
    resample_every: int = 0

    def rate(self, step: Int[Array, ""]) -> Scalar:
        """Return the learning rate at `step`. Steps are counted from 0."""
        rising = jnp.minimum(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = self.steps - step
        falling = jnp.minimum(1.0, left / self.decay_steps) if self.decay_steps else 1.0
        return jnp.float32(self.learning_rate * rising * falling)

    @property
    def adam(self) -> optax.GradientTransformation:
        """The optax transformation, which clips gradients and then applies Adam.

        The transformation does not include the learning rate. The caller must multiply updates by
        `-rate(step)`.
        """
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm), optax.scale_by_adam(self.b1, self.b2)
        )


class DictionaryState(NamedTuple):
    """The training state of a dictionary.

    Attributes:
      params: the dictionary's parameters.
      adam: the optax state of `DictionaryTrainingSettings.adam`.
      steps_since_fired: for each feature, the number of steps since the feature was last active.
      threshold: the running threshold, which `ActivationFn.observe` updates.
    """

    params: Params
    adam: optax.OptState
    steps_since_fired: Int[Array, " d_sae"]
    threshold: Scalar


class Pool(NamedTuple):
    """Training states, divided into groups such as positions.

    Batches sample all groups with equal probability, independent of the number of states in a
    group.

    Attributes:
      x: [state, d_in] inputs.
      y: [state, d_out] targets. For an autoencoder, `y` is `x`.
      first: index of the first state of each group. The states of a group have consecutive indices.
      sizes: number of states in each group.
    """

    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]
    first: Int[Array, " group"]
    sizes: Int[Array, " group"]


class StepMeans(NamedTuple):
    """Metrics of training, averaged over steps.

    `mse` is the squared error, and `loss` also includes the loss terms of the activation function.
    `l0` is the number of active features per state, and `dead` is the number of dead features.
    """

    mse: Scalar
    loss: Scalar
    l0: Scalar
    dead: Scalar


class TrainingData(NamedTuple):
    """The training states, the sparsity and the random key of one dictionary.

    Attributes:
      pool: the states to train on.
      sparsity: coefficient of the penalty or number of active features, depending on the activation
        function.
      key: the random key. The key and the number of a step determine all random draws of the step.
    """

    pool: Pool
    sparsity: Scalar
    key: Key[Array, ""]


@dataclass(frozen=True)
class DictionaryRecipe:
    """A dictionary with its training settings, static under `jax.jit`.

    The training data are arguments of the methods.
    """

    dictionary: Dictionary
    settings: DictionaryTrainingSettings

    def begin(self, data: TrainingData, params: Params | None = None) -> DictionaryState:
        """Return the training state before the first step.

        Args:
          data: the training data of the dictionary.
          params: initial parameters. By default, random parameters are drawn with `data.key`.
        """
        if params is None:
            at = jax.random.fold_in(data.key, 0)
            params = self.dictionary.init(at, *batch_of(data.pool, self.settings.batch_size, at))
            if not self.settings.bias_at_mean:
                params = params | {"b_dec": jnp.zeros_like(params["b_dec"])}
        if self.settings.unit_decoder:
            params = _with_unit_rows(params)
        never_dead = jnp.zeros(self.dictionary.architecture.d_sae, jnp.int32)
        return DictionaryState(params, self.settings.adam.init(params), never_dead, jnp.float32(0))

    def advance(
        self,
        state: DictionaryState,
        data: TrainingData,
        start: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[DictionaryState, StepMeans]:
        """Train for `count` steps, beginning with step `start`.

        Returns:
          The new training state, and metrics averaged over the `count` steps.
        """

        def one(
            number: Array, carried: tuple[DictionaryState, StepMeans]
        ) -> tuple[DictionaryState, StepMeans]:
            state, sums = carried
            state, values = self.step(state, data, start + number)
            return state, StepMeans(*(a + b for a, b in zip(sums, values, strict=True)))

        nothing = StepMeans(*(jnp.float32(0) for _ in StepMeans._fields))
        state, sums = jax.lax.fori_loop(0, count, one, (state, nothing))
        return state, StepMeans(*(total / jnp.maximum(count, 1) for total in sums))

    def step(
        self, state: DictionaryState, data: TrainingData, step: Int[Array, ""]
    ) -> tuple[DictionaryState, StepMeans]:
        """Train for one step.

        Random draws depend only on `data.key` and `step`.

        Returns:
          The new training state, and the metrics of the step.
        """
        settings, activation_fn = self.settings, self.dictionary.activation_fn
        key = jax.random.fold_in(data.key, step + 1)
        x, y = batch_of(data.pool, settings.batch_size, key)
        sparsity = data.sparsity
        if activation_fn.sparsity_kind != "k" and settings.sparsity_warmup_steps:
            sparsity = sparsity * jnp.minimum(1.0, (step + 1) / settings.sparsity_warmup_steps)
        dead = state.steps_since_fired > settings.dead_after
        graded = jax.value_and_grad(self.dictionary.loss, has_aux=True)
        (loss, aux), grads = graded(state.params, x, y, sparsity, dead)
        if settings.unit_decoder:
            grads = _without_growth(grads, state.params)
        if settings.frozen_decoder:
            grads = grads | {"W_dec": jnp.zeros_like(grads["W_dec"])}
        directions, adam = settings.adam.update(grads, state.adam)
        rate = settings.rate(step)
        params = jax.tree.map(lambda value, move: value - rate * move, state.params, directions)
        params = activation_fn.project(params)
        if settings.unit_decoder:
            params = _with_unit_rows(params)
        threshold = activation_fn.observe(
            self.dictionary.architecture, params, state.threshold, aux.encoded
        )
        since_fired = jnp.where(aux.fired, 0, state.steps_since_fired + 1)
        state = DictionaryState(params, adam, since_fired, threshold)
        if settings.resample_every:
            due = (step + 1) % settings.resample_every == 0
            state = jax.lax.cond(due, lambda: self.resample(state, data, key), lambda: state)
        return state, StepMeans(aux.terms["mse"], loss, aux.l0, dead.sum().astype(jnp.float32))

    def resample(
        self, state: DictionaryState, data: TrainingData, key: Key[Array, ""]
    ) -> DictionaryState:
        """Reinitialize dead features from states with a large reconstruction error.

        For each dead feature, a state is drawn with a probability proportional to the square of the
        state's loss (Bricken et al. 2023). The encoder of the feature is set to the direction of
        the state's input. The decoder row is set to the direction of the state's target. Biases are
        subtracted from input and target first. Adam's moments and `steps_since_fired` of the
        feature are reset to 0.
        """
        architecture, activation_fn, params = (
            self.dictionary.architecture,
            self.dictionary.activation_fn,
            state.params,
        )
        keys = jax.random.split(jax.random.fold_in(key, 1))
        x, y = batch_of(data.pool, self.settings.batch_size, keys[0])
        base = architecture.base(params, x)
        out = (
            architecture.write(
                params, activation_fn.encode(architecture, params, x, data.sparsity).acts
            )
            + base
        )
        badly = ((out - y) ** 2).sum(-1)
        chosen = jax.random.categorical(
            keys[1], 2 * jnp.log(badly + 1e-12), shape=(architecture.d_sae,)
        )
        dead = state.steps_since_fired > self.settings.dead_after
        fresh = architecture.resampled_weights(params, x[chosen], (y - base)[chosen])
        alive = jnp.where(dead, 0.0, jnp.linalg.norm(params["W_enc"], axis=-2).reshape(-1))
        size = _RESAMPLED * alive.sum() / jnp.maximum((~dead).sum(), 1)
        fresh |= {"W_enc": size * fresh["W_enc"]} | activation_fn.init(architecture)

        def put(tree: Params, new: Params) -> Params:
            """Replace the values of dead features by those of `new`."""
            return tree | {
                name: jnp.where(architecture.broadcast_over_features(dead, name), value, tree[name])
                for name, value in new.items()
            }

        clip, moments = state.adam
        nothing = jax.tree.map(jnp.zeros_like, fresh)
        moments = moments._replace(mu=put(moments.mu, nothing), nu=put(moments.nu, nothing))
        since_fired = jnp.where(dead, 0, state.steps_since_fired)
        return DictionaryState(put(params, fresh), (clip, moments), since_fired, state.threshold)


def batch_of(pool: Pool, size: int, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Draw a batch of states with replacement.

    For each state of the batch, the function draws a random group, and then a random state of the
    group.
    """
    keys = jax.random.split(key)
    group = jax.random.randint(keys[0], (size,), 0, len(pool.first))
    within = jax.random.uniform(keys[1], (size,)) * pool.sizes[group]
    rows = pool.first[group] + jnp.minimum(within.astype(jnp.int32), pool.sizes[group] - 1)
    return pool.x[rows], pool.y[rows]


def _with_unit_rows(params: Params) -> Params:
    return params | {"W_dec": params["W_dec"] / _lengths(params["W_dec"])}


def _without_growth(grads: Params, params: Params) -> Params:
    """Remove the part of the gradient that is parallel to the decoder rows.

    This part would only change the norm of the rows, which is kept at 1.
    """
    grad, rows = grads["W_dec"], params["W_dec"]
    axes = tuple(range(rows.ndim // 2, rows.ndim))
    along = (grad * rows).sum(axes, keepdims=True)
    return grads | {"W_dec": grad - along * rows}


def _lengths(rows: Float[Array, "*feature_and_output"]) -> Float[Array, "*feature_and_ones"]:
    """Compute the norm of each decoder row; rows end in [output] or in [layer, output]."""
    axes = tuple(range(rows.ndim // 2, rows.ndim))
    return jnp.sqrt((rows**2).sum(axes, keepdims=True))
