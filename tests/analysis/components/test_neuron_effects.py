"""Effects of neurons equal those of forward passes with edits, one neuron at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.components.losses import cross_entropy
from implicit_reasoning.analysis.components.losses import log_odds as log_odds_of
from implicit_reasoning.analysis.components.neuron_effects import (
    answers_without,
    log_probability_increase,
    mean_ablation,
    run_neurons,
)
from implicit_reasoning.model import Spec, Transformer
from tests.model.exchange.models import filled

SPEC = Spec(d_vocab=7, n_ctx=3, n_layers=2, n_loops=2, d_model=8, n_heads=2, d_mlp=5)

COMMON = np.eye(6, dtype=bool)
COMMON[0, 1] = COMMON[1, 0] = True


def mean_of_others(values):
    """Return for each prompt the mean over the prompts without a common fact."""
    return np.stack([values[~common].mean(0) for common in COMMON])


@pytest.fixture(scope="module")
def model():
    return Transformer(SPEC)


@pytest.fixture(scope="module")
def params(model):
    return filled(model, seed=4)


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(0).integers(0, 7, (6, 3), np.int32)
    return tokens, (tokens.sum(1) % 7).astype(np.int32)


@pytest.fixture(scope="module")
def measured(model, prompts):
    """Return a function of parameters that computes everything that is tested here."""

    @jax.jit
    def everything(params, tokens, answer, removed):
        run = run_neurons(model, params, tokens, jnp.asarray(COMMON))
        return {
            "run": run,
            "all": mean_ablation(model, params, run, answer),
            "last": mean_ablation(model, params, run, answer, only_last=True),
            "increase": log_probability_increase(model, params, run, answer),
            "without": answers_without(model, params, tokens, removed, run.mean),
        }

    return lambda params: everything(params, *prompts, removed())


@pytest.fixture(scope="module")
def found(measured, params):
    return measured(params)


def removed():
    return np.random.default_rng(3).random((6, 2, 5)) < 0.4


def logits_with(model, params, tokens, acts):
    """Return logits of a pass by hand, in which some activations are given.

    Args:
      acts: for a block, a function of its activations [prompt, pos, neuron].
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = params["embed"]["W_E"][tokens] + params["pos_embed"]["W_pos"][: tokens.shape[1]]
    spec = model.spec

    def norm(x, own):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.eps) * own["w"] + own["b"]

    for block in range(spec.depth):
        own = params["blocks"][str(block % spec.n_layers)]
        attn, mlp = own["attn"], own["mlp"]
        read = norm(x, own["ln1"])
        for head in range(spec.n_heads):
            q, k, v = (read @ attn[f"W_{n}"][head] + attn[f"b_{n}"][head] for n in "QKV")
            scores = q @ k.swapaxes(1, 2) / np.sqrt(spec.d_head)
            scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            x = x + pattern @ v @ attn["W_O"][head]
        x = x + attn["b_O"]
        pre = norm(x, own["ln2"]) @ mlp["W_in"] + mlp["b_in"]
        post = pre / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (pre + 0.044715 * pre**3)))
        x = x + acts.get(block, lambda post: post)(post) @ mlp["W_out"] + mlp["b_out"]
    return norm(x, params["ln_final"])[:, -1] @ params["unembed"]["W_U"]


def log_p(logits, answer):
    logits = logits - logits.max(-1, keepdims=True)
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(len(answer)), answer]


def log_odds(logits, answer):
    p = np.exp(log_p(logits, answer))
    return np.log(p) - np.log1p(-p)


def test_log_probabilities_are_precise_where_the_model_is_certain():
    """With a logit of 40, p is 1 in float32, and so log p would be 0."""
    logits, answer = jnp.array([[40.0, 0.0, 0.0], [41.0, 0.0, 0.0]]), jnp.zeros(2, int)
    odds, lost = jax.jit(lambda *of: (log_odds_of(*of), cross_entropy(*of)))(logits, answer)
    np.testing.assert_allclose(odds, np.array([40, 41]) - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(lost, 2 * np.exp([-40.0, -41.0]), rtol=1e-4)


def test_the_pass_by_hand_is_that_of_the_model(model, params, prompts, found):
    np.testing.assert_allclose(
        found["run"].logits, logits_with(model, params, prompts[0], {}), atol=1e-4
    )


@pytest.mark.parametrize(("which", "first"), [("all", 0), ("last", 2)])
def test_mean_ablation_replaces_one_neuron(model, params, prompts, found, which, first):
    tokens, answer = prompts
    clean = log_odds(logits_with(model, params, tokens, {}), answer)
    for block in range(SPEC.depth):
        for neuron in range(SPEC.d_mlp):

            def ablated(post, neuron=neuron):
                post = post.copy()
                post[:, first:, neuron] = mean_of_others(post)[:, first:, neuron]
                return post

            logits = logits_with(model, params, tokens, {block: ablated})
            drop = found[which].drop[block, neuron]
            np.testing.assert_allclose(drop, clean - log_odds(logits, answer), atol=5e-4)
            np.testing.assert_array_equal(
                found[which].wrong[block, neuron], logits.argmax(-1) != answer
            )


def test_sets_of_neurons_are_replaced_in_all_loops(model, params, prompts, found):
    means = np.asarray(found["run"].mean)
    gone = removed()

    def ablated(block):
        where = gone[:, block % SPEC.n_layers, None]
        return lambda post: np.where(where, means[block], post)

    by_hand = logits_with(model, params, prompts[0], {b: ablated(b) for b in range(SPEC.depth)})
    np.testing.assert_allclose(found["without"], by_hand, atol=1e-4)


def test_log_probability_increase_is_that_of_one_neuron_with_the_final_scale(
    model, params, prompts, found
):
    run, answer = jax.tree.map(np.asarray, found["run"]), prompts[1]
    final, unembed = run.states[-1][:, -1], np.asarray(params["unembed"]["W_U"])
    norm = jax.tree.map(np.asarray, params["ln_final"])
    scale = np.sqrt(final.var(-1, keepdims=True) + SPEC.eps)

    def read_out(x):
        return ((x - x.mean(-1, keepdims=True)) / scale * norm["w"] + norm["b"]) @ unembed

    for block in range(SPEC.depth):
        weights = np.asarray(params["blocks"][str(block % 2)]["mlp"]["W_out"])
        for neuron in range(SPEC.d_mlp):
            before = run.between[block]
            after = before + run.acts[block, :, -1, [neuron]].T * weights[neuron]
            wanted = log_p(read_out(after), answer) - log_p(read_out(before), answer)
            np.testing.assert_allclose(found["increase"][block, neuron], wanted, atol=1e-4)


def test_neurons_that_are_never_active_have_no_effect(params, measured):
    """Without the mask, their effect would be a rounding error."""
    constant = jax.tree.map(np.array, params)
    constant["blocks"]["0"]["mlp"]["W_in"][:, 2] = 0
    constant["blocks"]["0"]["mlp"]["b_in"][2] = 0
    drop = np.asarray(measured(jax.device_put(constant))["all"].drop)
    np.testing.assert_array_equal(drop[[0, 2], 2], 0)
    assert (np.abs(drop[[0, 2]][:, [0, 1, 3, 4]]).max(-1) > 1e-4).all()
