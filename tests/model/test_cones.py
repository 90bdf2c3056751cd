"""The suffix-and-cone wiring equals `forward` with the same edit, wherever it starts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, mask, wirings
from implicit_reasoning.model.cones import cache_sites, patched_logits, state

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=3, d_model=16, n_heads=4, d_mlp=32, init_std=0.3)
LOOPED = Spec(
    d_vocab=23, n_ctx=4, n_layers=1, n_loops=3, d_model=16, n_heads=4, d_mlp=32, init_std=0.3
)
UNNORMALIZED = Spec(
    d_vocab=23,
    n_ctx=4,
    n_layers=2,
    d_model=16,
    n_heads=4,
    d_mlp=32,
    normalization="none",
    init_std=0.3,
)
CLEAN = jnp.array([[3, 7, 1, 9], [22, 0, 5, 5]])
CORRUPT = jnp.array([[4, 7, 1, 9], [22, 1, 5, 5]])


@pytest.fixture(params=[SPEC, LOOPED, UNNORMALIZED], ids=["gpt2", "looped", "none"])
def cones(request):
    """A model, its parameters, and a function from tokens to logits and cache."""
    model = Transformer(request.param)
    params = jax.jit(model.init)(jax.random.key(1))
    # Biases that are zero would hide where one is forgotten.
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    sites = cache_sites(model, inside=True)
    return model, params, jax.jit(lambda tokens: model.forward(params, tokens, sites=sites))


def at_cell(model, params, tokens, donor):
    """What the wiring must give: `forward` with one cell of one of the residuals of `donor`."""
    names = [f"blocks.{i}.hook_resid_pre" for i in range(model.spec.depth)]
    names.append(f"blocks.{model.spec.depth - 1}.hook_resid_post")

    def one(layer, pos):
        here = (jnp.arange(tokens.shape[1]) == pos)[None, :, None]
        edits = {
            site: Edit(mask, (here & (layer == n), donor[site])) for n, site in enumerate(names)
        }
        return model.forward(params, tokens, edits=edits)[0]

    return jax.jit(one)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_grid_of_cones_equals_forward_with_the_same_edits(cones, length, trimmed):
    """Every layer and position in one call; the cache whole, or as small as it may be."""
    model, params, run = cones
    tokens, other = CLEAN[:, :length], CORRUPT[:, ::-1][:, :length]
    (_, cache), (_, donor) = run(tokens), run(other)
    if trimmed:
        cache = wirings.forward_at(model, params, tokens, sites=cache_sites(model))[1]
        assert state(model, cache, model.spec.depth).shape[1] == 1
    places = itertools.product(range(model.spec.depth + 1), range(length))
    starts = {(n, pos): state(model, donor, n)[None, :, pos] for n, pos in places}
    found = jax.jit(patched_logits, static_argnums=0)(model, params, cache, starts)
    expected = at_cell(model, params, tokens, donor)
    assert found.keys() == starts.keys()
    for (layer, pos), logits in found.items():
        np.testing.assert_allclose(logits, expected(layer, pos)[None, :, -1], atol=3e-5)


def test_starts_may_be_few_of_several_cells_and_in_any_order(cones):
    model, params, run = cones
    (_, cache), (_, donor) = run(CLEAN), run(CORRUPT[:, ::-1])
    depth = model.spec.depth
    starts = {
        (depth - 1, 2): jnp.stack([state(model, donor, n)[:, 2] for n in (depth - 1, depth)]),
        (0, 1): state(model, donor, 0)[None, :, 1],
        (depth, 3): jnp.stack([state(model, donor, depth)[:, 3]] * 3),
    }
    found = patched_logits(model, params, cache, starts)
    assert [len(found[at]) for at in starts] == [2, 1, 3]
    expected = at_cell(model, params, CLEAN, donor)
    for (layer, pos), logits in found.items():
        np.testing.assert_allclose(logits[0], expected(layer, pos)[:, -1], atol=3e-5)
    np.testing.assert_array_equal(found[depth, 3][0], found[depth, 3][2])
    assert np.abs(found[depth - 1, 2][0] - found[depth - 1, 2][1]).max() > 1e-3


def test_a_cone_from_the_clean_state_is_the_clean_run(cones):
    model, params, run = cones
    logits, cache = run(CLEAN)
    places = itertools.product(range(model.spec.depth + 1), (1, 3))
    starts = {(n, pos): jnp.stack([state(model, cache, n)[:, pos]] * 2) for n, pos in places}
    for found in jax.jit(patched_logits, static_argnums=0)(model, params, cache, starts).values():
        np.testing.assert_allclose(found, jnp.broadcast_to(logits[:, -1], found.shape), atol=3e-5)


@pytest.mark.parametrize("pos", [0, 3])
def test_cones_that_start_inside_a_block_equal_forward(cones, pos):
    model, params, run = cones
    (_, cache), (_, donor) = run(CLEAN), run(CORRUPT[:, ::-1])
    here = (jnp.arange(4) == pos)[None, :, None]

    def both(layer):
        """[cell, batch, vocab]: by the wiring; attention, MLP and the heads by `forward`."""
        within, at = f"blocks.{layer}.", (model, params, cache, layer, pos)
        attn, mlp, z = (f"{within}{n}" for n in ("hook_attn_out", "hook_mlp_out", "attn.hook_z"))
        cells = [
            wirings.after_attn_out(*at, donor[attn][None, :, pos]),
            wirings.after_mlp_out(model, cache, layer, pos, donor[mlp][None, :, pos]),
            wirings.after_heads(*at, donor[z][:, pos]),
        ]
        starts = {(layer + 1, pos): jnp.concatenate(cells)}
        found = patched_logits(model, params, cache, starts)[layer + 1, pos]
        edits = [(site, here, donor[site]) for site in (attn, mlp)]
        result = f"{within}attn.hook_result"
        results = model.forward(params, CORRUPT[:, ::-1], sites=(result,))[1]
        for head in range(4):
            of_head = here[..., None] & (jnp.arange(4) == head)[None, None, :, None]
            # A head's mix and its result are two names of one patch.
            edits.append((z, of_head, donor[z]) if head % 2 else (result, of_head, results[result]))
        wanted = [
            model.forward(params, CLEAN, edits={site: Edit(mask, (where, new))})[0][:, -1]
            for site, where, new in edits
        ]
        return found, jnp.stack(wanted)

    for layer in (0, model.spec.depth - 1):
        found, wanted = jax.jit(both, static_argnums=0)(layer)
        np.testing.assert_allclose(found, wanted, atol=3e-5)


def test_a_cone_refuses_places_that_are_not_there(cones):
    model, params, run = cones
    _, cache = run(CLEAN)
    start = state(model, cache, 0)[None, :, 0]
    with pytest.raises(InputError, match="cannot patch position 4; there are 0 to 3"):
        patched_logits(model, params, cache, {(0, 4): start})
    with pytest.raises(InputError, match="cannot patch layer 9"):
        patched_logits(model, params, cache, {(9, 2): start})
