"""The terms of attention scores sum to the scores, and change as single sources change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.graphs.attention_scores import (
    score_terms,
    source_queries_and_keys,
    sum_groups,
)
from implicit_reasoning.dictionaries.graphs.attribution import attribute
from implicit_reasoning.dictionaries.replacement import frozen_edits, local_run
from implicit_reasoning.model import Edit
from implicit_reasoning.model.edits import add
from tests.dictionaries.graphs.replacements import drawn
from tests.dictionaries.graphs.test_attribution import N_FEATURES, PLACES, SPEC, TOKENS

LAYER, HEAD, QUERY, KEY = 2, 1, 3, 1
SCORES = f"blocks.{LAYER}.attn.hook_attn_scores"


@pytest.fixture(scope="module")
def made():
    """Return a cross-layer transcoder, which writes to several layers, and all parts."""
    model, params, replacement, own = drawn("cross_layer", SPEC, N_FEATURES)
    few = 2  # most features are missing, so the constant contains them

    @jax.jit
    def run(params, own, tokens):
        arguments = model, params, replacement, own, tokens
        graph = attribute(*arguments, max_features=PLACES)
        parts = source_queries_and_keys(*arguments, graph)
        scores = model.forward(params, tokens, sites=(SCORES,))[1][SCORES]
        small = attribute(*arguments, max_features=few)
        local = local_run(*arguments)
        return graph, parts, scores, source_queries_and_keys(*arguments, small), local

    return (model, params, replacement, own), *run(params, own, TOKENS)


def test_terms_of_all_pairs_sum_to_the_score(made):
    _, graph, parts, scores, small, _ = made
    assert (graph.n_active <= PLACES).all()
    for of in (parts, small):
        terms = score_terms(of, layer=LAYER, head=HEAD, query=QUERY, key=KEY)
        np.testing.assert_allclose(terms.sum((1, 2)), scores[:, HEAD, QUERY, KEY], atol=1e-5)
    assert abs(scores[:, HEAD, QUERY, KEY]).min() > 1e-2


@pytest.mark.slow
def test_the_constant_is_what_no_token_and_no_feature_writes(made):
    """Without a source, the query and key of block 0 are those of biases and positions."""
    (model, params, *_), _, parts, *_ = made
    other = (TOKENS + 3) % SPEC.d_vocab

    @jax.jit
    def first(params, tokens):
        frozen = frozen_edits(model, params, TOKENS)
        site = "blocks.0.attn.hook_k"
        embed = model.forward(params, tokens, sites=("hook_embed",))[1]["hook_embed"]
        without = frozen | {"hook_embed": Edit(add, -embed)}
        return model.forward(params, tokens, edits=without, sites=(site,))[1][site]

    constant = parts.keys[:, -1, 0]
    np.testing.assert_allclose(first(params, TOKENS), constant, atol=1e-5)
    np.testing.assert_allclose(first(params, other), constant, atol=1e-5)
    assert abs(constant).max() > 1e-2


def test_a_source_moves_queries_and_keys_by_its_part(made):
    (model, params, replacement, own), graph, parts, _, _, local = made
    weights = replacement.weights(own)
    site = f"blocks.{LAYER}.attn.hook_q"
    batch = jnp.arange(len(TOKENS))
    frozen = frozen_edits(model, params, TOKENS)

    @jax.jit
    def run(written):
        edits = dict(frozen)
        for layer, write in enumerate(replacement.sites.write):
            edits[write] = Edit(_written, written[:, :, layer])
        return model.forward(params, TOKENS, edits=edits, sites=(site,))[1][site]

    outputs = jnp.einsum("bplf,lfod->bpod", local.acts, weights.decoder) + local.error
    outputs += weights.constant[None, None]
    before, seen = run(outputs), 0
    n_pos = TOKENS.shape[1]
    for place in (0, 5, 10):  # features
        rows = weights.decoder[graph.layer[:, place], graph.feature[:, place]]
        rows = jnp.where(graph.counts, graph.activation, 0)[:, place, None, None] * rows
        change = run(outputs.at[batch, graph.pos[:, place]].add(rows)) - before
        np.testing.assert_allclose(change, parts.queries[:, place, LAYER], atol=1e-5)
        seen += float(abs(change).max()) > 1e-3
    assert seen
    layer, pos = 1, 2  # an error
    change = run(outputs.at[:, pos, layer].add(local.error[:, pos, layer])) - before
    own_part = parts.queries[:, PLACES + layer * n_pos + pos, LAYER]
    np.testing.assert_allclose(change, own_part, atol=1e-5)
    assert abs(change).max() > 1e-3


def _written(value, hooks, written):
    del value, hooks
    return written


def test_terms_of_groups_are_sums_of_terms_of_sources(made):
    _, _, parts, *_ = made
    n_sources = parts.queries.shape[1]
    group = np.random.default_rng(0).integers(0, 3, (len(TOKENS), n_sources))
    groups = (group[:, None] == np.arange(3)[None, :, None]).astype(float)
    place = {"layer": LAYER, "head": HEAD, "query": QUERY, "key": KEY}
    found = score_terms(sum_groups(parts, groups), **place)
    terms = score_terms(parts, **place)
    expected = jnp.einsum("bgs,bst,bht->bgh", groups, terms, groups)
    np.testing.assert_allclose(found, expected, atol=1e-5)
