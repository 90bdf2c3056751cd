"""The key of an edit is read where the store is read, and codes of tails are decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.edit_cases import KINDS
from implicit_reasoning.analysis.editing.knowledge_editing import KnowledgeEditing
from implicit_reasoning.analysis.editing.rank_one import (
    exact_keys,
    memory,
    rank_one_changes,
    second_moment,
)
from implicit_reasoning.analysis.editing.scores import Case
from implicit_reasoning.analysis.editing.traces import decoded_tails, read_strength, tail_codes
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.surgery import LowRankChange
from tests.analysis.planted_subject import dataset, known
from tests.model.exchange.models import filled

LAYER = 0


def traced(name):
    """Return the read strength of edits of the first block, and the tails that are decoded.

    The value of an edit is the difference of the states of its new and its old tail.
    """
    subject, data = known(name).subject, dataset()
    model, params = subject.model, subject.checkpoints[0]
    facts, entities = data.world.facts, data.world.n_entities
    inputs = KnowledgeEditing(edits=20, others=5).examples(model, data).inputs
    case, prompts = inputs["case"], FactPrompts(**inputs["facts"])
    tokens = np.column_stack([facts.head, entities + facts.relation]).astype(np.int32)
    old = case["before"][:, 0]

    @jax.jit
    def compute(params, inputs):
        cases = Case(
            **{field: inputs["case"][field] for field in Case._fields if field != "counted"},
            counted=inputs["case"]["kind"] >= 0,
        )
        own = FactPrompts(**inputs["facts"])
        moment, _ = second_moment(model, params, **inputs["moment"], layer=LAYER)
        keys = exact_keys(model, params, own, LAYER)
        ways = rank_one_changes(keys, memory(moment).solve(keys), jnp.zeros((20, 1)))
        site = f"blocks.{LAYER}.hook_mlp_out"
        outputs = model.forward(params, tokens, sites=(site,))[1][site][:, -1]
        member = jax.nn.one_hot(facts.tail, entities)
        means = member.T @ outputs / jnp.maximum(member.sum(0), 1)[:, None]
        values = jnp.stack([means[own.new] - means[old], jnp.zeros_like(means[old])])
        codes = tail_codes(model, params, jnp.asarray(tokens), jnp.asarray(facts.tail), entities)
        decoded = [
            decoded_tails(
                model, params, own.tokens[:, 0], ways._replace(values=v[:, None]), LAYER, codes
            )
            for v in values
        ]
        return read_strength(model, params, cases, ways, LAYER), decoded

    strength, decoded = jax.tree.map(np.asarray, compute(params, inputs))
    return strength, case["kind"], decoded, np.asarray(prompts.new), old


@pytest.mark.parametrize(
    ("name", "second"),
    [("composer", 0), pytest.param("shared_store", 1, marks=pytest.mark.slow)],
)
def test_the_key_is_read_where_the_store_is_read(name, second):
    strength, kind, decoded, new, old = traced(name)
    read = {one: strength[kind == number] for number, one in enumerate(KINDS)}
    np.testing.assert_allclose(np.concatenate([read["fact"], read["first hop"]]), 1, atol=1e-3)
    assert np.abs(read["second hop"] - second).max() < 0.1
    assert max(np.abs(read[one]).max() for one in ("same entity", "same relation")) < 0.1
    # States have the codes of the prompts, too.
    assert (decoded[0][:, LAYER] == new).mean() > 0.9 < (decoded[1][:, LAYER] == old).mean()
    assert (decoded[0][:, LAYER] == old).mean() < 0.1


def test_a_chain_of_thought_reads_the_key_at_the_bridge_that_the_model_outputs():
    """Without the bridge, the second hop would be measured at a token that no model reads."""
    data = dataset(chain_of_thought=True)
    model = Transformer(Spec(data.n_vocab, n_ctx=4, n_layers=2, d_model=16, n_heads=2, d_mlp=24))
    params = filled(model, 3)
    params["embed"]["W_E"] *= 20  # so that the tokens matter
    params["unembed"]["W_U"] *= 20
    case = KnowledgeEditing(edits=6, others=5).examples(model, data).inputs["case"]
    fields = {field: case[field] for field in Case._fields if field != "counted"}
    cases = Case(**fields, counted=case["kind"] >= 0)
    keys = np.random.default_rng(0).normal(size=(len(case["kind"]), 1, 24)).astype(np.float32)
    change = LowRankChange(keys, np.zeros((len(keys), 1, 16), np.float32))
    site = f"blocks.{LAYER}.mlp.hook_post"

    @jax.jit
    def compute(params, tokens):
        logits, found = model.forward(params, tokens, sites=(site,))
        return logits, found[site]

    tokens = case["tokens"].reshape(-1, 4)
    spoken = tokens.copy()
    spoken[:, 3] = np.asarray(compute(params, tokens)[0])[:, 2].argmax(-1)
    acts = [np.asarray(compute(params, one)[1]) for one in (spoken, tokens)]
    place = np.where(case["place"] < 0, case["position"], case["place"]).reshape(-1)
    by_hand, silent = (
        np.einsum(
            "epm,em->ep",
            one[np.arange(len(place)), place].reshape(*case["kind"].shape, 24),
            keys[:, 0],
        )
        for one in acts
    )
    found = jax.jit(lambda params: read_strength(model, params, cases, change, LAYER))(params)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)
    second = case["kind"] == KINDS.index("second hop")
    assert second.sum() > 5 and np.abs(by_hand - silent)[second].mean() > 0.1
    np.testing.assert_array_equal(by_hand[case["place"] == 1], silent[case["place"] == 1])
