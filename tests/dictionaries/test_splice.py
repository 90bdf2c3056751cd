"""A spliced dictionary composes with other edits, and its activations and errors are sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.architectures import Autoencoder, CrossLayer
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.splice import Sites, edits
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import (
    Edit,
    HookContext,
    Spec,
    Transformer,
    add,
    drop,
    mask,
    merge_edits,
    scale,
)
from tests.model.exchange.models import filled

MODEL = Transformer(
    Spec(d_vocab=11, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
)
TOKENS = np.random.default_rng(1).integers(0, 11, (5, 3))
SITE = "blocks.0.hook_mlp_out"
ACTS, ERROR = f"{SITE}.hook_acts", f"{SITE}.hook_error"
SITES = Sites((SITE,), (SITE,))
DICTIONARY = InferenceDictionary(Autoencoder(8, 8, 20), "standard")
WHERE = np.array([True, False, True])


@pytest.fixture(scope="module")
def params():
    return filled(MODEL)


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(2)
    shapes = {"W_enc": (8, 20), "b_enc": (20,), "W_dec": (20, 8), "b_dec": (8,)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def encoded(weights, x):
    return jax.nn.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])


def test_a_dropout_a_splice_and_a_patch_at_one_site_equal_the_same_by_hand(params, weights):
    """They agree under jit, vmap over the arguments, and grad of parameters and arguments."""

    def edited(params, weights, new, key, patched):
        chosen = merge_edits(
            {SITE: Edit(drop, (key, 0.3))},
            edits(DICTIONARY, weights, SITES, jnp.asarray(WHERE)),
            {SITE: Edit(mask, (patched[:, None], new))},
        )
        logits, found = MODEL.forward(params, TOKENS, edits=chosen, sites=(SITE, ACTS))
        return logits, found[SITE], found[ACTS]

    def by_hand(params, weights, new, key, patched):
        _, clean = MODEL.forward(params, TOKENS, sites=("blocks.0.hook_resid_mid", SITE))
        x = clean[SITE]
        x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)
        with jax.numpy_rank_promotion("allow"):
            acts = encoded(weights, x)
            x = jnp.where(WHERE[:, None], acts @ weights["W_dec"] + weights["b_dec"], x)
            x = jnp.where(patched[:, None], new, x)
        network = MODEL.bind(params)
        resid = network.block(1)(clean["blocks.0.hook_resid_mid"] + x, HookContext())
        return network.readout(resid, HookContext()), x, acts

    @jax.jit
    def all_of_both(params, weights, *stacked):
        def one(run):
            def loss(*args):
                out = run(*args)
                return jax.nn.logsumexp(out[0]).sum(), out

            return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)

        axes = (None, None, 0, 0, 0)
        return [jax.vmap(one(run), axes)(params, weights, *stacked) for run in (edited, by_hand)]

    new = np.random.default_rng(3).standard_normal((4, 8), np.float32)
    patched = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    keys = jax.random.split(jax.random.key(0), 4)
    found, expected = jax.device_get(all_of_both(params, weights, new, keys, patched))
    for part in jax.tree.leaves(expected):
        assert np.abs(part).max() > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_its_sites_are_listed_and_checked(params, weights):
    chosen = edits(DICTIONARY, weights, SITES, jnp.asarray(WHERE), keep_error=True)
    table = MODEL.sites_with(chosen)
    assert table[ACTS] == ("batch", "pos", "d_sae") and table[ERROR] == MODEL.sites[SITE]
    without = edits(DICTIONARY, weights, SITES, jnp.asarray(WHERE))
    assert ERROR not in MODEL.sites_with(without)
    with pytest.raises(InputError, match=f"did you mean '{ACTS}'"):
        MODEL.forward(params, TOKENS, edits=without, sites=[f"{SITE}.hook_act"])


def test_activations_and_errors_are_returned_and_edited(params, weights):
    """With the error the model is unchanged; an edited feature moves the site by its row."""
    everywhere = jnp.ones(3, bool)
    step = np.zeros(20, "f4")
    step[7] = 2

    @jax.jit
    def runs(params, weights):
        chosen = edits(DICTIONARY, weights, SITES, everywhere, keep_error=True)
        each = [{}, chosen, {**chosen, ACTS: Edit(add, step)}, {**chosen, ERROR: Edit(scale, 0.0)}]
        sites = [(SITE,), *3 * [(SITE, ACTS, ERROR)]]
        replaced = MODEL.forward(
            params, TOKENS, edits=edits(DICTIONARY, weights, SITES, everywhere), sites=(SITE,)
        )
        return [
            MODEL.forward(params, TOKENS, edits=e, sites=s)
            for e, s in zip(each, sites, strict=True)
        ] + [replaced]

    clean, kept, moved, no_error, replaced = jax.device_get(runs(params, weights))
    value = clean[1][SITE]
    np.testing.assert_allclose(kept[0], clean[0], rtol=1e-3, atol=1e-3)
    with jax.numpy_rank_promotion("allow"):
        acts = np.asarray(encoded(weights, value))
    error = value - acts @ weights["W_dec"] - weights["b_dec"]
    for run in (kept, moved):
        np.testing.assert_allclose(run[1][ERROR], error, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kept[1][ACTS], acts, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moved[1][ACTS], acts + step, rtol=1e-4, atol=1e-4)
    expected = np.broadcast_to(2 * weights["W_dec"][7], value.shape)
    np.testing.assert_allclose(moved[1][SITE] - value, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(no_error[0], replaced[0], rtol=1e-4, atol=1e-4)


def test_equal_dictionaries_do_not_trace_again(params, weights):
    traces = []

    @jax.jit
    def shape(params, chosen):
        traces.append(1)
        return MODEL.forward(params, TOKENS, edits=chosen)[0]

    for width in (20, 20, 16):
        cut = {
            name: leaf[..., :width] if name.endswith("enc") else leaf
            for name, leaf in weights.items()
        }
        cut["W_dec"] = cut["W_dec"][:width]
        dictionary = InferenceDictionary(Autoencoder(8, 8, width), "standard")
        jax.eval_shape(shape, params, edits(dictionary, cut, SITES, jnp.asarray(WHERE)))
    assert len(traces) == 2


def test_an_input_that_comes_later_is_refused(params, weights):
    late = Sites(("blocks.1.hook_mlp_out",), (SITE,))
    chosen = edits(DICTIONARY, weights, late, jnp.asarray(WHERE))
    with pytest.raises(InputError, match=r"blocks\.1\.hook_mlp_out cannot be read here"):
        jax.eval_shape(lambda p: MODEL.forward(p, TOKENS, edits=chosen), params)


def test_a_cross_layer_transcoder_has_its_activations_at_every_site_it_writes(params):
    random = np.random.default_rng(4)
    shapes = {"W_enc": (2, 8, 5), "b_enc": (10,), "W_dec": (2, 5, 2, 8), "b_dec": (16,)}
    weights = {n: random.standard_normal(s, np.float32) for n, s in shapes.items()}
    reads, writes = (
        tuple(f"blocks.{b}.{name}" for b in range(2))
        for name in ("ln2.hook_normalized", "hook_mlp_out")
    )
    acts = tuple(f"{site}.hook_acts" for site in writes)
    chosen = edits(
        InferenceDictionary(CrossLayer(16, 16, 10, n_layers=2), "standard"),
        weights,
        Sites(reads, writes),
        jnp.ones(3, bool),
    )
    off = {site: Edit(mask, (np.arange(10) < 5, 0.0)) for site in acts}  # features of block 0

    @jax.jit
    def runs(params):
        sites = (*reads, *writes, *acts)
        return [
            MODEL.forward(params, TOKENS, edits=e, sites=sites)[1] for e in (chosen, chosen | off)
        ]

    on, off = jax.device_get(runs(params))
    own = [
        np.maximum(on[reads[b]] @ weights["W_enc"][b] + weights["b_enc"][5 * b : 5 * b + 5], 0)
        for b in range(2)
    ]
    np.testing.assert_allclose(on[acts[1]], np.concatenate(own, -1), rtol=1e-4, atol=1e-4)
    expected = sum(own[b] @ weights["W_dec"][b, :, 1] for b in range(2)) + weights["b_dec"][8:]
    np.testing.assert_allclose(on[writes[1]], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(off[writes[0]], np.broadcast_to(weights["b_dec"][:8], (5, 3, 8)))
