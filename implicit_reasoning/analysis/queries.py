"""Choose queries for patching, on the host, from the true facts of the world.

Patching pairs each query with a second query. The candidates for the second query are the chains
that share some parts with the query, such as the first fact. The table of chains is sorted by these
parts, so all candidates of a query are in one contiguous range of the table. Every candidate is
considered, so a query is dropped only if no candidate fits.
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
    """Queries about chains, with their answers.

    The answer to a query that is a row of the dataset is the answer in that row. The answer to any
    other query follows from the facts of the world.

    Attributes:
      facts: int32 [question, hop], the number of the fact at each hop.
      parts: int32 [question, hop + 1], the entity and relation numbers of the prompt: e1, r1, r2,
        ...
      answer: int32 [question], an entity number.
      trained: bool [question], whether the query is a training row.
    """

    facts: Int[np.ndarray, "question hop"]
    parts: Int[np.ndarray, "question part"]
    answer: Int[np.ndarray, " question"]
    trained: Bool[np.ndarray, " question"]

    def only(self, keep: np.ndarray) -> Queries:
        """Return the queries that an index array or a mask selects."""
        return Queries(*(column[keep] for column in self))


def all_queries(dataset: Dataset) -> Queries:
    """Return every chain of the world as a query. Queries are ordered by fact numbers."""
    world = world_of(dataset)
    chains = enumerate_chains(world, dataset.hops)
    of_rows = np.column_stack(columns(dataset.truth, "fact"))
    asked = np.flatnonzero(of_rows[:, -1] >= 0)
    keys = prefix_keys(np.concatenate([chains.facts, of_rows[asked]]), world.n_facts)[:, -1]
    keys, of_asked = keys[: len(chains)], keys[len(chains) :]
    place = np.searchsorted(keys, of_asked)  # `keys` is sorted: chains are ordered by key
    answer, trained = chains.entities[:, -1].astype(np.int32), np.zeros(len(chains), bool)
    answer[place] = dataset.truth["answer"][asked]
    trained[place[asked < dataset.n_train]] = True
    return Queries(chains.facts, _parts(chains), answer, trained)


def queries_of_rows(dataset: Dataset, rows: Rows) -> Queries:
    """Return the queries of some rows. The prompt of each row must have all hops of a chain."""
    facts = np.column_stack([column[rows] for column in columns(dataset.truth, "fact")])
    chains = Chains(world_of(dataset), facts)
    return Queries(facts, _parts(chains), dataset.truth["answer"][rows], rows < dataset.n_train)


def have_roles(dataset: Dataset, questions: Queries, first: str) -> Bool[np.ndarray, " question"]:
    """Return for each query whether the roles of its facts are allowed.

    The role of the first fact must be in `first`. The role of each later fact must be one that
    training chains may have at that hop.

    Args:
      dataset: a dataset of a chain task.
      questions: the queries to test.
      first: allowed roles of the first fact, as letters of `ROLES`.
    """
    chains = Chains(world_of(dataset), questions.facts)
    return chains.allows(first, *(training_roles(hop) for hop in range(1, dataset.hops)))


def random_matches(
    asked: Int[np.ndarray, "row key"],
    table: Int[np.ndarray, "item key"],
    fits: Callable[[np.ndarray, np.ndarray], np.ndarray],
    random: np.random.Generator,
) -> Int[np.ndarray, " row"]:
    """For each row, draw a random item that has the row's key and for which `fits` is true.

    Args:
      asked: keys of the rows.
      table: keys of the items.
      fits: function that takes row indices [pair] and item indices [pair], and returns for each
        pair whether the item fits the row.
      random: random generator for the choice.

    Returns:
      The index of the item that was drawn for each row; -1 if there is no such item.
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
    """Look up the answers to prompts whose entity and relations are given.

    Args:
      questions: the queries to search. No two of them have the same parts.
      parts: the parts of each prompt, as in `Queries.parts`.

    Returns:
      The answer to each prompt; -1 if no query in `questions` has the parts of the prompt.
    """
    found = random_matches(
        parts,
        questions.parts,
        lambda row, item: np.ones(len(row), bool),
        np.random.default_rng(0),  # unused: there is at most one match
    )
    return np.where(found >= 0, questions.answer[found], np.int32(-1))


def prompt_tokens(
    dataset: Dataset, parts: Int[np.ndarray, "question part"]
) -> Int[np.ndarray, "question pos"]:
    """Return the tokens of prompts whose parts are given, in the token order of the dataset."""
    shift = np.array([0] + [world_of(dataset).n_entities] * dataset.hops, np.int32)
    return (parts + shift)[:, prompt_order(dataset)].astype(np.int32)


def prompt_order(dataset: Dataset) -> list[int]:
    """Return which part is at each position of a prompt, as an index into (e1, r1, r2, ...)."""
    names = ["e1", *(f"r{hop + 1}" for hop in range(dataset.hops))]
    return [names.index(name) for name in dataset.positions]


def _parts(chains: Chains) -> Int[np.ndarray, "chain part"]:
    return np.column_stack([chains.entities[:, :1], chains.relations]).astype(np.int32)
