"""Steps of training a dictionary on a pool of states: one compiled loop, nothing but arrays.

One step: a batch of the pool at random, the loss, Adam. A feature that did not fire for a while is
dead, which some variants' terms, and resampling, act on.

Sources: Adam's settings, clipping and the window of death are SAELens's defaults; unit decoder rows
(Bricken et al. 2023) with the gradient's part along them removed; resampling as there, appendix.
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
_RESAMPLED = 0.2  # norm of a resampled encoder, of the mean of those alive


@dataclass(frozen=True)
class Settings:
    """How a dictionary is trained; static.

    Attributes:
      steps: in all.
      batch: states in a step.
      learning_rate: after warm-up, before decay.
      warm_up: steps over which the learning rate rises from 0.
      decay: last steps, over which it falls to 0.
      sparsity_warm_up: steps over which a penalty's coefficient rises from 0.
      beta1, beta2: Adam's.
      clip: global norm of the gradient.
      dead_after: steps without firing.
      unit_decoder: keep decoder rows at norm 1.
      resample_every: steps between replacing dead features by what is written worst; 0: never.
    """

    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 3e-4
    warm_up: int = 0
    decay: int = 0
    sparsity_warm_up: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 1.0
    dead_after: int = 1000
    unit_decoder: bool = False
    resample_every: int = 0

    def rate(self, step: Int[Array, ""]) -> Scalar:
        """The learning rate of a step, counted from 0."""
        rising = jnp.minimum(1.0, (step + 1) / max(self.warm_up, 1)) if self.warm_up else 1.0
        falling = jnp.minimum(1.0, (self.steps - step) / max(self.decay, 1)) if self.decay else 1.0
        return jnp.float32(self.learning_rate * rising * falling)

    @property
    def adam(self) -> optax.GradientTransformation:
        """Direction of a step, to be times the negative rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.scale_by_adam(self.beta1, self.beta2)
        )


class State(NamedTuple):
    """A dictionary in training.

    Attributes:
      params: its parameters.
      adam: the optimiser's.
      idle: steps since each feature fired.
      threshold: running, see `Variant.observe`.
    """

    params: Params
    adam: optax.OptState
    idle: Int[Array, "d_sae"]
    threshold: Scalar


class Pool(NamedTuple):
    """States to train on, in groups of equal weight, such as positions: a large one counts no more.

    Attributes:
      x: inputs.
      y: targets; of an autoencoder the same array.
      first: number of the first state of each group, which stand one after the other.
      sizes: how many there are.
    """

    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]
    first: Int[Array, "group"]
    sizes: Int[Array, "group"]


class Window(NamedTuple):
    """Means over the steps of a call: squared error, whole loss, active features, dead ones."""

    mse: Scalar
    loss: Scalar
    l0: Scalar
    dead: Scalar


def begin(
    dictionary: Dictionary,
    settings: Settings,
    key: Key[Array, ""],
    pool: Pool,
    params: Params | None = None,
) -> State:
    """The state before the first step; from `params` where they are given (a warm start)."""
    if params is None:
        at = jax.random.fold_in(key, 0)
        params = dictionary.init(at, *batch_of(pool, settings.batch, at))
    if settings.unit_decoder:
        params = _with_unit_rows(params)
    idle = jnp.zeros(dictionary.kind.d_sae, jnp.int32)
    return State(params, settings.adam.init(params), idle, jnp.float32(0))


def advance(
    dictionary: Dictionary,
    settings: Settings,
    state: State,
    pool: Pool,
    sparsity: Scalar,
    key: Key[Array, ""],
    start: Int[Array, ""],
    count: Int[Array, ""],
) -> tuple[State, Window]:
    """`count` steps from step `start`; what is drawn depends on the key and the step alone."""

    def one(number: Array, carried: tuple[State, Window]) -> tuple[State, Window]:
        state, sums = carried
        step = start + number
        at = jax.random.fold_in(key, step + 1)
        state, seen = take_step(dictionary, settings, state, pool, sparsity, at, step)
        return state, Window(*(a + b for a, b in zip(sums, seen, strict=True)))

    nothing = Window(*(jnp.float32(0) for _ in Window._fields))
    state, sums = jax.lax.fori_loop(0, count, one, (state, nothing))
    return state, Window(*(total / jnp.maximum(count, 1) for total in sums))


def take_step(
    dictionary: Dictionary,
    settings: Settings,
    state: State,
    pool: Pool,
    sparsity: Scalar,
    key: Key[Array, ""],
    step: Int[Array, ""],
) -> tuple[State, Window]:
    """One step."""
    x, y = batch_of(pool, settings.batch, key)
    coefficient = dictionary.variant.knob != "k"
    if coefficient and settings.sparsity_warm_up:
        sparsity = sparsity * jnp.minimum(1.0, (step + 1) / settings.sparsity_warm_up)
    dead = state.idle > settings.dead_after
    graded = jax.value_and_grad(dictionary.loss, has_aux=True)
    (loss, seen), grads = graded(state.params, x, y, sparsity, dead)
    if settings.unit_decoder:
        grads = _without_growth(grads, state.params)
    directions, adam = settings.adam.update(grads, state.adam)
    rate = settings.rate(step)
    params = jax.tree.map(lambda value, move: value - rate * move, state.params, directions)
    params = dictionary.variant.project(params)
    if settings.unit_decoder:
        params = _with_unit_rows(params)
    state = State(
        params,
        adam,
        jnp.where(seen.fired, 0, state.idle + 1),
        dictionary.variant.observe(dictionary.kind, params, state.threshold, seen.encoded),
    )
    if settings.resample_every:
        due = (step + 1) % settings.resample_every == 0
        state = jax.lax.cond(
            due, lambda: resample(dictionary, settings, state, pool, sparsity, key), lambda: state
        )
    return state, Window(seen.terms["mse"], loss, seen.l0, dead.sum().astype(jnp.float32))


def batch_of(pool: Pool, size: int, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Some states of a pool, with replacement: a group at random, and one of its states."""
    keys = jax.random.split(key)
    group = jax.random.randint(keys[0], (size,), 0, len(pool.first))
    within = jax.random.uniform(keys[1], (size,)) * pool.sizes[group]
    rows = pool.first[group] + jnp.minimum(within.astype(jnp.int32), pool.sizes[group] - 1)
    return pool.x[rows], pool.y[rows]


def resample(
    dictionary: Dictionary,
    settings: Settings,
    state: State,
    pool: Pool,
    sparsity: Scalar,
    key: Key[Array, ""],
) -> State:
    """Dead features begin anew at states that are written badly, likelier the worse they are.

    Its encoder points to the input, its decoder to the target, as seen from the biases; Adam
    forgets it. It counts as having fired, so that it has a full window to prove itself.
    """
    kind, params = dictionary.kind, state.params
    keys = jax.random.split(jax.random.fold_in(key, 1))
    x, y = batch_of(pool, settings.batch, keys[0])
    encoded = dictionary.variant.encode(kind, params, x, sparsity)
    out = kind.write(params, encoded.acts) + kind.base(params, x)
    badly = ((out - y) ** 2).sum(-1)
    chosen = jax.random.categorical(keys[1], 2 * jnp.log(badly + 1e-12), shape=(kind.d_sae,))
    dead = state.idle > settings.dead_after
    fresh = kind.towards(params, x[chosen], (y - kind.base(params, x))[chosen])
    alive = jnp.where(dead, 0.0, jnp.linalg.norm(params["W_enc"], axis=-2).reshape(-1))
    size = _RESAMPLED * alive.sum() / jnp.maximum((~dead).sum(), 1)
    fresh |= {"W_enc": size * fresh["W_enc"]} | dictionary.variant.init(kind)

    def put(old: Array, new: Array, name: str) -> Array:
        return jnp.where(kind.of_features(dead, name), new, old)

    def forget(tree: Params) -> Params:
        zero = {name: jnp.zeros_like(tree[name]) for name in fresh}
        return tree | {name: put(tree[name], zero[name], name) for name in fresh}

    clip, moments = state.adam
    moments = moments._replace(mu=forget(moments.mu), nu=forget(moments.nu))
    params = params | {name: put(params[name], fresh[name], name) for name in fresh}
    return State(params, (clip, moments), jnp.where(dead, 0, state.idle), state.threshold)


def _with_unit_rows(params: Params) -> Params:
    return params | {"W_dec": params["W_dec"] / _lengths(params["W_dec"])}


def _without_growth(grads: Params, params: Params) -> Params:
    """Without what would only change the norm of decoder rows, which is 1."""
    grad, rows = grads["W_dec"], params["W_dec"]
    axes = tuple(range(rows.ndim // 2, rows.ndim))
    along = (grad * rows).sum(axes, keepdims=True)
    return grads | {"W_dec": grad - along * rows}


def _lengths(rows: Float[Array, "*feature_and_output"]) -> Float[Array, "*feature_and_ones"]:
    """Norm of each feature's row: [feature, output], or [layer, feature, layer, output]."""
    axes = tuple(range(rows.ndim // 2, rows.ndim))
    return jnp.sqrt((rows**2).sum(axes, keepdims=True))
