"""Scrubbed runs are those that patches by hand give, and hold true hypotheses to be true."""

import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import measure, queries
from implicit_reasoning.analysis.circuits import causal_scrubbing, hypotheses
from implicit_reasoning.analysis.circuits.causal_scrubbing import CausalScrubbing
from implicit_reasoning.analysis.circuits.hypotheses import Drawn, Hypothesis, Part
from implicit_reasoning.analysis.circuits.scrubbing import replacements, scrubbed_logits
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, HookContext, set_to
from tests.analysis.circuits.tiny import GRAPH, MODEL, SPEC, params
from tests.analysis.planted_subject import dataset, known
from tests.model.exchange.models import tokens_for

PER_BLOCK = SPEC.n_heads + 1


def prompts(seed):
    return (tokens_for(SPEC, rows=2) + 2 * seed + 1) % SPEC.d_vocab


@functools.cache
def scrub():
    """One program for all cuts of a run."""

    def run(params, drawn, cut):
        terms = replacements(MODEL, params, GRAPH, drawn)
        return scrubbed_logits(MODEL, params, GRAPH, drawn, terms, cut)

    return jax.jit(run)


@functools.cache
def forward():
    sites = ("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", *MODEL.resid_sites)

    def run(params, tokens, patch, block):
        edits = {f"blocks.{block}.hook_resid_pre": Edit(set_to, patch)} if block else None
        return MODEL.forward(params, tokens, edits=edits, sites=sites)

    return jax.jit(run, static_argnums=3)


def test_a_cut_replaces_the_state_at_each_position():
    """At the start of block 1, position 1 has the state of its replacement prompt, and so on."""
    drawn = Drawn(prompts(0), prompts(1), (Drawn(prompts(2), pos=1), Drawn(prompts(3), pos=2)))
    of = {seed: forward()(params(), prompts(seed), None, 0)[1] for seed in (1, 2, 3)}
    state = MODEL.resid_sites[1]
    mixed = jnp.stack([of[seed][state][:, pos] for pos, seed in enumerate((1, 2, 3))], axis=1)
    expected = forward()(params(), prompts(0), mixed, 1)[0][:, -1]
    found = scrub()(params(), drawn, 1 + PER_BLOCK)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    clean = forward()(params(), prompts(0), None, 0)[0][:, -1]
    assert np.abs(found - clean).max() > 0.1
    np.testing.assert_allclose(scrub()(params(), drawn, 0), clean, atol=1e-5)


def test_a_part_with_inputs_is_computed_from_their_replacements():
    """The MLP of block 0 reads the embedding of one prompt and the heads of another."""
    embedding = Drawn(prompts(2), senders=("input",), pos=2)
    mlp = Drawn(prompts(3), prompts(1), (embedding,), senders=("m0",), pos=2)
    drawn = Drawn(prompts(0), prompts(4), (mlp,))
    of = {seed: forward()(params(), prompts(seed), None, 0)[1] for seed in (1, 2, 4)}
    start, end = MODEL.resid_sites[0], MODEL.resid_sites[-1]
    read = of[1]["blocks.0.hook_resid_mid"][:, 2] - of[1][start][:, 2] + of[2][start][:, 2]
    patch = {"blocks.0.hook_mlp_in": Edit(_at_last, read)}
    _, values = MODEL.forward(params(), prompts(0), edits=patch, sites=("blocks.0.hook_mlp_out",))
    change = values["blocks.0.hook_mlp_out"][:, 2] - of[4]["blocks.0.hook_mlp_out"][:, 2]
    expected = MODEL.bind(params()).readout(of[4][end][:, 2] + change, HookContext())
    np.testing.assert_allclose(scrub()(params(), drawn, 99), expected, atol=1e-5)


def _at_last(value, hooks, read):
    return value.at[:, -1].set(read)


def asked():
    rows = dataset().probes("test_ii")[:40]
    return queries.queries_of_rows(dataset(), rows)


def test_replacements_have_the_value_of_the_variable_and_another_prefix():
    hypothesis = hypotheses.two_hop(dataset(), GRAPH)
    table = queries.all_queries(dataset())
    trained = {tuple(parts) for parts in table.parts[table.trained].tolist()}
    e2 = hypotheses.variables_of(dataset(), asked())["e2"]
    bridges = {
        tuple(tokens): bridge
        for tokens, bridge in zip(
            queries.prompt_tokens(dataset(), table.parts).tolist(),
            hypotheses.variables_of(dataset(), table)["e2"],
            strict=True,
        )
    }
    n_entities = dataset().world.n_entities
    for another_value in (False, True):
        drawn, known_ = hypotheses.draw(
            dataset(), hypothesis, asked(), np.random.default_rng(1), another_value=another_value
        )
        bridge, relation = (part.tokens for part in drawn.parts)
        assert known_.mean() > 0.5
        for row in np.flatnonzero(known_):
            same = bridges[tuple(bridge[row].tolist())] == e2[row]
            assert same != another_value
            target = drawn.tokens[row]
            assert (bridge[row, :2] != target[:2]).any()
            e1, r1, r2 = int(bridge[row, 0]), int(bridge[row, 1]), int(target[2])
            assert (e1, r1 - n_entities, r2 - n_entities) not in trained
            assert relation[row, 2] == target[2]


def test_a_node_reads_the_earlier_nodes_of_the_hypothesis():
    found = hypotheses.of_nodes(
        GRAPH, {("input", 1): "e1", ("m0", 1): "e2", ("a1.h0", 2): "e2", ("input", 2): "r2"}
    )
    token, bridge = Part(("input",), 1, "e1"), Part(("input",), 2, "r2")
    mlp = Part(("m0",), 1, "e2", Hypothesis((token,)))
    head = Part(("a1.h0",), 2, "e2", Hypothesis((token, mlp, bridge)))
    assert found == Hypothesis((head, bridge))
    with pytest.raises(InputError, match=r"the node \('m7', 1\) does not exist"):
        hypotheses.of_nodes(GRAPH, {("m7", 1): "e2"})
    with pytest.raises(InputError, match="no node of the hypothesis is at the last position"):
        hypotheses.of_nodes(GRAPH, {("m0", 1): "e2"})
    with pytest.raises(InputError, match="no variable 'e9'; it has e1"):
        wrong = Hypothesis((Part((), 1, "e9"),))
        hypotheses.draw(dataset(), wrong, asked(), np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_answers_of_a_composer_survive_where_the_bridge_is():
    """The composer writes e2 at r1 in block 0, and a head of block 2 reads it there."""
    with unittest.mock.patch.object(causal_scrubbing, "_MAX_PROMPTS", 32):
        instrument = CausalScrubbing()
        result = measure(instrument, known("composer").subject, progress=False)
    kept = result.kept.isel(step=0).sel(group=["train_ii", "test_ii"])
    found = result.recovered.isel(step=0).sel(group=["train_ii", "test_ii"])
    right = {"control": "hypothesis", "layer": [1, 2]}
    assert (kept.sel(right) == 1).all() and (found.sel(right) > 0.9).all()
    assert (kept.sel(control="hypothesis", layer=[0, 3]) < 0.4).all()
    assert (kept.sel(control="another value") < 0.4).all()
    assert len(instrument.figures(result)) == 1
