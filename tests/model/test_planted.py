"""Planted models give the answers that they know, and their claims hold when probed and patched."""

import dataclasses

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.exchange import load_weights, save_weights
from implicit_reasoning.model.planted import (
    MECHANISMS,
    cluster_composer,
    composer,
    hidden_composer,
    idle_copy,
    memoriser,
    parallel,
    prefix_memoriser,
    shared_store,
    superposed_composer,
)
from implicit_reasoning.model.planted.draft import Draft
from implicit_reasoning.model.planted.weights import Form, build
from implicit_reasoning.model.units import Fact, State
from tests import shared
from tests.model.planted_audit import Audit, knowledge, prompts, run

AUDITED = "composer"  # by default
# By default: every way to answer, and `gpt2_composer`, which has all forms at once. Every form has
# programs of its own.
ASKED = ("composer", "memoriser", "prefix_memoriser", "shared_store", "gpt2_composer")
MODELS = [(name, seed) for name in MECHANISMS for seed in (None, 3)]


@pytest.fixture(scope="module")
def known():
    """Default tests have few chains, because an audit takes some hundred passes over all chains."""
    return knowledge() if shared.THOROUGH else knowledge(12, 4, 3)


def answers(planted, tokens):
    """Return answers by the program of the audit, compiled once per shape of model and prompts."""
    return run(planted, tokens)[0][:, -1].argmax(-1)


# A seed rotates the residual and moves heads, which needs no new program. Another world needs one.
@pytest.mark.parametrize(
    "name, seed, world",
    [
        *(
            pytest.param(
                name, seed, {}, marks=pytest.mark.slow if seed or name not in ASKED else ()
            )
            for name, seed in MODELS
        ),
        *(
            pytest.param(name, seed, world, marks=pytest.mark.slow)
            for name, seed in MODELS
            for world in (dict(seed=1), dict(n_entities=9, n_relations=3, out_degree=2))
        ),
    ],
)
def test_every_fact_and_chain_is_answered(name, seed, world):
    known = knowledge(**world)
    planted = MECHANISMS[name](known, seed)
    head, relation, tail = known.facts
    # A fact is a prompt of two tokens, so the third token does not influence the second.
    facts = np.stack([head, known.n_entities + relation, relation * 0], axis=1)
    asked = prompts(known, known.chains)
    padded = np.resize(facts, asked.shape) if len(facts) < len(asked) else facts
    logits = run(planted, padded)[0]
    np.testing.assert_array_equal(logits[: len(facts), 1].argmax(-1), tail)
    np.testing.assert_array_equal(answers(planted, asked), known.chains[:, -1])


@pytest.mark.parametrize(
    "name, seed",
    [
        pytest.param(name, seed, marks=pytest.mark.slow if seed or name != AUDITED else ())
        for name, seed in MODELS
    ],
)
def test_what_is_claimed_of_a_place_is_what_states_and_interventions_show(known, name, seed):
    if name in ("superposed_composer", "gpt2_composer"):
        known = knowledge()  # probes of superposed codes need more prefixes
    planted = MECHANISMS[name](known, seed)
    assert Audit(planted, known).mismatches() == []


def test_the_audit_sees_claims_that_are_of_another_model(known):
    """The audit finds wrong claims; otherwise the test above could pass without power."""
    one, other = composer(known), memoriser(known)
    lie = dataclasses.replace(one, true=other.true, open=other.open)
    kinds = {kind for kind, *_ in Audit(lie, known).mismatches()}
    assert kinds == {"decodable", "carried", "used", "unused"}


@pytest.mark.slow
def test_who_composes_knows_chains_that_it_was_not_given_and_who_looks_up_does_not():
    some, every = knowledge(share=0.5), knowledge()
    given = {tuple(chain) for chain in some.chains}
    new = np.array([chain for chain in every.chains if tuple(chain) not in given])
    every_case = [(composer, 1), (memoriser, 0), (parallel, 1), (prefix_memoriser, 0)]
    for make, right in every_case if shared.THOROUGH else every_case[:2]:
        # If nothing was looked up, the logits of entities are equal and argmax returns the first.
        asked = new[new[:, -1] != 0]
        assert (answers(make(some), prompts(some, asked)) == asked[:, -1]).mean() == right


def layers(planted, kind, pos):
    """Return the layers where a kind of claim is true of e2 at a position."""
    claimed = [unit for which, name, unit in planted.true if (which, name) == (kind, "e2")]
    return {unit.layer for unit in claimed if isinstance(unit, State) and unit.pos == pos}


def removed(planted, known, layer, pos):
    """Return whether answers survive removing the unembedded code of e2 at one place."""
    audit = Audit(planted, known)
    code = audit.bridge_codes()[audit.values["e2"]]
    return audit.patched(layer, pos, audit.state(layer, pos) - code) == audit.values["answer"]


@pytest.mark.slow
def test_without_its_bridge_only_the_composer_fails(known):
    assert removed(composer(known), known, 1, "r1").mean() < 0.2
    assert removed(memoriser(known), known, 4, "r1").all()
    assert removed(prefix_memoriser(known), known, 1, "r1").all()
    # Either route is sufficient, so removal shows nothing, but replacement does (the audit above).
    assert removed(parallel(known), known, 1, "r1").all()


@pytest.mark.slow
def test_the_decoy_beside_the_prefix_has_its_site_and_its_norm(known):
    planted = prefix_memoriser(known, seed=5)
    layer = min(layers(planted, "decodable", "r1"))
    audit = Audit(planted, known)
    added = audit.state(layer, "r1") - audit.state(layer - 1, "r1")
    directions = audit.bridge_codes()
    bridge = directions[audit.values["e2"]]
    # The code of bridges has norm 1, like every other code, and depends on e2 only. The directions
    # of codes are orthonormal. The block may also have copied e1.
    written = added @ directions.T @ directions
    np.testing.assert_allclose(np.linalg.norm(written, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose((written * bridge).sum(-1), 1, atol=1e-5)
    rest = np.square(added - bridge).sum(-1)
    np.testing.assert_allclose(rest, np.round(rest[0]), atol=1e-5)
    assert round(float(rest[0])) in (1, 2)


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_the_idle_copy_and_the_used_bridge_are_in_the_same_layer(seed):
    planted = idle_copy(knowledge(n_entities=6, n_relations=3, out_degree=2), seed)

    assert layers(planted, "unused", "r2") & layers(planted, "used", "r1")
    assert not layers(planted, "used", "r2")


@pytest.mark.slow
def test_chains_that_are_not_known_tell_the_prefix_from_the_bridge():
    """The answer follows a moved state if the composed chain is known, and only then."""
    known = knowledge(share=0.5)
    planted = prefix_memoriser(known)
    audit = Audit(planted, known)
    partner = np.random.default_rng(1).permutation(len(known.chains))
    patched = audit.patched(1, "r1", audit.state(1, "r1")[partner])
    composed = audit.tail[audit.values["e2"][partner], audit.values["r2"]]
    looked_up = {tuple(chain[[0, 1, 3]]) for chain in known.chains}
    prefix = known.chains[partner, :2]
    there = np.array(
        [(*p, r2) in looked_up for p, r2 in zip(prefix, audit.values["r2"], strict=True)]
    )
    exists = composed > 0  # entity 0 is the default answer
    assert (patched == composed)[there & exists].all() and (there & exists).sum() > 10
    assert not (patched == composed)[~there & exists].any() and (~there & exists).sum() > 10
    claim = ("carried", "e2", State(1, "r1"))
    assert claim not in planted.true | planted.open
    assert claim in prefix_memoriser(knowledge()).open


def test_a_lens_sees_the_hidden_bridge_in_the_last_layer_only(known):
    audit = Audit(hidden_composer(known), known)
    codes, e2 = audit.bridge_codes(), audit.values["e2"]
    seen = [((audit.state(layer, "r1") @ codes.T).argmax(-1) == e2).mean() for layer in range(5)]
    assert seen[4] == 1 and max(seen[:4]) < 0.2


def test_a_seed_moves_a_mechanism_and_is_repeatable(known):
    one, same, other = idle_copy(known, 7), idle_copy(known, 7), idle_copy(known, 8)
    assert one.name == "idle_copy_7" and one.model == other.model
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    assert one.true == same.true
    assert len({composer(known, seed).true for seed in range(10)}) > 3
    assert not np.allclose(one.params["embed"]["W_E"], other.params["embed"]["W_E"])


def test_they_go_through_files_like_any_model(known, tmp_path):
    planted = hidden_composer(known, 2)
    save_weights(tmp_path / "planted.npz", planted.model, planted.params)
    model, params = load_weights(tmp_path / "planted.npz")
    assert (model.spec.normalization, model.spec.act_fn) == ("none", "relu")
    read = dataclasses.replace(planted, model=model, params=params)
    asked = prompts(known, known.chains)
    np.testing.assert_array_equal(answers(read, asked), known.chains[:, -1])


def edited(planted, known, fact, tail):
    """Return the model after an edit of the neurons that store a fact: it leads to another entity.

    In a looped model, the first loop and the second loop have the same weights.
    """
    params = jax.tree.map(lambda leaf: np.array(leaf), planted.params)
    old = known.facts[2][fact]
    codes = np.asarray(params["unembed"]["W_U"]).T[: known.n_entities]
    codes = codes / np.square(codes).sum(-1, keepdims=True) * 10
    first = Fact(*known.facts[:2, fact].tolist())
    places = {neuron for neuron, what in planted.stores.items() if what == first}
    hop = min(places, key=lambda neuron: neuron.layer)  # the first hop
    write = params["blocks"][str(hop.layer)]["mlp"]["W_out"]
    write[hop.index] += 2 * (codes[tail] - codes[old])
    return dataclasses.replace(planted, params=params)


def test_an_edit_of_a_shared_store_changes_both_hops_alike(known):
    fact, (head, _, tail) = 0, known.facts
    other = next(t for t in range(known.n_entities) if t not in (tail[0], 0))
    e1, r1, e2, r2, _ = known.chains.T
    as_first = (e1 == head[fact]) & (r1 == known.facts[1, fact])
    as_second = (e2 == head[fact]) & (r2 == known.facts[1, fact]) & ~as_first
    table = np.full((known.n_entities, known.n_relations), -1)
    table[head, known.facts[1]] = tail
    follow = table[other][r2]
    asked = as_first & (follow >= 0)
    assert asked.any() and as_second.any()
    tokens = prompts(known, known.chains)
    for make, second in ((shared_store, True), (composer, False)):
        planted = make(known)
        before, after = (answers(p, tokens) for p in (planted, edited(planted, known, fact, other)))
        assert (after[asked] == follow[asked]).all()
        # The second hop of a composer has neurons of its own, which were not edited.
        wanted = other if second else before[as_second]
        assert (after[as_second] == wanted).all()
        assert (after == before)[~as_first & ~as_second].all()


@pytest.mark.slow
def test_a_code_from_chains_is_unknown_where_chains_do_not_tell(known):
    """A prefix on its own answers its own chains only; one with a shared chain answers others."""
    n = known.n_relations
    prefix, cell = (
        known.chains[:, 0] * n + known.chains[:, 1],
        known.chains[:, 2] * n + known.chains[:, 3],
    )
    chosen = np.random.default_rng(2).random(len(prefix)) < 0.4
    taught = known._replace(chains=known.chains[chosen])
    right = answers(cluster_composer(taught), prompts(known, known.chains)) == known.chains[:, -1]
    counts = np.bincount(cell[chosen], minlength=cell.max() + 1)
    tells = np.isin(prefix, prefix[chosen & (counts[cell] > 1)])
    # A bridge knows the last relations of all its prefixes with shared chains.
    known_cell = np.isin(cell, cell[chosen & tells])
    assert right[chosen].all()
    held_out = ~chosen & (known.chains[:, -1] != 0)  # entity 0 is the answer if nothing is found
    assert right[held_out & tells & known_cell].all() and (held_out & tells & known_cell).sum() > 10
    assert not right[held_out & ~(tells & known_cell)].any() and (held_out & ~tells).sum() > 10


def test_superposed_codes_are_more_than_dimensions_and_not_orthogonal(known):
    packed = superposed_composer(known, 1)
    assert packed.model.spec.d_model < 4 * known.n_entities + known.n_relations + 3
    entities = np.asarray(packed.params["embed"]["W_E"])[: known.n_entities]
    products = np.abs(entities @ entities.T - np.eye(known.n_entities))
    assert 0.1 < products.max() < 0.4


def test_layer_norm_needs_an_example_of_a_chain(known):
    draft = Draft(4, 2, depth=1)
    draft.move(0, "e1", "r1", draft.entity, draft.output, "e1")
    draft.table(0, "r1", [draft.output], [draft.output])
    with pytest.raises(InputError, match="layer norm needs an example of a chain"):
        build(draft, None, Form(normalization="LN"))


def test_a_block_has_so_many_heads_only():
    draft = Draft(4, 2, depth=1)
    for _ in range(4):
        draft.move(0, "e1", "r1", draft.entity, draft.output, "e1")
    draft.table(0, "r1", [draft.output], [draft.output])
    with pytest.raises(InputError, match="block 0 has 4 moves, but only 3 heads"):
        build(draft, None)
