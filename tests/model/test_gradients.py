"""Gradients at sites agree with differences, and rules change only the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, add
from implicit_reasoning.model.gradients import (
    activation_ratios,
    frozen_norms,
    frozen_patterns,
    gated_blocks,
    integrated_gradients,
    line,
    relevance_rule,
    site_gradients,
)
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled, tokens_for

SPEC = Spec(d_vocab=11, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=6, head_width=3)
LOOPED = Spec(d_vocab=11, n_ctx=3, n_layers=1, d_model=8, n_heads=2, d_mlp=6, n_loops=2)
_IN_BLOCK = (
    *("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "mlp.hook_post", "attn.hook_pattern"),
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_result"),
    *("hook_q_input", "hook_k_input", "hook_v_input"),  # ln1 then runs once per head
)
SITES = tuple(f"blocks.{block}.{name}" for block in (0, 1) for name in _IN_BLOCK)
SITES = (*SITES, "blocks.1.hook_resid_post")
QUERIES = ("blocks.0.attn.hook_q", "blocks.1.attn.hook_k", "blocks.0.hook_q_input")
PATTERN = "blocks.1.attn.hook_pattern"
MODEL, TOKENS = Transformer(SPEC), tokens_for(SPEC, rows=2)
OTHER = (TOKENS + 3) % SPEC.d_vocab


def metric(logits):
    """Return a logit difference of each row, at the last position."""
    return logits[:, -1, 4] - 2 * logits[:, -1, 7]


@functools.cache
def subject(model=MODEL):
    return filled(model), functools.partial(model.forward, filled(model), TOKENS)


@functools.cache
def plain():
    _, run = subject()
    return jax.device_get(jax.jit(lambda: site_gradients(run, metric, SITES))())


@functools.cache
def values_of(model, tokens):
    params = filled(model)
    return jax.device_get(
        jax.jit(lambda: forward_at(model, params, np.array(tokens), sites=model.resid_sites))()
    )


def test_gradients_agree_with_differences():
    _, run = subject()
    found, rng = plain(), np.random.default_rng(0)
    steps = {site: rng.normal(size=x.shape).astype("f4") for site, x in found.values.items()}

    @jax.jit
    def moved(sizes):
        edits = {site: Edit(add, sizes[place] * steps[site]) for place, site in enumerate(SITES)}
        return metric(run(edits=edits)[0])

    epsilon = 3e-3
    for place, site in enumerate(SITES):
        sizes = epsilon * np.eye(len(SITES), dtype="f4")[place]
        slope = (moved(sizes) - moved(-sizes)) / (2 * epsilon)
        own = (found.gradients[site] * steps[site]).reshape(len(TOKENS), -1).sum(1)
        np.testing.assert_allclose(own, slope, rtol=1e-3, atol=1e-4, err_msg=site)
        assert np.abs(slope).max() > 1e-3, site


def test_the_run_is_that_of_the_model():
    _, run = subject()
    logits, values = jax.jit(lambda: run(sites=SITES))()
    np.testing.assert_allclose(plain().metric, metric(logits), atol=1e-6)
    for site in SITES:
        np.testing.assert_allclose(plain().values[site], values[site], atol=1e-6)


def test_with_the_rules_the_run_is_the_same_and_the_model_is_linear():
    """Relevance is conserved: without biases, gradient times value sums to the metric.

    If any of the three rules is missing, the sums differ from the metric.
    """
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if path[-1].key.startswith("b") else x, filled(MODEL)
    )
    run = functools.partial(MODEL.forward, params, TOKENS)
    sites = (*MODEL.resid_sites, *QUERIES, PATTERN)
    rule = relevance_rule(MODEL)
    assert rule.keys() == {*frozen_norms(MODEL), *frozen_patterns(MODEL), *activation_ratios(MODEL)}

    @jax.jit
    def both():
        return site_gradients(run, metric, sites, before=rule), metric(run()[0])

    found, alone = jax.device_get(both())
    np.testing.assert_allclose(found.metric, alone, atol=1e-6)
    for site in MODEL.resid_sites:
        products = (found.gradients[site] * found.values[site]).sum((1, 2))
        np.testing.assert_allclose(products, alone, rtol=1e-4, atol=1e-5)
    for query in QUERIES:
        assert np.abs(plain().gradients[query]).max() > 1e-4
        assert not found.gradients[query].any()
    assert found.gradients[PATTERN].any()  # the gradient of the pattern itself stays


def test_a_frozen_norm_shows_a_change_of_scale_that_the_norm_removes():
    """In patching and with live norms, a longer final state has no effect."""
    _, run = subject()
    end = "blocks.1.hook_resid_post"

    @jax.jit
    def effects():
        found = site_gradients(run, metric, (end,))
        frozen = site_gradients(run, metric, (end,), before=frozen_norms(MODEL))
        added = 0.5 * found.values[end]
        exact = metric(run(edits={end: Edit(add, added)})[0]) - found.metric
        estimates = [(added * x.gradients[end]).sum((1, 2)) for x in (found, frozen)]
        return exact, *estimates

    exact, live, frozen = effects()
    np.testing.assert_allclose(exact, 0, atol=1e-3)
    np.testing.assert_allclose(live, 0, atol=1e-3)
    assert np.abs(frozen).min() > 0.05


def test_a_gate_cuts_what_flows_through_a_block():
    """Without block 1, gradients at the last residual go through the residual stream only."""
    _, run = subject()
    sites = ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z")
    sites += ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
    gates = jnp.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])

    @jax.jit
    def cut(gates):
        def one(row):
            return site_gradients(run, metric, sites, after=gated_blocks(MODEL, row))

        return jax.vmap(one)(gates)

    found = jax.device_get(cut(gates))
    for site in sites:
        own = found.gradients[site][0]
        np.testing.assert_allclose(own, plain().gradients.get(site, own), atol=1e-6)
    np.testing.assert_array_equal(found.metric[0], found.metric[2])
    assert not found.gradients["blocks.0.hook_mlp_out"][1].any()
    for inside in ("blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"):
        assert found.gradients[inside][1].any() and not found.gradients[inside][2].any()
    end = found.gradients["blocks.1.hook_resid_post"][2]
    np.testing.assert_array_equal(found.gradients["blocks.1.hook_resid_pre"][2], end)


def test_integrated_gradients_are_complete():
    """At each layer, the sum over positions is the difference between the two runs."""
    model = Transformer(LOOPED)
    params = filled(model)

    @jax.jit
    def sums(clean, corrupt):
        (start, base), (end, donor) = (
            forward_at(model, params, tokens, sites=model.resid_sites)
            for tokens in (clean, corrupt)
        )
        run = functools.partial(forward_at, model, params, clean)
        by_layer = []
        for site in model.resid_sites:
            path = line({site: (base[site], donor[site])})
            mean = integrated_gradients(run, metric, (site,), path)[site]
            by_layer.append(((donor[site] - base[site]) * mean).sum((1, 2)))
        return jnp.stack(by_layer), metric(end) - metric(start)

    found, difference = sums(TOKENS, OTHER)
    assert np.abs(difference).min() > 0.05
    np.testing.assert_allclose(found, np.broadcast_to(difference, found.shape), rtol=2e-3)


def test_bad_arguments_are_refused():
    _, run = subject()
    with pytest.raises(InputError, match="nodes is 0"):
        integrated_gradients(run, metric, SITES[:1], line({}), nodes=0)
    with pytest.raises(InputError, match=r"no such site: 'blocks\.0"):
        site_gradients(run, metric, ("blocks.0.hook_resid",))
