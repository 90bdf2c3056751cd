"""Fine-tuning teaches what is taught, ends when the model is certain, and changes what it may."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reasoning.analysis.editing.fine_tuning import Lesson, Tuning, fine_tune
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled

MODEL = Transformer(Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=2, d_mlp=24))
SETTINGS = Tuning(steps=150, rate=0.02)
SHORT = Tuning(steps=3, rate=0.02)
LESSON = Lesson(
    jnp.array([[1, 20, 0], [3, 20, 21], [5, 21, 22]], jnp.int32),
    jnp.array([1, 2, 2], jnp.int32),
    jnp.array([7, 9, 11], jnp.int32),
    jnp.array([True, True, False]),
)


def losses(params):
    logits = forward_at(MODEL, params, LESSON.tokens, LESSON.position[:, None])[0][:, 0]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), LESSON.answer[:, None], axis=1)[:, 0]


def start():
    params = filled(MODEL, 3)
    params["unembed"]["W_U"] *= 20  # so that the model can be certain
    return params


def with_losses(tuned):
    return tuned, {name: losses(one) for name, one in tuned.items()}


@pytest.fixture(scope="module")
def certain():
    @jax.jit
    def compute(params):
        return with_losses(
            {
                "before": params,
                "all": fine_tune(MODEL, params, LESSON, SETTINGS),
                "W_out": fine_tune(MODEL, params, LESSON, SETTINGS, layer=1),
                "longer": fine_tune(
                    MODEL, params, LESSON, dataclasses.replace(SETTINGS, steps=200)
                ),
            }
        )

    return jax.tree.map(np.asarray, compute(start()))


@pytest.fixture(scope="module")
def made():
    @jax.jit
    def compute(params):
        short = fine_tune(MODEL, params, LESSON, SHORT)
        # Plain optax on the mean loss of the taught prompts.
        optimizer, plain = optax.adam(SHORT.rate), params
        moments = optimizer.init(plain)
        for _ in range(SHORT.steps):
            gradients = jax.grad(lambda p: losses(p)[:2].mean())(plain)
            updates, moments = optimizer.update(gradients, moments)
            plain = optax.apply_updates(plain, updates)
        return with_losses({"short": short, "plain": plain, "before": params})

    return jax.tree.map(np.asarray, compute(start()))


@pytest.mark.slow
def test_the_taught_answers_are_learned(certain):
    found = certain[1]
    enough = -np.log(SETTINGS.enough)
    assert found["before"][:2].max() > 1
    for name in ("all", "W_out"):
        assert found[name][:2].max() < enough
    # A model that is certain enough does not change further.
    jax.tree.map(np.testing.assert_array_equal, certain[0]["all"], certain[0]["longer"])


def test_the_steps_are_those_of_optax(made):
    def compare(path, one, other):
        # The gradient of biases of keys is 0, and Adam divides rounding errors by their size.
        if path[-1].key != "b_K":
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, made[0]["short"], made[0]["plain"])
    before, short = (made[1][name][:2].mean() for name in ("before", "short"))
    assert -np.log(SETTINGS.enough) < short < before


@pytest.mark.slow
def test_only_the_chosen_weights_change(certain):
    def same(one, other):
        return jax.tree.map(np.array_equal, certain[0][one], certain[0][other])

    changed = same("W_out", "before")
    assert not changed["blocks"]["1"]["mlp"].pop("W_out") and all(jax.tree.leaves(changed))
    assert not any(jax.tree.leaves(same("all", "before")["blocks"]["0"]["mlp"]))
