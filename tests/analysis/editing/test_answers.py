"""Answers with a chain of thought are those of a model that reads the bridge that it has output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable
from implicit_reasoning.analysis.editing.edited_models import answer_logits, has_thought, share_of
from implicit_reasoning.analysis.editing.knowledge_editing import ORACLE, KnowledgeEditing
from implicit_reasoning.model import Edit
from tests.analysis.editing.test_rank_one import MODEL
from tests.analysis.planted_subject import dataset
from tests.model.exchange.models import filled

TOKENS = np.random.default_rng(0).integers(1, 23, (12, 4)).astype(np.int32)
TOKENS[:, 3] = 0
POSITION = np.where(np.arange(12) % 3, 3, 1).astype(np.int32)


def shifted(value, hooks, shift):
    return value + shift


def test_the_model_reads_what_it_said():
    params = filled(MODEL, 3)
    params["unembed"]["W_U"] *= 20
    params["embed"]["W_E"] *= 20
    edits = {"blocks.1.hook_mlp_out": Edit(shifted, 2.0)}

    @jax.jit
    def compute(params, tokens):
        position = jnp.asarray(POSITION)
        either = [
            answer_logits(MODEL, params, tokens, position, edits, whole=whole)
            for whole in (False, True)
        ]
        return either, MODEL.forward(params, tokens, edits=edits)[0]

    first = np.asarray(compute(params, TOKENS)[1])
    spoken = TOKENS.copy()
    spoken[:, 3] = first[:, 2].argmax(-1)
    assert len(np.unique(spoken[:, 3])) > 3
    either, _ = compute(params, TOKENS)
    by_hand = np.asarray(compute(params, spoken)[1])[np.arange(12), POSITION]
    for found in either:
        np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)
    # The bridge matters for chains only.
    other = np.asarray(first)[np.arange(12), POSITION]
    differs = np.abs(other - by_hand).max(-1) > 0.1
    assert not differs[POSITION == 1].any() and differs[POSITION == 3].any()


def test_prompts_without_a_chain_of_thought_have_no_place_for_it():
    assert has_thought(TOKENS) and not has_thought(TOKENS[:, :3])


def test_fine_tuning_with_chains_is_refused_with_a_chain_of_thought():
    with pytest.raises(NotApplicable, match="answers of one entity"):
        KnowledgeEditing((ORACLE,)).examples(MODEL, dataset(chain_of_thought=True))


def test_a_change_of_an_empty_mlp_has_no_share():
    """Block 0 of a planted memoriser has no output, and means of its edits must be finite."""
    sizes, norms = jnp.array([0.5, 0.5]), jnp.array([2.0, 0.0])
    np.testing.assert_array_equal(jax.vmap(share_of)(sizes, norms), [0.25, 0])
