"""Edits and their consequences equal those of an edited table of facts."""

import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable
from implicit_reasoning.analysis.editing import edit_cases
from implicit_reasoning.analysis.editing.edit_cases import (
    KINDS,
    MOST,
    choose_edits,
    consequences,
    other_prompts,
    training_chains,
)
from implicit_reasoning.analysis.editing.fact_edit import N_PROMPTS
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES
from tests.analysis import tiny_states
from tests.analysis.planted_subject import dataset


def answer(tail, entities, tokens):
    """Look up the answer to a prompt in a table of facts."""
    found = tail[tokens[0], tokens[1] - entities]
    return found if tokens[2] == 0 else tail[found, tokens[2] - entities]


@pytest.fixture(scope="module")
def chosen():
    data = dataset()
    edits = choose_edits(data, 40, seed=1)
    return data, edits, consequences(data, edits)


def test_edits_have_new_tails_and_are_of_all_roles(chosen):
    data, edits, _ = chosen
    facts = data.world.facts
    assert len(np.unique(edits.fact)) == len(edits.fact) == 40
    assert edits.groups == ("id", "ood")
    # One of the 12 O facts leads to itself. The facts of role I get what is left.
    np.testing.assert_array_equal(np.bincount(edits.group), [29, 11])
    letters = np.array(ROLES)[facts.role[edits.fact]]
    assert (letters == np.array(["I", "O"])[edits.group]).all()
    assert (edits.new != facts.tail[edits.fact]).all() and (
        edits.new != facts.head[edits.fact]
    ).all()
    assert (choose_edits(data, 40, seed=1).new == edits.new).all()
    assert (choose_edits(data, 40, seed=2).fact != edits.fact).any()


def test_edits_of_one_role_use_facts_of_this_role_only():
    """Instruments that compare chains of both hops need facts that training chains use."""
    data = dataset()
    for letter, group in (("I", "id"), ("O", "ood")):
        edits = choose_edits(data, 11, roles=(letter,))
        assert edits.groups == (group,) and len(edits.fact) == 11 and not edits.group.any()
        assert (data.world.facts.role[edits.fact] == ROLES.index(letter)).all()
    mixed = choose_edits(data, 20, roles=("O", "I"))  # the order does not matter
    np.testing.assert_array_equal(mixed.fact, choose_edits(data, 20, roles=("I", "O")).fact)
    assert mixed.groups == ("id", "ood")
    with pytest.raises(InputError, match="one or more of the roles I, O, C"):
        choose_edits(data, 20, roles=("I", "E"))


def test_answers_are_those_of_the_edited_table(chosen):
    data, edits, found = chosen
    tail, entities = data.world.tail, data.world.n_entities
    counts = np.zeros(len(KINDS), int)
    for number, (fact, new) in enumerate(zip(edits.fact, edits.new, strict=True)):
        edited, (head, relation, old) = tail.copy(), (c[fact] for c in data.world.facts[:3])
        edited[head, relation] = new
        for row in np.flatnonzero(found.kind[number] >= 0):
            tokens, kind = found.tokens[number, row], found.kind[number, row]
            counts[kind] += 1
            before, after = (answer(table, entities, tokens) for table in (tail, edited))
            assert (before, after) == (found.before[number, row], found.after[number, row])
            assert (before != after) == (kind < 3) and found.position[number, row] == 1 + (
                kind in (1, 2)
            )
            place = {0: 1, 1: 1, 2: 2}.get(int(kind), -1)
            assert place == found.place[number, row]
            if kind == 1:
                assert tuple(tokens[:2]) == (head, entities + relation)
                assert tail[old, tokens[2] - entities] == before
            if kind == 2:
                assert tail[tokens[0], tokens[1] - entities] == head
                assert tokens[2] == entities + relation
    assert counts[0] == len(edits.fact) and counts.min() >= len(edits.fact)


def test_the_prompts_of_one_edit_fit_into_those_of_the_page_of_an_edit(chosen, monkeypatch):
    """The page pads the prompts of one edit, so an edit with all consequences must fit."""
    data, edits, found = chosen
    assert found.kind.shape[1] <= N_PROMPTS
    monkeypatch.setattr(edit_cases, "_consequences_of", lambda *_: [(0,) * 9] * (1 + 4 * MOST))
    assert consequences(data, edits).kind.shape[1] == N_PROMPTS


def test_prompts_that_other_edits_change_are_marked(chosen):
    """The right answer after all edits differs only in prompts that are marked as shared."""
    data, edits, found = chosen
    tail, entities = data.world.tail.copy(), data.world.n_entities
    heads, relations = (column[edits.fact] for column in data.world.facts[:2])
    tail[heads, relations] = edits.new
    marked = 0
    for number, row in np.argwhere(found.kind >= 0):
        there = answer(tail, entities, found.tokens[number, row])
        same = there == found.after[number, row]
        assert same or found.shared[number, row]
        marked += int(not same)
    assert marked > 10 and not found.shared[found.kind == 0].any()


def test_other_prompts_have_the_answers_of_the_world(chosen):
    data, edits, _ = chosen
    others = other_prompts(data, edits, 300)
    tail, entities = data.world.tail, data.world.n_entities
    assert len(others.tokens) == 300 == len(np.unique(others.tokens, axis=0))
    assert set(others.position) == {1, 2}
    for tokens, right in zip(others.tokens, others.answer, strict=True):
        assert answer(tail, entities, tokens) == right
    for number in range(len(edits.fact)):
        edited, (head, relation) = (
            tail.copy(),
            (c[edits.fact[number]] for c in data.world.facts[:2]),
        )
        edited[head, relation] = edits.new[number]
        changed = [answer(edited, entities, t) for t in others.tokens] != others.answer
        assert others.related[number][changed].all()
        alone = others.position == 1
        near = others.tokens[:, 0] == head
        near |= others.tokens[:, 1] == entities + relation
        assert others.related[number][near & alone].all()
    assert 0 < others.related.mean() < 0.3


def test_training_chains_of_facts_are_counted():
    data = dataset()
    truth, found = data.truth, training_chains(data)
    chains = [row for row in range(data.n_train) if truth["fact2"][row] >= 0]
    for hop in (1, 2):
        used = [int(truth[f"fact{hop}"][row]) for row in chains]
        assert [used.count(fact) for fact in range(data.world.n_facts)] == found[
            :, hop - 1
        ].tolist()
    outside = data.world.facts.role == ROLES.index("O")
    assert found[outside].max() == 0 < found[~outside].sum()


def test_chains_of_thought_have_the_same_consequences_with_a_place_for_the_bridge():
    plain, thinking = dataset(), dataset(chain_of_thought=True)
    edits = choose_edits(plain, 20)
    for one, other in zip(edits, choose_edits(thinking, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    usual, found = consequences(plain, edits), consequences(thinking, edits)
    is_chain = np.isin(usual.kind, (1, 2))
    np.testing.assert_array_equal(found.tokens[..., :3], usual.tokens)
    assert found.tokens.shape[-1] == 4 and not found.tokens[..., 3].any()
    np.testing.assert_array_equal(found.position, usual.position + is_chain)
    np.testing.assert_array_equal(found.place, usual.place + (usual.kind == 2))
    for name in ("before", "after", "kind", "shared"):
        np.testing.assert_array_equal(getattr(found, name), getattr(usual, name))
    others, longer = other_prompts(plain, edits, 30), other_prompts(thinking, edits, 30)
    np.testing.assert_array_equal(longer.position, np.where(others.position == 2, 3, 1))
    np.testing.assert_array_equal(longer.answer, others.answer)


def test_other_tasks_are_refused(monkeypatch):
    with pytest.raises(NotApplicable, match="editing needs prompts e1, r1, r2"):
        choose_edits(tiny_states.make_dataset(order="r r e"), 3)
    with pytest.raises(NotApplicable, match="answers that follow from the facts"):
        choose_edits(tiny_states.make_dataset("scrambled"), 3)
    monkeypatch.setattr(edit_cases, "_new_tail", lambda *_: -1)
    with pytest.raises(NotApplicable, match="no fact of this dataset can be edited"):
        choose_edits(dataset(), 3)
