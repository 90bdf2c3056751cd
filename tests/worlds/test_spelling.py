"""Rows are read back by the names of their tokens alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.worlds import (
    Spelling,
    enumerate_chains,
    make_world,
    position_names,
    rows_from_chains,
    vocabulary,
)


@given(
    n_entities=st.integers(2, 14),
    names=st.integers(0, 14),
    order=st.sampled_from(["e r r", "r r e"]),
    end_token=st.booleans(),
    hops=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_rows_say_their_chains(n_entities, names, order, end_token, hops, seed):
    world = make_world(n_entities, 4, 2, 0.0, seed)
    names = 0 if names**2 < n_entities else min(names, n_entities)
    spelling = Spelling(order, names, end_token)
    spelling.check(world)
    chains = enumerate_chains(world, hops)
    vocab, positions = vocabulary(world, spelling), position_names(hops, spelling)
    tokens, targets, truth = rows_from_chains(chains, spelling)
    name_of = entity_names(world, spelling)
    for row in range(len(chains)):
        e1, end = chains.entities[row, 0], chains.entities[row, -1]
        entity = dict(zip(("e1.first", "e1.last") if names else ("e1",), name_of[e1], strict=True))
        relations = {f"r{hop + 1}": f"<r_{r}>" for hop, r in enumerate(chains.relations[row])}
        said = entity | relations
        prompt = [said[position] for position in positions]
        ending = [*name_of[end], *(["</a>"] if end_token else [])]
        assert [vocab[t] for t in tokens[row]] == [*prompt, *ending[:-1]]
        supervised = ["" if t < 0 else vocab[t] for t in targets[row]]
        assert supervised == [""] * (len(prompt) - 1) + ending
        for number, word in enumerate(name_of[end]):
            suffix = "2" if number else ""
            assert vocab[truth[f"answer{suffix}"][row]] == word
            assert truth[f"position{suffix}"][row] == len(prompt) - 1 + number
    assert set(positions) == {"e1.first", "e1.last", *relations_of(hops)} - (
        set() if names else {"e1.first", "e1.last"}
    ) | (set() if names else {"e1"})
    assert (positions[0].startswith("e1")) == (order == "e r r")


def relations_of(hops):
    return {f"r{hop + 1}" for hop in range(hops)}


def entity_names(world, spelling):
    """Return the words of every entity, from atomic rows in which it is e1."""
    facts = enumerate_chains(world, 1)
    rows, vocab = rows_from_chains(facts, spelling), vocabulary(world, spelling)
    positions = position_names(1, spelling)
    places = [place for place, name in enumerate(positions) if name.startswith("e1")]
    return {
        int(e1): [vocab[rows.tokens[row, place]] for place in places]
        for row, e1 in enumerate(facts.entities[:, 0])
    }


@pytest.mark.parametrize(
    ("n_entities", "names"), [(12, 4), (100, 20), (250, 25), (20, 20), (13, 4)]
)
def test_names_are_used_evenly_and_no_two_entities_share_both(n_entities, names):
    world = make_world(n_entities, 2, 1, 0.0, 0)
    words = entity_names(world, Spelling(names=names))
    assert len({tuple(pair) for pair in words.values()}) == n_entities
    for place, kind in enumerate(("first", "last")):
        uses = [pair[place] for pair in words.values()]
        assert all(word.startswith(f"<{kind}_") for word in uses)
        counts = np.unique(uses, return_counts=True)[1]
        assert len(counts) == names and counts.max() - counts.min() <= (n_entities % names > 0)


def test_a_plain_spelling_is_one_token_an_entity():
    world = make_world(5, 3, 2, 0.0, 0)
    words = entity_names(world, Spelling())
    assert words == {e: [f"<e_{e}>"] for e in range(5)}
    assert vocabulary(world) == (*(f"<e_{e}>" for e in range(5)), "<r_0>", "<r_1>", "<r_2>")
    assert position_names(2) == ("e1", "r1", "r2")
