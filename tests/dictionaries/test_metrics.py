"""Quality against closed forms; a spliced dictionary is the model itself where it is perfect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.kinds import Autoencoder, CrossLayer, SkipTranscoder
from implicit_reasoning.dictionaries.measures.metrics import activity, answers, quality, recovered
from implicit_reasoning.dictionaries.splice import Sites, ablations, edits
from implicit_reasoning.dictionaries.variants import ReLU
from implicit_reasoning.model import Edit, Spec, Transformer, add
from tests.dictionaries.parameters import at_random

SPEC = Spec(d_vocab=11, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
POST, READ, WRITE = "blocks.0.hook_resid_post", "ln2.hook_normalized", "hook_mlp_out"
EVERYWHERE = jnp.ones(3, bool)


@pytest.fixture(scope="module")
def model():
    return Transformer(SPEC)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (5, 3), 0, 11)


def identity(width):
    """Writes what it reads: x is relu(x) - relu(-x)."""
    both = jnp.concatenate([jnp.eye(width), -jnp.eye(width)])
    params = {"W_enc": both.T, "b_enc": jnp.zeros(2 * width), "W_dec": both}
    kind = Autoencoder(width, width, 2 * width)
    return Finished(kind, "standard"), params | {"b_dec": jnp.zeros(width)}


def test_quality_by_hand():
    dictionary, params, x, *_ = at_random(Autoencoder(6, 6, 20), ReLU(), batch=50)
    finished = dictionary.finished()
    params = dictionary.finish(params, jnp.float32(0), jnp.float32(0))
    x = x + 3.0  # off centre, so that a variance about zero would be another number
    found = quality(finished, params, x, x)
    acts, out = (
        np.asarray(v, np.float64) for v in (finished.encode(params, x), finished(params, x))
    )
    y = np.asarray(x, np.float64)
    error, spread = ((out - y) ** 2).sum(1), ((y - y.mean(0)) ** 2).sum(1)
    close = {"rtol": 1e-4}
    np.testing.assert_allclose(found.explained_variance, 1 - error.sum() / spread.sum(), **close)
    np.testing.assert_allclose(
        found.explained_variance_legacy, (1 - error / spread).mean(), **close
    )
    about_zero = 1 - error.sum() / (y**2).sum()
    assert abs(float(found.explained_variance) - about_zero) > 0.05
    np.testing.assert_allclose(found.mse, error.mean(), **close)
    np.testing.assert_allclose(found.l0, (acts > 0).sum(1).mean(), **close)
    np.testing.assert_allclose(found.l1, acts.sum(1).mean(), **close)
    norms = np.linalg.norm(out, axis=1), np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(
        found.cossim, ((out * y).sum(1) / norms[0] / norms[1]).mean(), **close
    )
    np.testing.assert_allclose(found.l2_ratio, (norms[0] / norms[1]).mean(), **close)
    density = (acts > 0).mean(0)
    seen = activity(finished.encode(params, x))
    np.testing.assert_allclose(seen.density, density, **close)
    np.testing.assert_allclose(seen.dead, (density == 0).mean(), **close)
    np.testing.assert_allclose(seen.dense, (density > 0.1).mean(), **close)


def test_the_mean_explains_nothing_and_the_truth_everything():
    y = jax.random.normal(jax.random.key(0), (40, 5)) + 2
    finished, perfect = identity(5)
    nothing = perfect | {"W_dec": jnp.zeros((10, 5)), "b_dec": y.mean(0)}
    assert abs(quality(finished, nothing, y, y).explained_variance) < 1e-5
    assert abs(quality(finished, perfect, y, y).explained_variance - 1) < 1e-5


# In the model ------------------------------------------------------------------------------------


def test_a_perfect_dictionary_changes_nothing(model, params, tokens):
    finished, dictionary = identity(8)
    clean = model.forward(params, tokens)[0]
    with_it = edits(finished, dictionary, Sites((POST,), (POST,)), EVERYWHERE)
    np.testing.assert_allclose(model.forward(params, tokens, edits=with_it)[0], clean, atol=1e-5)


def test_it_writes_only_where_it_is_to(model, params, tokens):
    finished, dictionary = identity(8)
    dictionary = dictionary | {"b_dec": jnp.ones(8), "b_enc": jnp.full(16, -9.0)}
    sites, here = Sites((POST,), (POST,)), jnp.array([False, True, False])
    changed = model.forward(params, tokens, edits=edits(finished, dictionary, sites, here))[0]
    clean = model.forward(params, tokens)[0]
    np.testing.assert_array_equal(changed[:, 0], clean[:, 0])
    assert (np.abs(changed[:, 1:] - clean[:, 1:]).max((0, 2)) > 1e-3).all()


def test_a_transcoder_reads_one_site_and_writes_another(model, params, tokens):
    """One that is linear: what it writes is its bias and the linear map of what it reads."""
    random = np.random.default_rng(0)
    linear, bias = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((8, 8), (8,)))
    dictionary = {
        "W_enc": jnp.zeros((8, 4)),
        "b_enc": jnp.full(4, -1.0),
        "W_dec": jnp.ones((4, 8)),
        "b_dec": bias,
        "W_skip": linear,
    }
    sites = Sites((f"blocks.0.{READ}",), (f"blocks.0.{WRITE}",))
    finished = Finished(SkipTranscoder(8, 8, 4), "standard")
    with_it = edits(finished, dictionary, sites, EVERYWHERE)
    logits, found = model.forward(params, tokens, edits=with_it, sites=(*sites.read, *sites.write))
    expected = found[sites.read[0]] @ linear.T + bias[None, None]
    np.testing.assert_allclose(found[sites.write[0]], expected, atol=1e-5)
    assert not np.allclose(logits, model.forward(params, tokens)[0], atol=1e-3)


def test_a_cross_layer_transcoder_writes_later_layers_too(model, params, tokens):
    """A feature of block 0 that is always 1 and writes into block 1 only."""
    reads, writes = (tuple(f"blocks.{b}.{name}" for b in range(2)) for name in (READ, WRITE))
    kind = CrossLayer(16, 16, 2, n_layers=2)
    decoder = jnp.zeros((2, 1, 2, 8)).at[0, 0, 1, 3].set(2.0)
    dictionary = {
        "W_enc": jnp.zeros((2, 8, 1)),
        "b_enc": jnp.array([1.0, 0.0]),
        "W_dec": decoder,
        "b_dec": jnp.zeros(16),
    }
    with_it = edits(Finished(kind, "standard"), dictionary, Sites(reads, writes), EVERYWHERE)
    _, found = model.forward(params, tokens, edits=with_it, sites=writes)
    np.testing.assert_array_equal(found[writes[0]], 0)
    expected = np.zeros((5, 3, 8))
    expected[..., 3] = 2
    np.testing.assert_allclose(found[writes[1]], expected, atol=1e-6)


def test_ablations_write_a_constant(model, params, tokens):
    value = jnp.arange(16.0)
    writes = tuple(f"blocks.{b}.{WRITE}" for b in range(2))
    sites = Sites(writes, writes)
    _, found = model.forward(
        params, tokens, edits=ablations(value, sites, EVERYWHERE), sites=writes
    )
    for number, site in enumerate(writes):
        part = jnp.broadcast_to(value[8 * number : 8 * number + 8], (5, 3, 8))
        np.testing.assert_array_equal(found[site], part)


def test_loss_recovered_runs_from_nothing_to_all():
    spliced, one, five = np.array([1.0, 5.0, 3.0]), np.full(3, 1.0), np.full(3, 5.0)
    np.testing.assert_array_equal(recovered(spliced, one, five), [1, 0, 0.5])
    # Where ablation loses nothing there is nothing to recover.
    assert np.isnan(recovered(spliced, one, one + 0.005)).all()


def test_answers_against_the_clean_model():
    clean = jax.random.normal(jax.random.key(0), (4, 6))
    right = jnp.array([0, 1, 2, 3])
    same = answers(clean, clean, right)
    np.testing.assert_allclose(same.kl, 0, atol=1e-6)
    p, q = (np.asarray(jax.nn.softmax(v), np.float64) for v in (clean, clean * 2))
    other = answers(clean * 2, clean, right)
    np.testing.assert_allclose(other.kl, (p * np.log(p / q)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(other.ce, -np.log(q[np.arange(4), right]), rtol=1e-5)


def test_a_dictionary_can_be_added_to(model, params, tokens):
    """Its edits are edits like others: one of another site goes beside them."""
    finished, dictionary = identity(8)
    other = {"blocks.1.hook_resid_post": Edit(add, jnp.ones(8))}
    both = edits(finished, dictionary, Sites((POST,), (POST,)), EVERYWHERE) | other
    alone = model.forward(params, tokens, edits=other)[0]
    np.testing.assert_allclose(model.forward(params, tokens, edits=both)[0], alone, atol=1e-5)
