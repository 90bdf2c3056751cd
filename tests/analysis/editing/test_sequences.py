"""Edits one after another are those of a model that has the earlier edits in its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.rank_one import (
    exact_keys,
    memory,
    rank_one_changes,
    search_values,
    second_moment,
)
from implicit_reasoning.analysis.editing.sequences import edit_back, edit_in_sequence, first_edits
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.model.surgery import write_change
from tests.analysis.editing.test_rank_one import LAYER, MODEL, SEARCH
from tests.model.exchange.models import filled

COUNT = 3


@pytest.fixture(scope="module")
def made():
    """Edit three facts in sequence, edit them back, and repeat the sequence with written weights.

    The two prompts of each edit are its own fact and another one.
    """
    random = np.random.default_rng(0)
    params = filled(MODEL, 3)
    params["unembed"]["W_U"] *= 20  # so that the model can be certain
    tokens = random.integers(0, 23, (40, 3)).astype(np.int32)
    facts = random.integers(0, 23, (COUNT, 2, 2)).astype(np.int32)

    @jax.jit
    def directions(params, prompts):
        weight = jnp.ones(tokens.shape)
        moment, unit = second_moment(MODEL, params, jnp.asarray(tokens), weight, LAYER)
        keys = exact_keys(MODEL, params, prompts, LAYER)
        solved = memory(moment).solve(keys)
        ways = rank_one_changes(keys, solved, jnp.zeros((COUNT, 16)))
        return ways, unit, MODEL.forward(params, prompts.tokens[:, 0])[0][:, -1]

    @jax.jit
    def alone(params, prompts, ways, unit):
        """Edit each fact in its own model."""
        added = search_values(MODEL, params, prompts, LAYER, ways, unit, SEARCH)
        changes = ways._replace(values=added[:, None])
        written = jax.vmap(lambda one: write_change(MODEL, params, LAYER, one))(changes)
        return changes, written

    @jax.jit
    def together(params, prompts, ways, unit, changes, old):
        chain = edit_in_sequence(MODEL, params, prompts, LAYER, ways, unit, SEARCH)
        back = edit_back(MODEL, params, prompts, old, LAYER, changes, unit, SEARCH)

        def answers(change):
            edited = write_change(MODEL, params, LAYER, change)
            return jax.nn.log_softmax(MODEL.forward(edited, facts[:, 0])[0][:, -1])

        after = jnp.stack([answers(first_edits(chain, count)) for count in range(COUNT + 1)])
        return chain, back, after, jax.vmap(answers)(back)

    prompts = FactPrompts(facts, np.ones((COUNT, 2), bool), np.zeros(COUNT, np.int32))
    ways, unit, logits = directions(params, prompts)
    order = np.asarray(logits).argsort(axis=1).astype(np.int32)
    new, old = order[:, -2], order[:, -3]  # neither is the first answer
    prompts = prompts._replace(new=new)
    changes, _ = alone(params, prompts, ways, unit)
    chain, back, after, restored = together(params, prompts, ways, unit, changes, old)
    current, by_hand = params, []
    for number in range(COUNT):
        change, written = alone(current, prompts, ways, unit)
        by_hand.append(np.asarray(change.values)[number, 0])
        current = jax.tree.map(lambda leaf, number=number: np.asarray(leaf)[number], written)
    found = {
        "chain": chain,
        "changes": changes,
        "back": back,
        "after": after,
        "restored": restored,
        "by_hand": np.stack(by_hand),
    }
    return jax.tree.map(np.asarray, found) | {"new": new, "old": old}


@pytest.mark.slow
def test_a_sequence_is_that_of_written_weights(made):
    np.testing.assert_allclose(made["chain"].values, made["by_hand"], atol=1e-3)
    np.testing.assert_allclose(made["chain"].values[0], made["changes"].values[0, 0], atol=1e-3)
    # The later edits are not those of the model without earlier edits.
    assert np.abs(made["chain"].values[1:] - made["changes"].values[1:, 0]).max() > 0.01


@pytest.mark.slow
def test_each_edit_of_a_sequence_takes_at_its_time(made):
    for number, new in enumerate(made["new"]):
        before, after = (-made["after"][number + late, number, new] for late in (0, 1))
        assert after < SEARCH.enough < before
    assert first_edits(made["chain"], 0).norm() == 0


@pytest.mark.slow
def test_a_fact_that_is_edited_back_has_its_old_tail(made):
    each = np.arange(COUNT)
    assert (-made["restored"][each, each, made["old"]] < SEARCH.enough).all()
    np.testing.assert_array_equal(made["back"].keys, made["changes"].keys)
