"""Edits compose in order, add sites, work at per-head inputs, and compile once."""

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
    mask,
    merge_edits,
    scale,
    set_to,
)
from implicit_reasoning.model.edits import edit_sequences
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled

MODEL = Transformer(
    Spec(d_vocab=11, n_ctx=4, n_layers=2, d_model=8, n_heads=2, d_mlp=16, init_std=0.5)
)
TOKENS = np.array([[3, 7, 1, 9], [10, 0, 5, 5]])
RESID = ("batch", "pos", "d_model")


@pytest.fixture(scope="module")
def params():
    return filled(MODEL)


def forward(params, edits=None, sites=()):
    return MODEL.forward(params, TOKENS, edits=edits, sites=sites)


def shapes(params, edits=None, sites=()):
    """Return the shapes that `forward` returns, without compiling or running it."""
    return jax.eval_shape(functools.partial(forward, edits=edits, sites=sites), params)


# Sequences ---------------------------------------------------------------------------------------


def test_edits_of_a_site_are_applied_in_order(params):
    site = "blocks.0.hook_mlp_out"
    double, more = Edit(scale, 2.0), Edit(add, 1.0)

    @jax.jit
    def values(params):
        merged = merge_edits({site: more}, {site: double})[site]
        orders = ((), (double, more), (more, double), double, merged)
        return [forward(params, {site: order}, sites=(site,))[1][site] for order in orders]

    x, first_double, first_more, alone, merged = jax.device_get(values(params))
    np.testing.assert_allclose(first_double, 2 * x + 1, rtol=1e-6)
    np.testing.assert_allclose(first_more, 2 * (x + 1), rtol=1e-6)
    np.testing.assert_allclose(alone, 2 * x, rtol=1e-6)
    np.testing.assert_array_equal(merged, first_more)


def _add_times(value, hooks, args, context):
    return value + args * context[1]


def test_only_other_metadata_is_traced_again(params):
    """A grid of edits is one program, also if the contexts are equal but different objects."""
    site, traces = "blocks.1.hook_resid_pre", []

    @jax.jit
    def edited(params, edits):
        traces.append(1)
        return forward(params, edits)[0]

    def edits(number, times):
        return {site: (Edit(scale, np.float32(number)), Edit(_add_times, number, ("by", times)))}

    grid = np.arange(3, dtype=np.float32)
    one_by_one = np.stack([edited(params, edits(number, 5)) for number in grid])
    assert len(traces) == 1
    mapped = jax.jit(jax.vmap(edited, in_axes=(None, 0)))(params, edits(grid, 5))
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-5)
    traced = len(traces)
    jax.eval_shape(edited, params, edits(grid[0], 5))
    assert len(traces) == traced
    jax.eval_shape(edited, params, edits(grid[0], 6))
    assert len(traces) == traced + 1


def _shrinks(value, hooks, args):
    return value[:1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit(_add_times, 1.0, {"by": 2}), "must be hashable"),
        (lambda: edit_sequences({"a": "scale"}), r"edits\['a'\] contains a str"),
        (
            lambda: edit_sequences({"a": [Edit(scale, 2.0), scale]}),
            "contains a function; pass an Edit",
        ),
        (lambda: {"hook_embed": (Edit(scale, 2.0), Edit(_shrinks))}, "must keep the shape"),
        (lambda: {"hook_embde": ()}, "did you mean 'hook_embed'"),
    ],
)
def test_mistakes_are_named(params, make, message):
    with pytest.raises(InputError, match=message):
        shapes(params, make())


@pytest.mark.parametrize("wrong", [Edit(_shrinks), Edit(add, np.ones(5, "f4"))])
def test_an_edit_of_another_shape_names_itself_its_site_and_the_shape(params, wrong):
    site = "blocks.1.attn.hook_z"
    with pytest.raises((InputError, TypeError)) as caught:
        shapes(params, {site: wrong})
    notes = " ".join(caught.value.__notes__)
    assert f"in the edit {wrong.name} at {site}, where the value has shape (2, 4, 2, 4)" in notes


# Sites that edits add ----------------------------------------------------------------------------

SITE = "blocks.0.hook_mlp_out"
HALF, REST = f"{SITE}.hook_half", f"{SITE}.hook_rest"


def _in_parts(value, hooks, args):
    """Pass the value in two parts through sites of the edit."""
    return hooks("hook_half", value / 2) + hooks("hook_rest", value / 2)


def _passes_another(value, hooks, args):
    return hooks("hook_other", value)


IN_PARTS = Edit(_in_parts, adds=(("hook_half", RESID), ("hook_rest", RESID)))


def test_added_sites_are_listed_before_theirs_and_returned_and_edited(params):
    table = MODEL.sites_with({SITE: IN_PARTS})
    names = list(table)
    assert names[names.index(SITE) - 2 : names.index(SITE)] == [HALF, REST]
    assert table[HALF] == RESID and len(table) == len(MODEL.sites) + 2
    assert MODEL.sites_with(None) == MODEL.sites

    @jax.jit
    def values(params):
        clean = forward(params, sites=(SITE,))
        split = forward(params, {SITE: IN_PARTS}, sites=(SITE, HALF, REST))
        tripled = {SITE: (IN_PARTS, Edit(add, 1.0)), HALF: (Edit(scale, 3.0),)}
        return clean, split, forward(params, tripled, sites=(SITE, HALF))

    clean, split, tripled = jax.device_get(values(params))
    x = clean[1][SITE]
    np.testing.assert_allclose(split[0], clean[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(split[1][HALF] + split[1][REST], x, rtol=1e-6)
    np.testing.assert_allclose(tripled[1][HALF], 1.5 * x, rtol=1e-6)
    np.testing.assert_allclose(tripled[1][SITE], 2 * x + 1, rtol=1e-6)


def test_other_wirings_have_added_sites_too(params):
    """In the trimmed wiring, sites of the last block have only the last position."""
    site = "blocks.1.hook_mlp_out"
    edits = {site: IN_PARTS, f"{site}.hook_half": Edit(set_to, 1.0)}
    sites = (site, f"{site}.hook_half")

    @jax.jit
    def both(params):
        return (
            forward(params, edits, sites),
            forward_at(MODEL, params, TOKENS, edits=edits, sites=sites),
        )

    (logits, full), (trimmed, last) = jax.device_get(both(params))
    np.testing.assert_allclose(trimmed, logits[:, -1:], atol=1e-5)
    for name in sites:
        np.testing.assert_allclose(last[name], full[name][:, -1:], atol=1e-5)


def test_an_added_site_may_have_an_edit_that_adds_sites(params):
    edits = {SITE: IN_PARTS, HALF: IN_PARTS, f"{HALF}.hook_half": Edit(scale, 0.0)}
    names = (SITE, HALF, f"{HALF}.hook_rest")
    _, found = jax.jit(lambda p: forward(p, edits, sites=names))(params)
    np.testing.assert_allclose(found[HALF], found[f"{HALF}.hook_rest"])
    np.testing.assert_allclose(found[SITE], 3 * found[HALF], rtol=1e-6)


@pytest.mark.parametrize(
    ("edits", "sites", "message"),
    [
        ({SITE: IN_PARTS}, [f"{SITE}.hook_hafl"], f"did you mean '{HALF}'"),
        ({SITE: IN_PARTS, f"{SITE}.hook_tser": Edit(scale, 0.0)}, [], f"did you mean '{REST}'"),
        ({}, [HALF], "no such site"),
        ({SITE: (IN_PARTS, IN_PARTS)}, [], "two edits at blocks.0.hook_mlp_out add 'hook_half'"),
        ({SITE: Edit(_passes_another)}, [], "hook_other, which `Edit.adds` does not list"),
        ({SITE: Edit(scale, 1.0, adds=(("hook_half", RESID),))}, [HALF], "does not compute"),
    ],
)
def test_added_sites_are_checked(params, edits, sites, message):
    with pytest.raises(InputError, match=message):
        shapes(params, edits, sites)


# Norms of per-head inputs ------------------------------------------------------------------------

LN1 = "blocks.1.ln1.hook_"
INPUTS = {c: f"blocks.1.hook_{c}_input" for c in "qkv"}
PROJECTED = {c: f"blocks.1.attn.hook_{c}" for c in "qkv"}


def test_a_frozen_scale_serves_every_per_head_input(params):
    """With `ln1.hook_scale` of a clean run, queries, keys and values are affine in their inputs."""
    change = np.random.default_rng(0).standard_normal((2, 2, 4, 2, 8), np.float32)
    sites = ("blocks.1.hook_resid_pre", f"{LN1}scale", *PROJECTED.values())

    @jax.jit
    def run(params, change):
        _, clean = forward(params, sites=sites)
        inputs = {INPUTS["q"]: Edit(add, change[0]), INPUTS["v"]: Edit(add, change[1])}
        frozen = {f"{LN1}scale": Edit(set_to, clean[f"{LN1}scale"])}
        found = [
            forward(params, e, tuple(PROJECTED.values()))[1] for e in (inputs | frozen, inputs)
        ]
        return clean, *found

    clean, frozen, free = jax.device_get(run(params, change))
    block = jax.device_get(params)["blocks"]["1"]
    for c, term in {"q": change[0], "k": 0 * change[0], "v": change[1]}.items():
        x = clean["blocks.1.hook_resid_pre"][:, :, None] + term
        normal = (x - x.mean(-1, keepdims=True)) / clean[f"{LN1}scale"][:, :, None]
        normal = normal * block["ln1"]["w"] + block["ln1"]["b"]
        weight, bias = (block["attn"][f"{kind}_{c.upper()}"] for kind in "Wb")
        expected = np.einsum("bphd,hde->bphe", normal, weight) + bias
        np.testing.assert_allclose(frozen[PROJECTED[c]], expected, rtol=1e-4, atol=1e-4)
        assert (np.abs(free[PROJECTED[c]] - expected).max() > 0.1) == (c in "qv")


@pytest.mark.parametrize("name", ["scale", "normalized"])
def test_a_per_head_input_that_does_not_change_leaves_edits_of_its_norm_as_they_are(params, name):
    """Edits of `ln1` act on each copy as on the single value that all heads read otherwise."""
    edits = {f"{LN1}{name}": (Edit(scale, 2.0), Edit(add, np.arange(4, dtype="f4")[:, None]))}
    nothing = {"blocks.1.hook_attn_in": Edit(add, 0.0)}

    @jax.jit
    def logits(params):
        return [forward(params, e)[0] for e in (edits, edits | nothing, None)]

    plain, per_head, clean = jax.device_get(logits(params))
    np.testing.assert_allclose(per_head, plain, rtol=1e-5, atol=1e-5)
    assert np.abs(plain - clean).max() > 0.1


def test_per_head_inputs_that_are_only_returned_leave_one_norm_which_attention_reads(params):
    sites = (f"{LN1}normalized", *INPUTS.values(), *PROJECTED.values())
    edits = {f"{LN1}scale": Edit(scale, 2.0)}
    _, found = jax.device_get(jax.jit(lambda p: forward(p, edits, sites))(params))
    attn = jax.device_get(params)["blocks"]["1"]["attn"]
    for c, site in PROJECTED.items():
        expected = np.einsum("bpd,hde->bphe", found[f"{LN1}normalized"], attn[f"W_{c.upper()}"])
        np.testing.assert_allclose(found[site], expected + attn[f"b_{c.upper()}"], atol=1e-5)


def _normalized(value, hooks, args):
    return hooks.read(f"{LN1}normalized")


@pytest.mark.parametrize("site", ["blocks.1.hook_attn_in", *INPUTS.values()])
@pytest.mark.parametrize("name", ["scale", "normalized"])
def test_norms_of_edited_per_head_inputs_are_not_returned(params, site, name):
    with pytest.raises(InputError, match=rf"{LN1}{name} cannot be read or returned"):
        shapes(params, {site: Edit(mask, (False, 0.0))}, [f"{LN1}{name}"])
    other = [f"blocks.0.ln1.hook_{name}"]
    assert list(shapes(params, {site: Edit(add, 0.0)}, other)[1]) == other


def test_norms_of_edited_per_head_inputs_are_not_read_nor_added_to(params):
    per_head = {INPUTS["k"]: Edit(scale, 0.5)}
    with pytest.raises(InputError, match="cannot be read or returned"):
        shapes(params, per_head | {"blocks.1.hook_attn_out": Edit(_normalized)})
    shapes(params, {"blocks.1.hook_attn_out": Edit(_normalized)})
    with pytest.raises(InputError, match="adds sites"):
        shapes(params, per_head | {f"{LN1}normalized": IN_PARTS})


def test_what_was_not_passed_cannot_be_read():
    hooks = HookContext()
    hooks.within("blocks.0.")("hook_mlp_out", jnp.ones(2))
    assert hooks.passed("blocks.0.hook_mlp_out") and hooks.read("blocks.0.hook_mlp_out").shape == (
        2,
    )
    with pytest.raises(InputError, match="the forward pass has not reached this site"):
        hooks.read("blocks.0.attn.hook_result")
