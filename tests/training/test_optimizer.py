"""AdamW agrees with optax's, its schedule with a closed form, and hyperparameters are arguments."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.training.optimizer import (
    Hyperparameters,
    OptimizerSettings,
    apply_updates,
    decay_mask,
    hyperparameters,
    preconditioner,
    relative_rate,
)

SETTINGS = OptimizerSettings(
    learning_rate=3e-2,
    weight_decay=0.7,
    warmup_steps=4,
    schedule="cosine",
    final_fraction=0.1,
    b1=0.9,
    b2=0.98,
    eps=1e-8,
    clip_norm=1.0,
)
HORIZON, N_STEPS = 20, 12


def random(seed, scale, *leading):
    """Return a few parameters, of every kind that weight decay distinguishes."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return scale * rng.normal(size=leading + shape).astype(np.float32)

    block = {"attn": {"W_Q": leaf(2, 4, 2), "b_Q": leaf(2, 2)}, "ln1": {"w": leaf(4), "b": leaf(4)}}
    return {"embed": {"W_E": leaf(5, 4)}, "blocks": {"0": block}}


DECAYED = {"embed": {"W_E": True}, "blocks": {"0": {"attn": {"W_Q": True, "b_Q": False}}}}
DECAYED["blocks"]["0"]["ln1"] = {"w": False, "b": False}
PARAMS, GRADIENTS = random(0, 0.5), random(1, 1.0, N_STEPS)


def gradients(step):
    """Return the gradients that both optimizers get; their norms are on both sides of the clipping
    threshold.
    """
    scale = jnp.where(step % 3 == 0, 1e-3, 2.0)
    return jax.tree.map(lambda g: scale * jnp.asarray(g)[step], GRADIENTS)


@jax.jit
def ours(params, hyper):
    direction, rate = preconditioner(SETTINGS), relative_rate(SETTINGS, HORIZON)

    def update(step, carry):
        params, moments = carry
        directions, moments = direction.update(gradients(step), moments)
        return apply_updates(params, directions, hyper, rate(step), DECAYED), moments

    return jax.lax.fori_loop(0, N_STEPS, update, (params, direction.init(params)))[0]


@jax.jit
def optaxs(params):
    """The same optimizer, written with optax."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=SETTINGS.learning_rate,
        warmup_steps=SETTINGS.warmup_steps,
        decay_steps=HORIZON,
        end_value=SETTINGS.final_fraction * SETTINGS.learning_rate,
    )

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "W_" in jax.tree_util.keystr(path), params
        )

    adamw = optax.chain(
        optax.clip_by_global_norm(SETTINGS.clip_norm),
        optax.adamw(
            rate,
            b1=SETTINGS.b1,
            b2=SETTINGS.b2,
            eps=SETTINGS.eps,
            weight_decay=SETTINGS.weight_decay,
            mask=mask,
        ),
    )

    def update(step, carry):
        params, state = carry
        updates, state = adamw.update(gradients(step), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, N_STEPS, update, (params, adamw.init(params)))[0]


def test_it_is_optaxs_adamw():
    mine, theirs = ours(PARAMS, hyperparameters(SETTINGS)), optaxs(PARAMS)
    for (path, a), b, start in zip(
        jax.tree_util.tree_leaves_with_path(mine),
        jax.tree.leaves(theirs),
        jax.tree.leaves(PARAMS),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=str(path))
        assert np.abs(a - start).max() > 0.02  # far more than the tolerance


def test_learning_rate_and_decay_are_traced():
    """A population of three is one mapped program, and equals three separate runs."""
    trials = Hyperparameters(jnp.array([1e-3, 3e-2, 0.1]), jnp.array([0.0, 0.7, 2.0]))
    together = jax.jit(jax.vmap(ours, (None, 0)))(PARAMS, trials)
    for trial in range(3):
        alone = ours(PARAMS, jax.tree.map(lambda x, i=trial: x[i], trials))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[trial], b, rtol=0, atol=1e-6)
    spread = np.std(together["embed"]["W_E"], axis=0).max()
    assert spread > 0.1


def rates(steps, **changes):
    # This is compiled, because otherwise every operation is a separate program.
    rate = relative_rate(replace(SETTINGS, **changes), HORIZON)
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(steps)))


def test_warm_up_begins_at_zero_and_is_linear():
    assert rates([0])[0] == 0
    np.testing.assert_allclose(rates(range(5)), [0, 0.25, 0.5, 0.75, 1], rtol=1e-6)


def test_the_cosine_is_half_way_in_its_middle_and_ends_at_its_fraction():
    np.testing.assert_allclose(rates([4, 12, 20, 30]), [1, 0.55, 0.1, 0.1], rtol=1e-6)
    step = np.arange(4, 21)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * (step - 4) / 16)) / 2
    np.testing.assert_allclose(rates(step), cosine, rtol=1e-5)


def test_constant_and_no_warm_up():
    assert (rates([4, 12, 500], schedule="constant") == 1).all()
    np.testing.assert_allclose(rates([0, 2], schedule="constant"), [0, 0.5])
    np.testing.assert_allclose(rates([0, 10], warmup_steps=0), [1, 0.55], rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [HORIZON, HORIZON + 5])
def test_a_warm_up_as_long_as_the_run_is_no_division_by_zero(warmup_steps):
    rate = rates([0, 10, HORIZON], warmup_steps=warmup_steps)
    np.testing.assert_allclose(rate, np.array([0, 10, HORIZON]) / warmup_steps, rtol=1e-6)


def test_weights_decay_and_nothing_else():
    spec = Spec(d_vocab=7, n_ctx=3, n_layers=2, d_model=4, n_heads=2, d_mlp=8, unembed_bias=True)
    chosen = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(Transformer(spec)))
        if decays
    }
    block = [*(f"attn.W_{name}" for name in "QKVO"), "mlp.W_in", "mlp.W_out"]
    assert chosen == {
        *("embed.W_E", "pos_embed.W_pos", "unembed.W_U"),
        *(f"blocks.{layer}.{name}" for layer in range(2) for name in block),
    }


def test_decay_is_decoupled():
    """Without a direction, only weights shrink, by rate * learning rate * decay."""
    params = {"W_E": jnp.array([2.0, -4.0]), "b_U": jnp.array([3.0])}
    still = jax.tree.map(jnp.zeros_like, params)
    hyper = Hyperparameters(jnp.float32(0.1), jnp.float32(5))
    step = functools.partial(apply_updates, params, still, hyper)
    decays = {"W_E": True, "b_U": False}
    moved = step(jnp.float32(0.5), decays)
    np.testing.assert_allclose(moved["W_E"], [1.5, -3.0], rtol=1e-6)
    assert moved["b_U"] == 3
    jax.tree.map(np.testing.assert_array_equal, step(jnp.float32(0), decays), params)
