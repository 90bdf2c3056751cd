"""Losses are what their papers say, gradients what finite differences say where they exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.kinds import (
    Autoencoder,
    Crosscoder,
    CrossLayer,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.variants import (
    VARIANTS,
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
    jumprelu,
    topk,
)
from implicit_reasoning.errors import InputError
from tests.dictionaries.parameters import at_random

D, F, B = 4, 8, 6
MADE = {
    "relu": ReLU(),
    "gated": Gated(),
    "topk": TopK(most=3),
    "batch_topk": BatchTopK(),
    "jumprelu": JumpReLU(),
    "jumprelu tanh": JumpReLU(mode="tanh", revive=0.1),
    "matryoshka": Matryoshka(widths=(2, 5)),
}
KINDS = {
    "autoencoder": Autoencoder(D, D, F),
    "transcoder": Transcoder(D, 6, F),
    "skip_transcoder": SkipTranscoder(D, 6, F),
    "crosscoder": Crosscoder(D, D, F, n_parts=2),
    "cross_layer": CrossLayer(D, 6, F, n_layers=2),
}
every_variant = pytest.mark.parametrize("variant", MADE.values(), ids=MADE)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def knob(variant):
    return jnp.float32(3.0 if variant.knob == "k" else 0.2)


def by_hand(params, x):
    """Pre-activations of an autoencoder without its bias, and norms of its rows: numpy."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = np.asarray(x, np.float64)
    return (
        params,
        x,
        (x - params["b_dec"]) @ params["W_enc"],
        np.linalg.norm(params["W_dec"], axis=1),
    )


def error(params, acts, x):
    return ((acts @ params["W_dec"] + params["b_dec"] - x) ** 2).sum(1).mean()


def test_every_variant_has_a_name():
    assert {variant.name for variant in MADE.values()} == set(VARIANTS)


# Losses ------------------------------------------------------------------------------------------


def test_relu():
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], ReLU())
    loss, seen = dictionary.loss(params, x, y, jnp.float32(0.2), dead)
    params, x, projected, norms = by_hand(params, x)
    acts = np.maximum(projected + params["b_enc"], 0)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["l1"], 0.2 * (acts * norms).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, sum(seen.terms.values()), rtol=1e-6)
    np.testing.assert_allclose(seen.l0, (acts > 0).sum(1).mean())
    np.testing.assert_array_equal(seen.fired, (acts > 0).any(0))


def test_gated():
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], Gated())
    _, seen = dictionary.loss(params, x, y, jnp.float32(0.2), dead)
    params, x, projected, norms = by_hand(params, x)
    gate = projected + params["b_gate"]
    acts = (gate > 0) * np.maximum(projected * np.exp(params["r_mag"]) + params["b_mag"], 0)
    opened = np.maximum(gate, 0)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["l1"], 0.2 * (opened * norms).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["gate"], error(params, opened, x), rtol=1e-5)


@pytest.mark.parametrize("few", [0, 32], ids=["by index", "of all"])
@pytest.mark.parametrize("k", [1, 3])
def test_topk(k, few, monkeypatch):
    monkeypatch.setattr(topk, "_FEW", few)
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], TopK(most=3))
    _, seen = dictionary.loss(params, x, y, jnp.float32(k), dead)
    params, x, projected, norms = by_hand(params, x)
    pre = projected + params["b_enc"]
    least = np.sort(pre * norms, axis=1)[:, [-k]]
    acts = np.where(pre * norms >= least, np.maximum(pre, 0), 0)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.encoded.dense, acts, atol=1e-6)
    assert seen.terms["aux"] == 0


def batch_topk_by_hand(pre, norms, k):
    written = np.maximum(pre, 0) * norms
    least = np.sort(written.ravel())[-k * len(pre)]
    return np.where((written >= least) & (written > 0), np.maximum(pre, 0), 0)


def test_batch_topk_and_its_threshold():
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], BatchTopK())
    _, seen = dictionary.loss(params, x, y, jnp.float32(2), dead)
    observe = dictionary.variant.observe
    first = observe(dictionary.kind, params, jnp.float32(0), seen.encoded)
    later = observe(dictionary.kind, params, jnp.float32(5), seen.encoded)
    params, x, projected, norms = by_hand(params, x)
    acts = batch_topk_by_hand(projected + params["b_enc"], norms, 2)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    assert seen.l0 == 2
    least = (acts * norms)[acts > 0].min()
    np.testing.assert_allclose(first, least, rtol=1e-5)
    np.testing.assert_allclose(later, 5 + 0.01 * (least - 5), rtol=1e-5)


def test_matryoshka():
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], Matryoshka(widths=(2, 5)))
    loss, seen = dictionary.loss(params, x, y, jnp.float32(2), dead)
    params, x, projected, norms = by_hand(params, x)
    acts = batch_topk_by_hand(projected + params["b_enc"], norms, 2)
    total = error(params, acts, x)
    for width in (2, 5):
        inner = error(params, np.where(np.arange(F) < width, acts, 0), x)
        np.testing.assert_allclose(seen.terms[f"inner_{width}"], inner, rtol=1e-5)
        total += inner
    np.testing.assert_allclose(loss, total, rtol=1e-5)


@pytest.mark.parametrize("mode", ["step", "tanh"])
def test_jumprelu(mode):
    variant = JumpReLU(mode=mode, revive=0.1)
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], variant)
    dead = dead.at[3].set(True)
    _, seen = dictionary.loss(params, x, y, jnp.float32(0.2), dead)
    params, x, projected, norms = by_hand(params, x)
    pre = projected + params["b_enc"]
    acts = np.where(pre > params["threshold"], pre, 0)
    count = np.tanh(4 * acts * norms) if mode == "tanh" else acts > 0
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["l0"], 0.2 * count.sum(1).mean(), rtol=1e-5)
    short = np.maximum(params["threshold"] - pre, 0)[:, 3] * norms[3]
    np.testing.assert_allclose(seen.terms["revive"], 0.1 * short.mean(), rtol=1e-5)


def test_a_crosscoder_pays_for_each_checkpoint():
    kind = KINDS["crosscoder"]
    _, params, *_ = at_random(kind, ReLU())
    first, second = np.split(np.asarray(params["W_dec"]), 2, axis=1)
    expected = np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(kind.norms(params), expected, rtol=1e-6)


def test_a_cross_layer_transcoder_by_hand():
    kind = KINDS["cross_layer"]
    dictionary, params, x, y, dead = at_random(kind, ReLU())
    _, seen = dictionary.loss(params, x, y, jnp.float32(0.2), dead)
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    parts = np.split(np.asarray(x, np.float64), 2, axis=1)
    bias = np.split(w["b_enc"], 2)
    acts = [np.maximum(parts[n] @ w["W_enc"][n] + bias[n], 0) for n in range(2)]
    first = acts[0] @ w["W_dec"][0, :, 0]
    second = acts[0] @ w["W_dec"][0, :, 1] + acts[1] @ w["W_dec"][1, :, 1]
    out = np.concatenate([first, second], axis=1) + w["b_dec"]
    mse = ((out - np.asarray(y)) ** 2).sum(1).mean()
    np.testing.assert_allclose(seen.terms["mse"], mse, rtol=1e-5)
    norms = np.concatenate(
        [
            np.sqrt((w["W_dec"][0] ** 2).sum((1, 2))),
            np.linalg.norm(w["W_dec"][1, :, 1], axis=1),
        ]
    )
    l1 = 0.2 * (np.concatenate(acts, axis=1) * norms).sum(1).mean()
    np.testing.assert_allclose(seen.terms["l1"], l1, rtol=1e-5)


# Gradients ---------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("name", ["relu", "topk", "batch_topk", "matryoshka"])
def test_gradients_are_those_of_finite_differences(kind, name):
    variant = MADE[name]
    with jax.enable_x64(True):
        dictionary, params, x, y, dead = at_random(kind, variant)
        to_64 = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x, y))
        params, x, y = to_64
        random = np.random.default_rng(0)
        ways = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), params)

        def along(t):
            moved = jax.tree.map(lambda leaf, way: leaf + t * way, params, ways)
            return dictionary.loss(moved, x, y, knob(variant), dead)[0]

        exact = jax.grad(along)(0.0)
        size = 1e-6
        np.testing.assert_allclose(exact, (along(size) - along(-size)) / 2 / size, rtol=1e-5)


@pytest.mark.parametrize("few", [0, 32], ids=["by index", "of all"])
def test_topk_differentiates_as_if_all_features_were_computed(few, monkeypatch):
    monkeypatch.setattr(topk, "_FEW", few)
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], TopK(most=3))

    def dense(params):
        kind = dictionary.kind
        pre = kind.project(params, x) + params["b_enc"][None]
        chosen = jax.lax.top_k(pre * kind.norms(params)[None], 3)[1]
        mask = jnp.zeros((B, F)).at[jnp.arange(B)[:, None], chosen].set(1)
        acts = jax.nn.relu(pre) * jax.lax.stop_gradient(mask)
        return ((acts @ params["W_dec"] + params["b_dec"][None] - x) ** 2).sum(-1).mean()

    ours = jax.grad(lambda params: dictionary.loss(params, x, y, jnp.float32(3), dead)[0])(params)
    theirs = jax.grad(dense)(params)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_the_largest_few_are_the_sorted_ones_and_of_equal_ones_the_first():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    values[5:10] = np.round(values[5:10])  # many are equal
    values[10] = 0.0
    for count in (1, 4, 30):
        found = np.asarray(topk.largest_few(jnp.asarray(values), jnp.float32(count)))
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        expected = np.zeros_like(found)
        np.put_along_axis(expected, order, True, axis=1)
        np.testing.assert_array_equal(found, expected)


def test_the_estimates_of_jumprelu():
    """Rectangle kernel: only pre-activations within half a bandwidth of the threshold count."""
    pre = jnp.array([[0.5], [1.01], [0.98], [1.2]])
    threshold, grad = jnp.array([1.0]), jnp.array([[1.0], [2.0], [3.0], [4.0]])
    for to_pre in (False, True):
        _, pull = jax.vjp(lambda p, t, to=to_pre: jumprelu.jump(p, t, 0.1, to), pre, threshold)
        to_x, to_t = pull(grad)
        near = np.array([[0], [20.0], [30.0], [0]])
        np.testing.assert_allclose(to_t, [-50.0], rtol=1e-6)
        passed = np.array([[0], [2.0], [0], [4.0]])
        np.testing.assert_allclose(to_x, passed + near * to_pre, rtol=1e-6)
        _, pull = jax.vjp(lambda p, t, to=to_pre: jumprelu.step(p, t, 0.1, to), pre, threshold)
        to_x, to_t = pull(grad)
        np.testing.assert_allclose(to_t, [-50.0], rtol=1e-6)
        np.testing.assert_allclose(to_x, near * to_pre, rtol=1e-6)


@pytest.mark.parametrize("term", ["gate", "l1"])
def test_what_the_gate_is_trained_by_does_not_move_the_decoder(term):
    """Of the penalty: rows would shrink without end, as magnitudes can make up for it."""
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], Gated())
    grad = jax.grad(lambda p: dictionary.loss(p, x, y, jnp.float32(0.2), dead)[1].terms[term])
    found = grad(params)
    assert not found["W_dec"].any() and found["W_enc"].any() and found["b_gate"].any()


# Dead features -----------------------------------------------------------------------------------


def auxiliary_of(params, dead, x, y, dictionary):
    return dictionary.loss(params, x, y, jnp.float32(1), dead)[1].terms["aux"]


@pytest.mark.parametrize("variant", [TopK(most=1), BatchTopK()], ids=["topk", "batch_topk"])
def test_auxk_by_hand(variant):
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], variant)
    dead = dead.at[jnp.array([2, 5, 6])].set(True)
    aux = auxiliary_of(params, dead, x, y, dictionary)
    out = dictionary.kind.base(params, x) + dictionary.kind.write(
        params, dictionary.loss(params, x, y, jnp.float32(1), dead)[1].encoded.acts
    )
    w, x64, projected, norms = by_hand(params, x)
    pre = projected + w["b_enc"]
    missing = x64 - np.asarray(out)
    written = np.zeros_like(missing)
    for row in range(B):  # of three dead features the two (D // 2) that would write most
        best = sorted([2, 5, 6], key=lambda f: -pre[row, f] * norms[f])[: D // 2]
        written[row] = sum(pre[row, f] * w["W_dec"][f] for f in best)
    expected = ((written - missing) ** 2).sum(1).mean()
    np.testing.assert_allclose(aux, expected, rtol=1e-4)
    one = jnp.zeros(F, bool).at[2].set(True)  # one dead of the two that there might be: half
    alone = pre[:, [2]] * w["W_dec"][2] - missing
    half = 0.5 * (alone**2).sum(1).mean()
    np.testing.assert_allclose(auxiliary_of(params, one, x, y, dictionary), half, rtol=1e-4)


def test_auxk_makes_dead_features_write_what_is_missing_and_not_its_opposite():
    """The sign: a step against the gradient brings what they write nearer to target - output."""
    dictionary, params, x, y, dead = at_random(KINDS["autoencoder"], TopK(most=1))
    dead = dead.at[jnp.arange(2, 8)].set(True)
    grads = jax.grad(auxiliary_of)(params, dead, x, y, dictionary)
    live = np.array([0, 1])
    for name in ("W_enc", "b_enc", "W_dec"):  # those that live are left alone, as is the target
        axis = {"W_enc": 1, "b_enc": 0, "W_dec": 0}[name]
        assert not np.take(np.asarray(grads[name]), live, axis=axis).any()
    moved = jax.tree.map(lambda leaf, grad: leaf - 1e-3 * grad, params, grads)
    before, after = (auxiliary_of(p, dead, x, y, dictionary) for p in (params, moved))
    assert after < before


# Finished ----------------------------------------------------------------------------------------


@every_kind
@every_variant
def test_a_finished_dictionary_writes_what_it_wrote_in_training(kind, variant):
    dictionary, params, x, y, dead = at_random(kind, variant)
    seen = dictionary.loss(params, x, y, knob(variant), dead)[1]
    threshold = jnp.float32(0)
    if variant.name in ("batch_topk", "matryoshka"):  # between the least that is on and the rest
        acts = seen.encoded.acts * kind.norms(params)[None]
        off = jax.nn.relu(seen.encoded.pre) * kind.norms(params)[None]
        least, most_off = acts[acts > 0].min(), jnp.where(acts > 0, 0, off).max()
        threshold = (least + most_off) / 2
    whole = dictionary.finish(params, threshold, knob(variant))
    finished = dictionary.finished()
    np.testing.assert_allclose(kind.norms(whole), 1, rtol=1e-5)
    written = kind.write(params, seen.encoded.acts) + kind.base(params, x)
    np.testing.assert_allclose(finished(whole, x), written, atol=2e-5)
    # Scales are folded in: what was trained on x / 3 and y / 5 reads x and writes y.
    scale_out = 3.0 if isinstance(kind, Autoencoder) else 5.0
    folded = dictionary.finish(params, threshold, knob(variant), 3.0, scale_out)
    np.testing.assert_allclose(finished(folded, 3 * x), scale_out * written, atol=2e-4)


def test_finished_dictionaries_say_what_they_are():
    with pytest.raises(InputError, match="no architecture 'tok'; there are standard"):
        Finished(KINDS["autoencoder"], "tok")
    with pytest.raises(InputError, match="`most` goes with topk"):
        Finished(KINDS["autoencoder"], "topk")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Autoencoder(3, 4, 8), "d_in is 3, d_out is 4"),
        (lambda: Crosscoder(3, 3, 8, n_parts=2), "3 numbers do not make 2 equal parts"),
        (lambda: CrossLayer(4, 4, 7, n_layers=2), "d_sae is 7, no multiple of 2"),
        (lambda: JumpReLU(mode="steps"), "mode is 'steps'; it is one of step, tanh"),
        (lambda: Matryoshka(widths=(4, 2)), r"widths ascend, one at least; they are \(4, 2\)"),
        (
            lambda: Matryoshka(widths=(8,)).init(Autoencoder(4, 4, 8)),
            r"widths \(8,\) are to be below d_sae, which is 8",
        ),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(InputError, match=said):
        make()


# The threshold of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_largest_by_bisection_is_the_sorted_one(count):
    """Of any sign, by row; where fewer than that are finite, it is what is not."""
    values = jax.random.normal(jax.random.key(count), (10, 80)).at[3, 20:].set(-jnp.inf)
    values = values.at[5].set(0.0).at[6, 7].set(-0.0)
    found = topk.largest(values, jnp.int32(count))
    np.testing.assert_array_equal(found, np.sort(np.asarray(values), axis=1)[:, -count])
    assert topk.largest(values[0], count) == found[0]
