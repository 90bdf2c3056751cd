"""Losses agree with their papers, and gradients with finite differences where these exist."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.activations import (
    ACTIVATIONS,
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
    jumprelu,
    topk,
)
from implicit_reasoning.dictionaries.architectures import (
    Autoencoder,
    Crosscoder,
    CrossLayer,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.errors import InputError
from tests.dictionaries.parameters import at_random

D, F, B = 4, 8, 6
MADE = {
    "relu": ReLU(),
    "gated": Gated(),
    "topk": TopK(max_k=3),
    "batch_topk": BatchTopK(),
    "jumprelu": JumpReLU(),
    "jumprelu tanh": JumpReLU(mode="tanh", revive=0.1),
    "matryoshka": Matryoshka(widths=(2, 5)),
}
ARCHITECTURES = {
    "autoencoder": Autoencoder(D, D, F),
    "transcoder": Transcoder(D, 6, F),
    "skip_transcoder": SkipTranscoder(D, 6, F),
    "crosscoder": Crosscoder(D, D, F, n_parts=2),
    "cross_layer": CrossLayer(D, 6, F, n_layers=2),
}


def pairs(names, chosen):
    """Parametrize over all pairs; pairs that are not chosen are slow."""
    return pytest.mark.parametrize(
        ("architecture", "name"),
        [
            pytest.param(
                ARCHITECTURES[architecture],
                name,
                id=f"{name}-{architecture}",
                marks=() if chosen(architecture, name) else pytest.mark.slow,
            )
            for name in names
            for architecture in ARCHITECTURES
        ],
    )


def sparsity_of(activation_fn):
    return np.float32(3.0 if activation_fn.sparsity_kind == "k" else 0.2)


def compiled_loss(dictionary):
    """Compile the loss as one program; compiling single primitives takes ten times as long."""
    return jax.jit(dictionary.loss)


def loss_of(dictionary, params, x, y, sparsity, dead):
    """Return the loss and the record of a step, as numpy arrays except for `Encoded`."""
    return compiled_loss(dictionary)(params, x, y, np.float32(sparsity), dead)


def by_hand(params, x):
    """Return parameters, inputs, pre-activations without bias, and row norms, by numpy."""
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


def test_every_activation_function_has_a_name():
    assert {activation_fn.name for activation_fn in MADE.values()} == set(ACTIVATIONS)


# Losses ------------------------------------------------------------------------------------------


def test_relu():
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], ReLU())
    loss, seen = loss_of(dictionary, params, x, y, 0.2, dead)
    params, x, projected, norms = by_hand(params, x)
    acts = np.maximum(projected + params["b_enc"], 0)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["l1"], 0.2 * (acts * norms).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, sum(map(float, seen.terms.values())), rtol=1e-6)
    np.testing.assert_allclose(seen.l0, (acts > 0).sum(1).mean())
    np.testing.assert_array_equal(seen.fired, (acts > 0).any(0))


def test_gated():
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], Gated())
    _, seen = loss_of(dictionary, params, x, y, 0.2, dead)
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
    monkeypatch.setattr(topk, "_MAX_DENSE_RATIO", few)
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], TopK(max_k=3))
    _, seen = loss_of(dictionary, params, x, y, k, dead)
    params, x, projected, norms = by_hand(params, x)
    pre = projected + params["b_enc"]
    least = np.sort(pre * norms, axis=1)[:, [-k]]
    acts = np.where(pre * norms >= least, np.maximum(pre, 0), 0)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(dense(seen.encoded), acts, atol=1e-6)
    assert np.asarray(seen.terms["aux"]) == 0


def dense(encoded):
    """`Encoded.dense`, computed by numpy."""
    if not isinstance(encoded.acts, Sparse):
        return np.asarray(encoded.acts)
    found = np.zeros_like(encoded.pre)
    np.put_along_axis(found, np.asarray(encoded.acts.indices), np.asarray(encoded.acts.values), 1)
    return found


def batch_topk_by_hand(pre, norms, k):
    written = np.maximum(pre, 0) * norms
    least = np.sort(written.ravel())[-k * len(pre)]
    return np.where((written >= least) & (written > 0), np.maximum(pre, 0), 0)


def test_batch_topk_and_its_threshold():
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], BatchTopK())
    _, seen = loss_of(dictionary, params, x, y, 2, dead)
    observe = jax.jit(functools.partial(dictionary.activation_fn.observe, dictionary.architecture))
    first, later = (observe(params, np.float32(old), seen.encoded) for old in (0, 5))
    params, x, projected, norms = by_hand(params, x)
    acts = batch_topk_by_hand(projected + params["b_enc"], norms, 2)
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    assert np.asarray(seen.l0) == 2
    least = (acts * norms)[acts > 0].min()
    np.testing.assert_allclose(first, least, rtol=1e-5)
    np.testing.assert_allclose(later, 5 + 0.01 * (least - 5), rtol=1e-5)


def test_matryoshka():
    dictionary, params, x, y, dead = at_random(
        ARCHITECTURES["autoencoder"], Matryoshka(widths=(2, 5))
    )
    loss, seen = loss_of(dictionary, params, x, y, 2, dead)
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
    activation_fn = JumpReLU(mode=mode, revive=0.1)
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], activation_fn)
    dead = np.arange(F) == 3
    _, seen = loss_of(dictionary, params, x, y, 0.2, dead)
    params, x, projected, norms = by_hand(params, x)
    pre = projected + params["b_enc"]
    acts = np.where(pre > params["threshold"], pre, 0)
    count = np.tanh(4 * acts * norms) if mode == "tanh" else acts > 0
    np.testing.assert_allclose(seen.terms["mse"], error(params, acts, x), rtol=1e-5)
    np.testing.assert_allclose(seen.terms["l0"], 0.2 * count.sum(1).mean(), rtol=1e-5)
    short = np.maximum(params["threshold"] - pre, 0)[:, 3] * norms[3]
    np.testing.assert_allclose(seen.terms["revive"], 0.1 * short.mean(), rtol=1e-5)


def test_a_crosscoder_pays_for_each_checkpoint():
    architecture = ARCHITECTURES["crosscoder"]
    _, params, *_ = at_random(architecture, ReLU())
    first, second = np.split(np.asarray(params["W_dec"]), 2, axis=1)
    expected = np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(jax.jit(architecture.norms)(params), expected, rtol=1e-6)


def test_a_cross_layer_transcoder_by_hand():
    architecture = ARCHITECTURES["cross_layer"]
    dictionary, params, x, y, dead = at_random(architecture, ReLU())
    _, seen = loss_of(dictionary, params, x, y, 0.2, dead)
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


# The default cases cover the linear maps of every architecture. They cover the selection of every
# activation_fn for an architecture with one layer and for one with several layers, which overrides
# the computation for selected features.
@pairs(
    ["relu", "topk", "batch_topk", "matryoshka"],
    lambda architecture, name: (
        name == "relu"
        or architecture == "autoencoder"
        or (name == "topk" and architecture == "cross_layer")
    ),
)
def test_gradients_are_those_of_finite_differences(architecture, name):
    activation_fn = MADE[name]
    with jax.enable_x64(True):
        dictionary, params, x, y, dead = at_random(architecture, activation_fn)
        params, x, y = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x, y))
        random = np.random.default_rng(0)
        ways = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), params)

        @jax.jit
        @jax.value_and_grad
        def along(t):
            moved = jax.tree.map(lambda leaf, way: leaf + t * way, params, ways)
            return dictionary.loss(
                moved, jnp.asarray(x), jnp.asarray(y), jnp.asarray(sparsity_of(activation_fn)), dead
            )[0]

        size = 1e-6
        _, exact = along(0.0)
        difference = float(along(size)[0]) - float(along(-size)[0])
        np.testing.assert_allclose(exact, difference / 2 / size, rtol=1e-5)


@pytest.mark.parametrize("few", [0, 32], ids=["by index", "of all"])
def test_topk_differentiates_as_if_all_features_were_computed(few, monkeypatch):
    monkeypatch.setattr(topk, "_MAX_DENSE_RATIO", few)
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], TopK(max_k=3))

    def dense(params):
        architecture = dictionary.architecture
        pre = architecture.project(params, x) + params["b_enc"][None]
        chosen = jax.lax.top_k(pre * architecture.norms(params)[None], 3)[1]
        mask = jnp.zeros((B, F)).at[jnp.arange(B)[:, None], chosen].set(1)
        acts = jax.nn.relu(pre) * jax.lax.stop_gradient(mask)
        return ((acts @ params["W_dec"] + params["b_dec"][None] - x) ** 2).sum(-1).mean()

    def sparse(params):
        return dictionary.loss(params, x, y, jnp.float32(3), dead)[0]

    ours, theirs = jax.jit(lambda p: (jax.grad(sparse)(p), jax.grad(dense)(p)))(params)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def test_the_largest_few_are_the_sorted_ones_and_of_equal_ones_the_first():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    values[5:10] = np.round(values[5:10])  # many values are equal
    values[10] = 0.0
    few = jax.jit(topk.largest_few)
    for count in (1, 4, 30):
        found = np.asarray(few(values, np.float32(count)))
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        expected = np.zeros_like(found)
        np.put_along_axis(expected, order, True, axis=1)
        np.testing.assert_array_equal(found, expected)


def test_the_estimates_of_jumprelu():
    """Rectangle kernel: only pre-activations within half a bandwidth of the threshold count."""
    pre = np.array([[0.5], [1.01], [0.98], [1.2]], "f4")
    threshold, grad = np.array([1.0], "f4"), np.array([[1.0], [2.0], [3.0], [4.0]], "f4")

    @jax.jit
    def pulled(pre, threshold, grad):
        return {
            (function, to_pre): jax.vjp(
                lambda p, t, of=function, to=to_pre: getattr(jumprelu, of)(p, t, 0.1, to),
                pre,
                threshold,
            )[1](grad)
            for function in ("jump", "step")
            for to_pre in (False, True)
        }

    near = np.array([[0], [20.0], [30.0], [0]])
    passed = np.array([[0], [2.0], [0], [4.0]])
    for (function, to_pre), (to_x, to_t) in pulled(pre, threshold, grad).items():
        np.testing.assert_allclose(to_t, [-50.0], rtol=1e-6)
        through = passed if function == "jump" else 0
        np.testing.assert_allclose(to_x, through + near * to_pre, rtol=1e-6)


@pytest.mark.parametrize("term", ["gate", "l1"])
def test_what_the_gate_is_trained_by_does_not_move_the_decoder(term):
    """Otherwise the penalty would shrink rows without limit, as magnitudes compensate."""
    dictionary, params, x, y, dead = at_random(ARCHITECTURES["autoencoder"], Gated())
    grad = jax.grad(lambda p: dictionary.loss(p, x, y, jnp.float32(0.2), dead)[1].terms[term])
    found = jax.device_get(jax.jit(grad)(params))
    assert not found["W_dec"].any() and found["W_enc"].any() and found["b_gate"].any()


# Dead features -----------------------------------------------------------------------------------


def auxiliary_of(dictionary):
    """Return one program for AuxK, its gradient, and the output of the dictionary."""

    def aux(params, dead, x, y):
        seen = dictionary.loss(params, x, y, jnp.float32(1), dead)[1]
        architecture = dictionary.architecture
        out = architecture.base(params, x) + architecture.write(params, seen.encoded.acts)
        return seen.terms["aux"], out

    compiled = jax.jit(jax.value_and_grad(aux, has_aux=True))
    return lambda *of: jax.device_get(compiled(*of))


@pytest.mark.parametrize("activation_fn", [TopK(max_k=1), BatchTopK()], ids=["topk", "batch_topk"])
def test_auxk_by_hand(activation_fn):
    dictionary, params, x, y, _ = at_random(ARCHITECTURES["autoencoder"], activation_fn)
    auxiliary = auxiliary_of(dictionary)
    dead = np.isin(np.arange(F), (2, 5, 6))
    (aux, out), _ = auxiliary(params, dead, x, y)
    w, x64, projected, norms = by_hand(params, x)
    pre = projected + w["b_enc"]
    missing = x64 - out
    written = np.zeros_like(missing)
    for row in range(B):  # the two of three dead features (D // 2 = 2) that would write most
        best = sorted([2, 5, 6], key=lambda f: -pre[row, f] * norms[f])[: D // 2]
        written[row] = sum(pre[row, f] * w["W_dec"][f] for f in best)
    expected = ((written - missing) ** 2).sum(1).mean()
    np.testing.assert_allclose(aux, expected, rtol=1e-4)
    one = np.arange(F) == 2  # one dead feature of at most two: half the loss
    alone = pre[:, [2]] * w["W_dec"][2] - missing
    half = 0.5 * (alone**2).sum(1).mean()
    np.testing.assert_allclose(auxiliary(params, one, x, y)[0][0], half, rtol=1e-4)


def test_auxk_makes_dead_features_write_what_is_missing_and_not_its_opposite():
    """A step against the gradient moves the output of dead features towards target - output."""
    dictionary, params, x, y, _ = at_random(ARCHITECTURES["autoencoder"], TopK(max_k=1))
    dead, auxiliary = np.arange(F) >= 2, auxiliary_of(dictionary)
    (before, _), grads = auxiliary(params, dead, x, y)
    start = jax.device_get(params)
    live = np.array([0, 1])
    for name in ("W_enc", "b_enc", "W_dec"):  # live features and the target get no gradient
        axis = {"W_enc": 1, "b_enc": 0, "W_dec": 0}[name]
        assert not np.take(grads[name], live, axis=axis).any()
    moved = jax.tree.map(lambda leaf, grad: leaf - np.float32(1e-3) * grad, start, grads)
    assert auxiliary(moved, dead, x, y)[0][0] < before


# Inference ---------------------------------------------------------------------------------------


@pairs(
    MADE,
    lambda architecture, name: (
        name == "relu"
        or architecture == "autoencoder"
        or (name == "topk" and architecture == "cross_layer")
    ),
)
def test_a_finished_dictionary_writes_what_it_wrote_in_training(architecture, name):
    activation_fn = MADE[name]
    dictionary, params, x, y, dead = at_random(architecture, activation_fn)
    # Scales are folded in: parameters trained on x / 3 and y / 5 read x and write y.
    scale_out = 3.0 if isinstance(architecture, Autoencoder) else 5.0

    @jax.jit
    def everything(params, x, y, sparsity, dead):
        seen = dictionary.loss(params, x, y, sparsity, dead)[1]
        threshold = jnp.float32(0)
        if activation_fn.name in (
            "batch_topk",
            "matryoshka",
        ):  # between the smallest active value and the largest inactive one
            acts = seen.encoded.acts * architecture.norms(params)[None]
            off = jax.nn.relu(seen.encoded.pre) * architecture.norms(params)[None]
            least = jnp.where(acts > 0, acts, jnp.inf).min()
            threshold = (least + jnp.where(acts > 0, 0, off).max()) / 2
        whole = dictionary.finish(params, threshold, sparsity)
        finished = dictionary.for_inference()
        written = architecture.write(params, seen.encoded.acts) + architecture.base(params, x)
        folded = dictionary.finish(params, threshold, sparsity, 3.0, scale_out)
        return architecture.norms(whole), finished(whole, x), finished(folded, 3 * x), written

    norms, again, scaled, written = everything(params, x, y, sparsity_of(activation_fn), dead)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    np.testing.assert_allclose(again, written, atol=2e-5)
    np.testing.assert_allclose(scaled, scale_out * np.asarray(written), atol=2e-4)


def test_finished_dictionaries_say_what_they_are():
    with pytest.raises(InputError, match="architecture is 'tok'; it must be one of standard"):
        InferenceDictionary(ARCHITECTURES["autoencoder"], "tok")
    with pytest.raises(InputError, match=r"max_k is 0 .* must be positive for 'topk'"):
        InferenceDictionary(ARCHITECTURES["autoencoder"], "topk")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Autoencoder(3, 4, 8), "d_in is 3 and d_out is 4"),
        (lambda: Crosscoder(3, 3, 8, n_parts=2), "d_in is 3; it must be a multiple of n_parts = 2"),
        (
            lambda: CrossLayer(4, 4, 7, n_layers=2),
            "d_sae is 7; .* multiple of n_layers = 2",
        ),
        (lambda: JumpReLU(mode="steps"), "mode is 'steps'; it must be one of step, tanh"),
        (lambda: Matryoshka(widths=(4, 2)), r"widths is \(4, 2\); it must contain at least one"),
        (
            lambda: Matryoshka(widths=(8,)).init(Autoencoder(4, 4, 8)),
            r"widths is \(8,\); all widths must be smaller than d_sae = 8",
        ),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(InputError, match=said):
        make()


# The threshold of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_largest_by_bisection_is_the_sorted_one(count):
    """Values have any sign; if a row has too few finite values, the result is not finite."""
    values = np.random.default_rng(count).standard_normal((10, 80), np.float32)
    values[3, 20:], values[5], values[6, 7] = -np.inf, 0.0, -0.0
    found = largest(values, np.int32(count))
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, -count])
    assert np.asarray(largest(values[:1], np.int32(count)))[0] == np.asarray(found)[0]


largest = jax.jit(topk.largest)
