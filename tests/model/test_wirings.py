"""Other wirings, built outside `model/` from its parts: each equals `forward` when nothing changes.

These are the seams that instruments stand on. If one of them needs a change inside `model/`, the
parts were cut in the wrong place.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import (
    Edit,
    Spec,
    Taps,
    Transformer,
    add,
    layers,
    scale,
    set_to,
)
from implicit_reasoning.model.wirings import forward_at

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=3, d_model=16, n_heads=4, d_mlp=32, init_std=0.3)
LOOPED = Spec(
    d_vocab=23, n_ctx=4, n_layers=1, n_loops=3, d_model=16, n_heads=4, d_mlp=32, init_std=0.3
)
CLEAN = jnp.array([[3, 7, 1, 9], [22, 0, 5, 5]])
CORRUPT = jnp.array([[4, 7, 1, 9], [22, 1, 5, 5]])


@pytest.fixture(params=[SPEC, LOOPED], ids=["gpt2", "looped"], scope="module")
def model(request):
    return Transformer(request.param)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


def last_block_at(model, params, tokens, positions):
    """A forward whose last block runs only at `positions`: keys and values everywhere."""
    network, taps = model.bind(params), Taps()
    resid = network.embedding(tokens, taps)
    for layer in range(model.spec.depth - 1):
        resid = network.block(layer)(resid, taps.within(f"blocks.{layer}."))
    block = network.block(model.spec.depth - 1)
    normalized = block.ln1(resid, Taps())

    def here(x):
        return jnp.take_along_axis(x, positions[..., None], axis=1)

    attn_out = block.attn(
        here(normalized), normalized, normalized, Taps(), query_positions=positions
    )
    return network.readout(block.after_attention(here(resid), attn_out, Taps()), Taps())


def suffix(model, params, tokens, first, keys_and_values, resid):
    """A forward of the positions from `first` on, over the clean keys and values before them."""
    network = model.bind(params)
    for layer in range(model.spec.depth):
        block, taps = network.block(layer), Taps()
        normalized = block.ln1(resid, taps)
        attn_out = block.attn(
            normalized, normalized, normalized, taps, prefix=keys_and_values[layer]
        )
        resid = block.after_attention(resid, attn_out, taps)
    return network.readout(resid, Taps())


def path_patch(model, params, tokens, sender, receiver, replacement):
    """Logits when only the *direct* path from one block's output to another's query input carries
    `replacement` instead of what the sender wrote (Goldowsky-Dill et al. 2023): the receiver's
    queries read a residual in which that one term is exchanged, its keys and values do not."""
    network, taps = model.bind(params), Taps()
    resid = network.embedding(tokens, taps)
    for layer in range(model.spec.depth):
        block, inside = network.block(layer), taps.within(f"blocks.{layer}.")
        resid_query = resid
        if layer == receiver:
            written = taps.seen[f"blocks.{sender}.hook_mlp_out"]
            resid_query = resid - written + replacement
        kv, query = block.ln1(resid, inside.within("ln1.")), block.ln1(resid_query, Taps())
        attn_out = block.attn(query, kv, kv, inside.within("attn."))
        resid = block.after_attention(resid, attn_out, inside)
    return network.readout(resid, Taps())


def test_last_block_where_it_is_read_equals_forward(model, params):
    positions = jnp.array([[2, 3], [0, 1]])
    full = jax.jit(lambda p: model.forward(p, CLEAN)[0])(params)
    expected = jnp.take_along_axis(full, positions[..., None], axis=1)
    ours = jax.jit(forward_at, static_argnums=0)(model, params, CLEAN, positions)[0]
    for logits in (jax.jit(last_block_at, static_argnums=0)(model, params, CLEAN, positions), ours):
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_last_block_where_it_is_read_has_forwards_gradient(model, params):
    positions = jnp.array([[2], [3]])

    def trimmed(p):
        return jax.nn.logsumexp(forward_at(model, p, CLEAN, positions)[0])

    def full(p):
        logits = model.forward(p, CLEAN)[0]
        return jax.nn.logsumexp(jnp.take_along_axis(logits, positions[..., None], axis=1))

    a, b = jax.jit(jax.grad(trimmed))(params), jax.jit(jax.grad(full))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), a, b)


def test_a_suffix_over_a_clean_prefix_equals_forward(model, params):
    first = 2
    names = [f"blocks.{i}.attn.hook_{c}" for i in range(model.spec.depth) for c in "kv"]
    sites = (*names, "blocks.0.hook_resid_pre")
    logits, seen = jax.jit(lambda p: model.forward(p, CLEAN, sites=sites))(params)
    clean = [
        tuple(seen[f"blocks.{i}.attn.hook_{c}"][:, :first] for c in "kv")
        for i in range(model.spec.depth)
    ]
    resid = seen["blocks.0.hook_resid_pre"][:, first:]
    end = jax.jit(suffix, static_argnums=(0, 3))(model, params, CLEAN, first, clean, resid)
    np.testing.assert_allclose(end, logits[:, first:], atol=2e-5)


def test_path_patching_nothing_equals_forward(model, params):
    site = "blocks.0.hook_mlp_out"
    logits, seen = jax.jit(lambda p: model.forward(p, CLEAN, sites=(site,)))(params)
    patched = jax.jit(path_patch, static_argnums=(0, 3, 4))
    np.testing.assert_allclose(patched(model, params, CLEAN, 0, 2, seen[site]), logits, atol=2e-5)


def test_path_patching_a_corrupt_output_moves_less_than_patching_the_node(model, params):
    site = "blocks.0.hook_mlp_out"
    clean, _ = model.forward(params, CLEAN)
    corrupt = model.forward(params, CORRUPT, sites=(site,))[1][site]
    path = path_patch(model, params, CLEAN, 0, 2, corrupt)
    node, _ = model.forward(params, CLEAN, edits={site: Edit(set_to, corrupt)})
    assert 0 < np.abs(path - clean).max() < np.abs(node - clean).max()


def test_a_frozen_scale_makes_a_norm_affine(model, params):
    block = model.bind(params).block(0)
    x, y = jax.random.normal(jax.random.key(1), (2, 1, 4, 16))
    taps = Taps(sites=("hook_scale",))
    normalized = block.ln1(x, taps)
    frozen = taps.results()["hook_scale"]
    np.testing.assert_allclose(block.ln1(x, Taps(), scale=frozen), normalized, atol=1e-6)

    def linear(x):
        return block.ln1(x, Taps(), scale=frozen) - block.ln1(0 * x, Taps(), scale=frozen)

    np.testing.assert_allclose(linear(x + 2 * y), linear(x) + 2 * linear(y), atol=1e-5)
    assert np.abs(block.ln1(3 * x, Taps()) - 3 * block.ln1(x, Taps())).max() > 0.1


def test_knocking_out_attention_before_the_softmax_renormalises(model, params):
    """Minus infinity at a score is the peers' attention knockout; a pattern still sums to 1."""
    names = ("blocks.1.attn.hook_pattern",)
    blocked = jnp.zeros((4, 4)).at[3, 0].set(-jnp.inf)
    _, seen = model.forward(
        params, CLEAN, sites=names, edits={"blocks.1.attn.hook_attn_scores": Edit(add, blocked)}
    )
    pattern = seen[names[0]]
    assert (pattern[:, :, 3, 0] == 0).all()
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)


def test_the_trimmed_wiring_refuses_edits_that_it_would_not_make(model, params):
    positions = jnp.array([[2], [3]])
    for site in ("blocks.2.hook_q_input", "blocks.0.hook_atn_out"):
        edits = {site: Edit(scale, jnp.float32(0))}
        with pytest.raises(InputError, match=f"does not pass {site}"):
            forward_at(model, params, CLEAN, positions, edits=edits)
    final = {"ln_final.hook_scale": Edit(scale, jnp.float32(2))}
    halved, _ = forward_at(model, params, CLEAN, positions, edits=final)
    whole, _ = forward_at(model, params, CLEAN, positions)
    np.testing.assert_allclose(2 * halved, whole, atol=2e-5)


def test_the_trimmed_wiring_has_the_sites_of_forward(model, params):
    """By default at the last position; of the last block, what follows the keys only there."""
    before, after = f"blocks.{2}.attn.hook_k", f"blocks.{2}.hook_mlp_out"
    sites = ("blocks.1.hook_resid_post", before, after)
    full, wanted = jax.jit(lambda p: model.forward(p, CLEAN, sites=sites))(params)
    logits, seen = jax.jit(lambda p: forward_at(model, p, CLEAN, sites=sites))(params)
    np.testing.assert_allclose(logits, full[:, -1:], atol=2e-5)
    np.testing.assert_allclose(seen[after], wanted[after][:, -1:], atol=2e-5)
    for site in (sites[0], before):
        np.testing.assert_allclose(seen[site], wanted[site], atol=2e-5)


def test_edits_work_in_other_wirings_too(model, params):
    positions = jnp.array([[2], [3]])
    edits = {"blocks.1.hook_attn_out": Edit(scale, jnp.float32(0))}
    full, _ = model.forward(params, CLEAN, edits=edits)
    trimmed, _ = forward_at(model, params, CLEAN, positions, edits=edits)
    expected = jnp.take_along_axis(full, positions[..., None], axis=1)
    np.testing.assert_allclose(trimmed, expected, atol=2e-5)


def test_attention_written_out_equals_its_products(model, params, monkeypatch):
    """Few positions take another path than many; both are the same sums."""
    short, _ = model.forward(params, CLEAN)
    monkeypatch.setattr(layers, "_FEW_PAIRS", 0)
    products, _ = model.forward(params, CLEAN)
    np.testing.assert_allclose(short, products, atol=2e-6)
    assert (short != products).any()  # the other path was taken indeed
