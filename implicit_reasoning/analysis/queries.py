"""Which questions meet in a patch: chosen by the truth of the world, on the host, at random once.

Chains stand in tables, sorted by what has to be equal; the candidates of every question are then
one range of a table. All of them are looked at, so that a question is dropped only where there is
none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds import Chains, Dataset, enumerate_chains, prefix_keys
from implicit_reasoning.worlds.chains import expand, training_roles
from implicit_reasoning.worlds.dataset import columns, world_of

Rows = Int[np.ndarray, "row"]


class Queries(NamedTuple):
    """Chains as questions, with the answer that is taught, or else follows from the world.

    Attributes:
      facts: int32 [question, hop].
      parts: int32 [question, hop + 1]: e1, r1, r2, ...; what is asked.
      answer: int32 [question], an entity.
      trained: bool [question], whether it is trained on.
    """

    facts: Int[np.ndarray, "question hop"]
    parts: Int[np.ndarray, "question part"]
    answer: Int[np.ndarray, " question"]
    trained: Bool[np.ndarray, " question"]

    def only(self, keep: np.ndarray) -> Queries:
        """Some of them, by their numbers or a mask."""
        return Queries(*(column[keep] for column in self))


def all_queries(dataset: Dataset) -> Queries:
    """Every chain of the world, ordered by its fact numbers."""
    world = world_of(dataset)
    chains = enumerate_chains(world, dataset.hops)
    of_rows = np.column_stack(columns(dataset.truth, "fact"))
    asked = np.flatnonzero(of_rows[:, -1] >= 0)
    keys = prefix_keys(np.concatenate([chains.facts, of_rows[asked]]), world.n_facts)[:, -1]
    keys, of_asked = keys[: len(chains)], keys[len(chains) :]
    place = np.searchsorted(keys, of_asked)  # enumerated in the order of their keys
    answer, trained = chains.entities[:, -1].astype(np.int32), np.zeros(len(chains), bool)
    answer[place] = dataset.truth["answer"][asked]
    trained[place[asked < dataset.n_train]] = True
    return Queries(chains.facts, _parts(chains), answer, trained)


def queries_of_rows(dataset: Dataset, rows: Rows) -> Queries:
    """The questions of some rows of chains."""
    facts = np.column_stack([column[rows] for column in columns(dataset.truth, "fact")])
    chains = Chains(world_of(dataset), facts)
    return Queries(facts, _parts(chains), dataset.truth["answer"][rows], rows < dataset.n_train)


def have_roles(dataset: Dataset, questions: Queries, first: str) -> Bool[np.ndarray, " question"]:
    """Whose first fact has one of the roles `first`, and whose later ones training allows there."""
    chains = Chains(world_of(dataset), questions.facts)
    return chains.allows(first, *(training_roles(hop) for hop in range(1, dataset.hops)))


def random_matches(
    asked: Int[np.ndarray, "row key"],
    table: Int[np.ndarray, "item key"],
    fits: Callable[[np.ndarray, np.ndarray], np.ndarray],
    random: np.random.Generator,
) -> Int[np.ndarray, " row"]:
    """For every row, one of the items with the same key that fit it, at random; -1 for none.

    Args:
      asked: of the rows.
      table: of the items.
      fits: of (row, item) numbers, [pair] each: bool [pair].
      random: the choice.
    """
    size = int(max(asked.max(initial=0), table.max(initial=0))) + 1
    keys = prefix_keys(np.concatenate([asked, table]), size)[:, -1]
    keys, items = keys[: len(asked)], keys[len(asked) :]
    order = np.argsort(items, kind="stable")
    first, end = (np.searchsorted(items[order], keys, side) for side in ("left", "right"))
    row, place = expand(first, end - first)
    item = order[place]
    good = np.flatnonzero(fits(row, item))
    random.shuffle(good)
    rows, chosen = np.unique(row[good], return_index=True)
    found = np.full(len(asked), -1, np.int64)
    found[rows] = item[good[chosen]]
    return found


def look_up_answers(
    questions: Queries, parts: Int[np.ndarray, "question part"]
) -> Int[np.ndarray, " question"]:
    """The answers to `parts` where `questions` has them, which has each at most once; else -1."""
    found = random_matches(
        parts,
        questions.parts,
        lambda row, item: np.ones(len(row), bool),
        np.random.default_rng(0),  # there is nothing to choose
    )
    return np.where(found >= 0, questions.answer[found], np.int32(-1))


def prompt_tokens(
    dataset: Dataset, parts: Int[np.ndarray, "question part"]
) -> Int[np.ndarray, "question pos"]:
    """The prompts that ask for `parts`, in the order in which this dataset spells them."""
    shift = np.array([0] + [world_of(dataset).n_entities] * dataset.hops, np.int32)
    return (parts + shift)[:, prompt_order(dataset)].astype(np.int32)


def prompt_order(dataset: Dataset) -> list[int]:
    """The number of the part (of e1, r1, r2, ...) at each position of a prompt."""
    names = ["e1", *(f"r{hop + 1}" for hop in range(dataset.hops))]
    return [names.index(name) for name in dataset.positions]


def _parts(chains: Chains) -> Int[np.ndarray, "chain part"]:
    return np.column_stack([chains.entities[:, :1], chains.relations]).astype(np.int32)
