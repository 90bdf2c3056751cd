"""Quality agrees with closed forms; splicing in a perfect dictionary leaves the model unchanged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from implicit_reasoning.dictionaries.activations import ReLU
from implicit_reasoning.dictionaries.architectures import Autoencoder, CrossLayer, SkipTranscoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.measures.metrics import activity, answers, quality, recovered
from implicit_reasoning.dictionaries.splice import Sites, ablations, edits
from implicit_reasoning.model import Edit, Spec, Transformer, add
from tests.dictionaries.parameters import at_random
from tests.model.exchange.models import filled

SPEC = Spec(d_vocab=11, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
POST, READ, WRITE = "blocks.0.hook_resid_post", "ln2.hook_normalized", "hook_mlp_out"
EVERYWHERE = jnp.ones(3, bool)


@pytest.fixture(scope="module")
def model():
    return Transformer(SPEC)


@pytest.fixture(scope="module")
def params(model):
    return filled(model)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, 11, (5, 3))


def identity(width):
    """Return a dictionary that writes its input: x is relu(x) - relu(-x)."""
    both = np.concatenate([np.eye(width), -np.eye(width)]).astype(np.float32)
    params = {"W_enc": both.T, "b_enc": np.zeros(2 * width, "f4"), "W_dec": both}
    architecture = Autoencoder(width, width, 2 * width)
    return InferenceDictionary(architecture, "standard"), params | {"b_dec": np.zeros(width, "f4")}


def test_quality_by_hand():
    dictionary, params, x, *_ = at_random(Autoencoder(6, 6, 20), ReLU(), batch=50)
    finished = dictionary.for_inference()

    @jax.jit
    def everything(params, x):
        params = dictionary.finish(params, jnp.float32(0), jnp.float32(0))
        acts = finished.encode(params, x)
        return quality(finished, params, x, x), activity(acts), acts, finished(params, x)

    x = np.asarray(x) + 3  # off center, so that a variance about zero would differ
    found, seen, acts, out = everything(params, x)
    acts, out = (np.asarray(v, np.float64) for v in (acts, out))
    y = np.asarray(x, np.float64)
    error, spread = ((out - y) ** 2).sum(1), ((y - y.mean(0)) ** 2).sum(1)
    close = {"rtol": 1e-4}
    np.testing.assert_allclose(found.explained_variance, 1 - error.sum() / spread.sum(), **close)
    np.testing.assert_allclose(found.explained_variance_legacy, 1 - error / spread, **close)
    about_zero = 1 - error.sum() / (y**2).sum()
    assert abs(float(found.explained_variance) - about_zero) > 0.05
    np.testing.assert_allclose(found.mse, error, **close)
    np.testing.assert_allclose(found.l0, (acts > 0).sum(1), **close)
    np.testing.assert_allclose(found.l1, acts.sum(1), **close)
    norms = np.linalg.norm(out, axis=1), np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found.cossim, (out * y).sum(1) / norms[0] / norms[1], **close)
    np.testing.assert_allclose(found.l2_ratio, norms[0] / norms[1], **close)
    density = (acts > 0).mean(0)
    np.testing.assert_allclose(seen.density, density, **close)
    np.testing.assert_allclose(seen.dead, (density == 0).mean(), **close)
    np.testing.assert_allclose(seen.dense, (density > 0.1).mean(), **close)


def test_the_mean_explains_nothing_and_the_truth_everything():
    y = np.random.default_rng(0).standard_normal((40, 5), np.float32) + 2
    finished, perfect = identity(5)
    nothing = perfect | {"W_dec": np.zeros((10, 5), "f4"), "b_dec": y.mean(0)}
    found = jax.jit(functools.partial(quality, finished))
    assert abs(float(found(nothing, y, y).explained_variance)) < 1e-5
    assert abs(float(found(perfect, y, y).explained_variance) - 1) < 1e-5


# In the model ------------------------------------------------------------------------------------


def forward(model, params, tokens, finished=None, dictionary=None, sites=None, **other):
    """Run the model, with the edits of a dictionary and perhaps others, by one program."""

    @jax.jit
    def run(params, tokens, dictionary, where):
        own = {} if finished is None else edits(finished, dictionary, sites, where)
        chosen = own | other.get("edits", {})
        return model.forward(params, tokens, edits=chosen, sites=other.get("wanted", ()))

    found = run(params, tokens, dictionary, other.get("where", np.ones(3, bool)))
    return jax.device_get(found)


@pytest.fixture(scope="module")
def clean(model, params, tokens):
    return forward(model, params, tokens)[0]


AT_POST = Sites((POST,), (POST,))


def test_a_perfect_dictionary_changes_nothing(model, params, tokens, clean):
    finished, weights = identity(8)
    found, _ = forward(model, params, tokens, finished, weights, AT_POST)
    np.testing.assert_allclose(found, clean, atol=1e-5)


def test_it_writes_only_where_it_is_to(model, params, tokens, clean):
    finished, dictionary = identity(8)
    dictionary = dictionary | {"b_dec": np.ones(8, "f4"), "b_enc": np.full(16, -9, "f4")}
    here = np.array([False, True, False])
    changed, _ = forward(model, params, tokens, finished, dictionary, AT_POST, where=here)
    np.testing.assert_allclose(changed[:, 0], clean[:, 0], rtol=1e-6, atol=1e-6)
    assert (np.abs(changed[:, 1:] - clean[:, 1:]).max((0, 2)) > 1e-3).all()


def test_a_transcoder_reads_one_site_and_writes_another(model, params, tokens, clean):
    """A linear transcoder writes its bias and the linear map of its input."""
    random = np.random.default_rng(0)
    linear, bias = (random.normal(size=s).astype(np.float32) for s in ((8, 8), (8,)))
    dictionary = {
        "W_enc": np.zeros((8, 4), "f4"),
        "b_enc": np.full(4, -1, "f4"),
        "W_dec": np.ones((4, 8), "f4"),
        "b_dec": bias,
        "W_skip": linear,
    }
    sites = Sites((f"blocks.0.{READ}",), (f"blocks.0.{WRITE}",))
    finished = InferenceDictionary(SkipTranscoder(8, 8, 4), "standard")
    wanted = (*sites.read, *sites.write)
    logits, found = forward(model, params, tokens, finished, dictionary, sites, wanted=wanted)
    expected = found[sites.read[0]] @ linear.T + bias
    np.testing.assert_allclose(found[sites.write[0]], expected, atol=1e-5)
    assert not np.allclose(logits, clean, atol=1e-3)


def test_a_cross_layer_transcoder_writes_later_layers_too(model, params, tokens):
    """The dictionary has a feature of block 0 that is always 1 and writes only into block 1."""
    reads, writes = (tuple(f"blocks.{b}.{name}" for b in range(2)) for name in (READ, WRITE))
    finished = InferenceDictionary(CrossLayer(16, 16, 2, n_layers=2), "standard")
    decoder = np.zeros((2, 1, 2, 8), "f4")
    decoder[0, 0, 1, 3] = 2
    dictionary = {
        "W_enc": np.zeros((2, 8, 1), "f4"),
        "b_enc": np.array([1, 0], "f4"),
        "W_dec": decoder,
        "b_dec": np.zeros(16, "f4"),
    }
    sites = Sites(reads, writes)
    _, found = forward(model, params, tokens, finished, dictionary, sites, wanted=writes)
    np.testing.assert_array_equal(found[writes[0]], 0)
    expected = np.zeros((5, 3, 8))
    expected[..., 3] = 2
    np.testing.assert_allclose(found[writes[1]], expected, atol=1e-6)


def test_ablations_write_a_constant(model, params, tokens):
    value = np.arange(16, dtype="f4")
    writes = tuple(f"blocks.{b}.{WRITE}" for b in range(2))
    changed = ablations(jnp.asarray(value), Sites(writes, writes), EVERYWHERE)
    _, found = forward(model, params, tokens, edits=changed, wanted=writes)
    for number, site in enumerate(writes):
        part = np.broadcast_to(value[8 * number : 8 * number + 8], (5, 3, 8))
        np.testing.assert_array_equal(found[site], part)


def test_a_dictionary_can_be_added_to(model, params, tokens):
    """The edits of a dictionary combine with an edit of another site."""
    other = {"blocks.1.hook_resid_post": Edit(add, np.ones(8, "f4"))}
    finished, weights = identity(8)
    both, _ = forward(model, params, tokens, finished, weights, AT_POST, edits=other)
    alone, _ = forward(model, params, tokens, edits=other)
    np.testing.assert_allclose(both, alone, atol=1e-5)


def test_loss_recovered_runs_from_nothing_to_all():
    spliced, one, five = np.array([1.0, 5.0, 3.0]), np.full(3, 1.0), np.full(3, 5.0)
    np.testing.assert_array_equal(recovered(spliced, one, five), [1, 0, 0.5])
    # If ablation increases no loss, there is nothing to recover.
    assert np.isnan(recovered(spliced, one, one + 0.005)).all()


def test_answers_against_the_clean_model():
    clean = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    right, compared = np.array([0, 1, 2, 3]), jax.jit(answers)
    np.testing.assert_allclose(compared(clean, clean, right).kl, 0, atol=1e-6)
    p, q = (scipy.special.softmax(v.astype(np.float64), axis=1) for v in (clean, clean * 2))
    other = compared(clean * 2, clean, right)
    np.testing.assert_allclose(other.kl, (p * np.log(p / q)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(other.ce, -np.log(q[np.arange(4), right]), rtol=1e-5)
