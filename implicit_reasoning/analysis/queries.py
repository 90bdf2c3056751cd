"""Choose queries for patching from the chains of the world. The choice runs on the host.

Patching pairs each query with a second query that shares some parts, such as the first fact. The
table of all chains is sorted by the shared parts. The candidates for the second query are therefore
one contiguous range of the table. All candidates are tested, so a query is dropped only if no
candidate is suitable.
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
    """Multi-hop queries, with their answers.

    If a query is a row of the dataset, its answer is the answer in the row. Otherwise, its answer
    follows from the facts of the world.

    Attributes:
      facts: int32 [question, hop], the number of the fact that each hop uses.
      parts: int32 [question, hop + 1], the numbers of e1, r1, r2, ... in the prompt.
      answer: int32 [question], the number of the answer entity.
      trained: bool [question], whether the query is a row of the training data.
    """

    facts: Int[np.ndarray, "question hop"]
    parts: Int[np.ndarray, "question part"]
    answer: Int[np.ndarray, " question"]
    trained: Bool[np.ndarray, " question"]

    def only(self, keep: np.ndarray) -> Queries:
        """Select queries by an index array or a mask."""
        return Queries(*(column[keep] for column in self))


def all_queries(dataset: Dataset) -> Queries:
    """Return all multi-hop queries of the world, ordered by fact numbers."""
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
    """Return the queries in some rows of a dataset.

    Args:
      dataset: a dataset of a chain task.
      rows: indices of rows. The prompts must be full chains, such as (e1, r1, r2).
    """
    facts = np.column_stack([column[rows] for column in columns(dataset.truth, "fact")])
    chains = Chains(world_of(dataset), facts)
    return Queries(facts, _parts(chains), dataset.truth["answer"][rows], rows < dataset.n_train)


def have_roles(dataset: Dataset, questions: Queries, first: str) -> Bool[np.ndarray, " question"]:
    """Return whether the facts of each query have allowed roles.

    The role of a fact determines its use in training; `I` is the role of facts in training chains.
    The role of the first fact must be in `first`. The role of each later fact must be allowed in
    training chains at the hop of the fact.

    Args:
      dataset: a dataset of a chain task.
      questions: the queries to test.
      first: the allowed roles of the first fact, as letters, such as "I" or "O".
    """
    chains = Chains(world_of(dataset), questions.facts)
    return chains.allows(first, *(training_roles(hop) for hop in range(1, dataset.hops)))


def random_matches(
    asked: Int[np.ndarray, "row key"],
    table: Int[np.ndarray, "item key"],
    fits: Callable[[np.ndarray, np.ndarray], np.ndarray],
    random: np.random.Generator,
) -> Int[np.ndarray, " row"]:
    """Match each row with a random item that has the key of the row and satisfies `fits`.

    Args:
      asked: the key of each row.
      table: the key of each item.
      fits: function that takes row indices [pair] and item indices [pair], and returns a bool for
        each pair. Only pairs with the value true can be matched.
      random: the random generator.

    Returns:
      The index of the item for each row; -1 if no item matches.
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
    """Look up the answers to prompts (e1, r1, r2, ...) in a table of queries.

    Args:
      questions: the table of queries. All queries must have different parts.
      parts: the numbers of e1, r1, r2, ... in each prompt.

    Returns:
      The answer to each prompt; -1 if the table has no such query.
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
    """Convert prompts to tokens, in the token order of the dataset.

    Args:
      dataset: a dataset of a chain task.
      parts: the numbers of e1, r1, r2, ... in each prompt.
    """
    shift = np.array([0] + [world_of(dataset).n_entities] * dataset.hops, np.int32)
    return (parts + shift)[:, prompt_order(dataset)].astype(np.int32)


def prompt_order(dataset: Dataset) -> list[int]:
    """Return which part of a query is at each position of a prompt.

    A part is an index into (e1, r1, r2, ...). For prompts (r1, r2, e1), the result is [1, 2, 0].
    """
    names = ["e1", *(f"r{hop + 1}" for hop in range(dataset.hops))]
    return [names.index(name) for name in dataset.positions]


def _parts(chains: Chains) -> Int[np.ndarray, "chain part"]:
    return np.column_stack([chains.entities[:, :1], chains.relations]).astype(np.int32)
