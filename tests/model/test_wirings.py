"""Wirings that are built outside `model/` from its parts equal `forward` if nothing is changed.

Instruments are built from these parts. If one of these wirings needs a change inside `model/`, the
parts are divided wrongly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import (
    Edit,
    HookContext,
    Spec,
    Transformer,
    add,
    scale,
    set_to,
)
from implicit_reasoning.model.blocks import attention
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=4, d_mlp=32, init_std=0.3)
LOOPED = dataclasses.replace(SPEC, n_layers=1, n_loops=2)
CLEAN = np.array([[3, 7, 1, 9], [22, 0, 5, 5]])
CORRUPT = np.array([[4, 7, 1, 9], [22, 1, 5, 5]])
# These are all sites that these tests read of a clean run, so that one program of `forward` is
# enough.
SITES = (
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_mlp_out",
    *(f"blocks.{layer}.attn.hook_{c}" for layer in range(2) for c in "kv"),
)


# Looped blocks are tested only with `slow`, because test_cones.py covers them by default.
@pytest.fixture(
    params=[
        pytest.param(SPEC, id="gpt2"),
        pytest.param(LOOPED, id="looped", marks=pytest.mark.slow),
    ],
    scope="module",
)
def model(request):
    return Transformer(request.param)


@pytest.fixture(scope="module")
def params(model):
    return filled(model)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens):
    return model.forward(params, tokens, sites=SITES)


@pytest.fixture(scope="module")
def clean(model, params):
    """Return logits and sites, in numpy."""
    return jax.device_get(run(model, params, CLEAN))


@functools.partial(jax.jit, static_argnums=0)
def edited(model, params, edits):
    return model.forward(params, CLEAN, edits=edits)[0]


@functools.partial(jax.jit, static_argnums=0)
def trimmed(model, params, positions, edits):
    return forward_at(model, params, CLEAN, positions, edits=edits)[0]


def at(logits, positions):
    """Return the logits at the positions of each row."""
    return np.take_along_axis(np.asarray(logits), positions[..., None], axis=1)


def last_block_at(model, params, tokens, positions):
    """A forward pass whose last block runs only at `positions`, with keys and values everywhere."""
    network, hooks = model.bind(params), HookContext()
    resid = network.embedding(tokens, hooks)
    for layer in range(model.spec.depth - 1):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    block = network.block(model.spec.depth - 1)
    normalized = block.ln1(resid, HookContext())

    def here(x):
        return jnp.take_along_axis(x, positions[..., None], axis=1)

    attn_out = block.attn(
        here(normalized), normalized, normalized, HookContext(), query_positions=positions
    )
    resid = block.after_attention(here(resid), attn_out, HookContext())
    return network.readout(resid, HookContext())


def path_patch(model, params, tokens, sender, receiver, replacement):
    """Return logits when one path carries `replacement` (Goldowsky-Dill et al. 2023).

    The path is the *direct* one from one block's output to another block's query input. The
    receiver's queries read a residual in which this one term is exchanged. Its keys and values do
    not.
    """
    network, hooks = model.bind(params), HookContext()
    resid = network.embedding(tokens, hooks)
    for layer in range(model.spec.depth):
        block, inside = network.block(layer), hooks.within(f"blocks.{layer}.")
        resid_query = resid
        if layer == receiver:
            written = hooks.read(f"blocks.{sender}.hook_mlp_out")
            resid_query = resid - written + replacement
        kv, query = block.ln1(resid, inside.within("ln1.")), block.ln1(resid_query, HookContext())
        attn_out = block.attn(query, kv, kv, inside.within("attn."))
        resid = block.after_attention(resid, attn_out, inside)
    return network.readout(resid, HookContext())


def test_last_block_where_it_is_read_equals_forward(model, params, clean):
    positions = np.array([[2, 3], [0, 1]])
    by_hand = jax.jit(last_block_at, static_argnums=0)(model, params, CLEAN, positions)
    for logits in (by_hand, trimmed(model, params, positions, {})):
        np.testing.assert_allclose(logits, at(clean[0], positions), atol=2e-5)


def test_last_block_where_it_is_read_has_forwards_gradient(model, params):
    positions = jnp.array([[2], [3]])

    def trimmed(p):
        return jax.nn.logsumexp(forward_at(model, p, CLEAN, positions)[0])

    def full(p):
        logits = model.forward(p, CLEAN)[0]
        return jax.nn.logsumexp(jnp.take_along_axis(logits, positions[..., None], axis=1))

    a, b = jax.jit(lambda p: (jax.grad(trimmed)(p), jax.grad(full)(p)))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), a, b)


def test_a_path_that_is_patched_by_nothing_equals_forward_and_by_another_run_moves_little(
    model, params, clean
):
    """It moves less than patching the node, as only the receiver's queries read the change."""
    site = "blocks.0.hook_mlp_out"
    logits, seen = clean
    patched = jax.jit(path_patch, static_argnums=(0, 3, 4))
    nothing = patched(model, params, CLEAN, 0, 1, seen[site])
    np.testing.assert_allclose(nothing, logits, atol=2e-5)
    corrupt = run(model, params, CORRUPT)[1][site]
    path = np.asarray(patched(model, params, CLEAN, 0, 1, corrupt))
    node = edited(model, params, {site: Edit(set_to, corrupt)})
    assert 0 < np.abs(path - logits).max() < np.abs(node - logits).max()


def test_a_frozen_scale_makes_a_norm_affine(model, params):
    x, y = np.random.default_rng(1).standard_normal((2, 1, 4, 16), np.float32)

    @jax.jit
    def norms(params, x, y):
        norm, hooks = model.bind(params).block(0).ln1, HookContext(sites=("hook_scale",))
        normalized = norm(x, hooks)
        frozen = hooks.results()["hook_scale"]
        by_scale = [norm(of, HookContext(), scale=frozen) for of in (x, x + 2 * y, y, 0 * x)]
        return normalized, by_scale, norm(3 * x, HookContext())

    normalized, (same, both, other, base), larger = jax.device_get(norms(params, x, y))
    np.testing.assert_allclose(same, normalized, atol=1e-6)
    np.testing.assert_allclose(both - base, (same - base) + 2 * (other - base), atol=1e-5)
    assert np.abs(larger - 3 * normalized).max() > 0.1


def test_knocking_out_attention_before_the_softmax_renormalises(model, params):
    """Adding minus infinity to a score is the usual knockout; a pattern still sums to 1."""
    site = "blocks.1.attn.hook_pattern"
    blocked = np.zeros((4, 4), "f4")
    blocked[3, 0] = -np.inf
    edits = {"blocks.1.attn.hook_attn_scores": Edit(add, blocked)}
    _, seen = jax.jit(lambda p: model.forward(p, CLEAN, sites=(site,), edits=edits))(params)
    pattern = np.asarray(seen[site])
    assert (pattern[:, :, 3, 0] == 0).all() and (pattern[:, :, 3, 1:] > 0).all()
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)


def test_the_trimmed_wiring_refuses_a_site_that_does_not_exist(model, params):
    message = "did you mean 'blocks.0.hook_attn_out'"
    with pytest.raises(InputError, match=message):
        edits = {"blocks.0.hook_atn_out": Edit(scale, np.float32(0))}
        trimmed(model, params, np.array([[2], [3]]), edits)


def test_the_trimmed_wiring_edits_inputs_of_single_heads(model, params, clean):
    """Separate inputs of the heads of the last block are selected at the positions, too."""
    positions = np.array([[2], [3]])
    terms = np.random.default_rng(2).normal(size=(4, 16)).astype(np.float32)
    edits = {f"blocks.1.hook_{x}_input": Edit(add, terms) for x in "qv"}
    short = trimmed(model, params, positions, edits)
    np.testing.assert_allclose(short, at(edited(model, params, edits), positions), atol=2e-5)
    assert np.abs(short - at(clean[0], positions)).max() > 1e-3


def test_edits_work_in_other_wirings_too(model, params, clean):
    """Edits act in the middle and after the last block; a factor of 1 keeps one program."""
    positions = np.array([[2], [3]])

    def scales(attn_out, final):
        by = {"blocks.1.hook_attn_out": attn_out, "ln_final.hook_scale": final}
        return {site: Edit(scale, np.float32(factor)) for site, factor in by.items()}

    for of in ((0, 1), (1, 2), (0, 2)):
        full = edited(model, params, scales(*of))
        short = trimmed(model, params, positions, scales(*of))
        np.testing.assert_allclose(short, at(full, positions), atol=2e-5)
        assert np.abs(short - at(clean[0], positions)).max() > 1e-3


def test_the_trimmed_wiring_has_the_sites_of_forward(model, params, clean):
    """By default the last block computes only the last position, except for keys and values."""
    full, wanted = clean
    logits, seen = jax.jit(lambda p: forward_at(model, p, CLEAN, sites=SITES))(params)
    np.testing.assert_allclose(logits, full[:, -1:], atol=2e-5)
    for site in SITES:
        here = slice(-1, None) if site == "blocks.1.hook_mlp_out" else slice(None)
        np.testing.assert_allclose(seen[site], wanted[site][:, here], atol=2e-5)


def test_attention_written_out_equals_its_products(model, params, monkeypatch):
    """Few positions are computed by another path than many, with the same sums."""
    short = jax.jit(lambda p: model.forward(p, CLEAN)[0])(params)
    monkeypatch.setattr(attention, "_FEW_PAIRS", 0)
    products = jax.jit(lambda p: model.forward(p, CLEAN)[0])(params)
    np.testing.assert_allclose(short, products, atol=2e-6)
    assert (np.asarray(short) != np.asarray(products)).any()  # the other path was taken
