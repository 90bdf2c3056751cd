"""Choose pairs of queries for patching.

There are two types of pairs. In the first type, the two queries differ in one token. In the second
type, a source query and a target query have different first facts. Pairs are drawn at random from
all chains of the world, on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.worlds import ROLES, Dataset
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import world_of

BRIDGE, OOD, TRAINED, SAME = "another bridge", "O source", "trained chain", "same bridge"
"""Groups of pairs of a source and a target query, for every dataset of chains.

The composed chain has the first fact of the source and the later relations of the target. It is a
training chain in `TRAINED`, and in no other group.

- `BRIDGE`: source and target have different bridges. The source's first fact has a role that the
  first facts of training chains have.
- `OOD`: source and target have different bridges. The source's first fact does not occur in
  training chains. A table of memorized training chains therefore has no entry for the source's
  prefix, even if its gaps are filled in.
- `TRAINED`: source and target have different bridges, and the composed chain is a training chain.
  This group shows the effect of memorization.
- `SAME`: source and target have the same bridge and different prefixes. A model that composes
  does not change its answer.
"""

GROUPS = (BRIDGE, OOD, TRAINED, SAME)

COLD = ("c0 source", "c1 source", "c2 source")
"""Further groups of pairs for a dataset of the task `ladder`, one for each rung.

Source and target have different bridges, and the source's first fact is a cold fact of the rung. In
`c0 source`, no training chain identifies the bridge of the source, so only the atomic fact does.
"""
_MAX_PAIRS = 400  # maximum number of pairs per group
_SEED = 0


def replacements(
    dataset: Dataset, asked: queries.Queries, random: np.random.Generator
) -> tuple[Int[np.ndarray, "part row"], Int[np.ndarray, "part row"]]:
    """Choose replacement tokens that change the answer, for each part of each query.

    A part is e1 or a relation. One part of a query is replaced at a time. The token is chosen at
    random, and if possible the new query is a training query.

    Args:
      dataset: a dataset of a chain task.
      asked: the queries to change.
      random: the random generator.

    Returns:
      `(token, answer)`, both [part, row]. Parts have the order e1, r1, r2, ... `token` is the new
      token, and `answer` is the answer to the new query. `token` and `answer` are -1 if no token
      changes the answer.
    """
    table = queries.all_queries(dataset)
    tokens, answers = [], []
    for part in range(dataset.hops + 1):
        rest = np.delete(np.arange(dataset.hops + 1), part)
        found = _exchanged(asked, table, table.trained, rest, random)
        # Use an untrained query only if there is no training query.
        wider = _exchanged(asked, table, ~table.trained, rest, random)
        found = np.where(found >= 0, found, wider)
        token = queries.prompt_tokens(dataset, table.parts[found])[:, _place(dataset, part)]
        tokens.append(np.where(found >= 0, token, -1))
        answers.append(np.where(found >= 0, table.answer[found], -1))
    return np.stack(tokens), np.stack(answers)


def _place(dataset: Dataset, part: int) -> int:
    """Return the position in a prompt of a part; `part` is an index into (e1, r1, r2, ...)."""
    return queries.prompt_order(dataset).index(part)


def _exchanged(
    asked: queries.Queries,
    table: queries.Queries,
    which: np.ndarray,
    rest: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """For each query, draw a query of the table with equal `rest` and a different answer.

    Args:
      asked: the queries.
      table: all queries.
      which: mask of the queries of the table that may be drawn.
      rest: indices of the parts that must be equal.
      random: random generator for the choice.

    Returns:
      An index into `table` for each query; -1 if no query of the table fits.
    """
    numbers = np.flatnonzero(which)

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        other: np.ndarray = table.answer[numbers[item]] != asked.answer[row]
        return other

    found = queries.random_matches(
        asked.parts[:, rest], table.parts[numbers][:, rest], fits, random
    )
    return np.where(found >= 0, numbers[found], -1) if len(numbers) else found


def symmetric_replacements(
    dataset: Dataset, asked: queries.Queries, random: np.random.Generator
) -> tuple[Int[np.ndarray, "part row"], Int[np.ndarray, "part row"]]:
    """Choose random replacement tokens, for each part of each query.

    A part is e1 or a relation. The new token is any entity or any relation that differs from the
    old token.

    Args:
      dataset: a dataset of a chain task.
      asked: the queries to change.
      random: the random generator.

    Returns:
      `(token, answer)`, both [part, row]. `token` is the new token, and `answer` is the answer to
      the new query. `answer` is -1 if the new query needs a fact that does not exist, or if the
      answer does not change.
    """
    world, table = world_of(dataset), queries.all_queries(dataset)
    tokens, answers = [], []
    for part, old in enumerate(asked.parts.T):
        size = world.n_relations if part else world.n_entities
        new = (old + random.integers(1, max(size, 2), len(old))) % size
        parts = asked.parts.copy()
        parts[:, part] = new
        answer = queries.look_up_answers(table, parts)
        tokens.append(new + world.n_entities * (part > 0))
        answers.append(np.where(answer == asked.answer, -1, answer))
    return np.stack(tokens), np.stack(answers)


class ComposedPairs(NamedTuple):
    """Pairs of a source query and a target query, with the composed query of each pair.

    Attributes:
      source: the source queries, whose states are patched into the target.
      target: the target queries, which are patched.
      composed: the composed queries. They have the first fact of the source and the later relations
        of the target.
      group: int [pair], the group of each pair, as an index into `groups`.
      groups: the names of the groups: `GROUPS`, then `COLD` if the dataset has cold facts.
    """

    source: queries.Queries
    target: queries.Queries
    composed: queries.Queries
    group: np.ndarray
    groups: tuple[str, ...]


def choose_pairs(dataset: Dataset) -> ComposedPairs:
    """Choose at most 400 pairs of a source and a target query for each group in `GROUPS`.

    The targets are training chains among the probe rows. Probe rows are the rows that evaluation
    uses (`Dataset.probe`).

    Raises:
      NotApplicable: no probe row is a training chain.
    """
    table, random = queries.all_queries(dataset), np.random.default_rng(_SEED)
    trained = np.flatnonzero(dataset.probe[: dataset.n_train])
    trained = trained[dataset.truth[f"fact{dataset.hops}"][trained] >= 0]
    if not len(trained):
        raise NotApplicable(
            "cross_query_patching and pairs 'bridge' need probe rows that are training chains, but "
            "this dataset contains no such rows"
        )
    targets = queries.queries_of_rows(dataset, random.permutation(trained)[: 2 * _MAX_PAIRS])
    usual = queries.have_roles(dataset, table, training_roles(0))
    candidates = {
        BRIDGE: table.only(usual & ~table.trained),
        OOD: table.only(queries.have_roles(dataset, table, "O") & ~table.trained),
        TRAINED: table.only(table.trained),
        SAME: table.only(usual & ~table.trained),
    }
    candidates |= _cold_candidates(dataset, table)
    parts = []
    for number, group in enumerate(candidates):
        target, composed = _compose(targets, candidates[group], group == SAME, random)
        source = _sources(composed, table, target, random)
        found = np.flatnonzero(source >= 0)[:_MAX_PAIRS]
        numbers = np.full(len(found), number)
        parts.append(
            ComposedPairs(
                table.only(source[found]),
                target.only(found),
                composed.only(found),
                numbers,
                tuple(candidates),
            )
        )
    columns = zip(*parts, strict=True)
    source, target, composed, group, _ = columns
    return ComposedPairs(
        _stacked(source),
        _stacked(target),
        _stacked(composed),
        np.concatenate(group),
        tuple(candidates),
    )


def _cold_candidates(dataset: Dataset, table: queries.Queries) -> dict[str, queries.Queries]:
    """Return, by group, the untrained chains whose first fact is a cold fact of each rung."""
    facts = world_of(dataset).facts
    if "evidence1" not in dataset.truth or not (facts.role == ROLES.index("C")).any():
        return {}
    rows = np.flatnonzero(dataset.truth["evidence1"] >= 0)
    rung = np.full(len(facts.role), -1)
    rung[dataset.truth["fact1"][rows]] = dataset.truth["evidence1"][rows]
    cold = queries.have_roles(dataset, table, "C") & ~table.trained
    return {
        name: table.only(cold & (rung[table.facts[:, 0]] == number))
        for number, name in enumerate(COLD)
    }


def _compose(
    targets: queries.Queries,
    candidates: queries.Queries,
    same_bridge: bool,
    random: np.random.Generator,
) -> tuple[queries.Queries, queries.Queries]:
    """For each target, draw a chain with a different e1, a different r1 and equal later relations.

    If `same_bridge` is true, the chain must have the later facts of the target. Otherwise the later
    facts and the answer must differ. Targets without such a chain are dropped.

    Returns:
      The targets that are kept, and the chain for each of them.
    """

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        # Both e1 and r1 must differ. Otherwise the chains would differ in a single token.
        other = (candidates.parts[item, :2] != targets.parts[row, :2]).all(1)
        follows = (candidates.facts[item, 1:] == targets.facts[row, 1:]).all(1)
        if same_bridge:
            return other & follows
        return other & ~follows & (candidates.answer[item] != targets.answer[row])

    found = queries.random_matches(targets.parts[:, 2:], candidates.parts[:, 2:], fits, random)
    keep = np.flatnonzero(found >= 0)
    return targets.only(keep), candidates.only(found[keep])


def _sources(
    composed: queries.Queries,
    table: queries.Queries,
    target: queries.Queries,
    random: np.random.Generator,
) -> np.ndarray:
    """For each composed chain, draw a source query that begins with the same first fact.

    The r2 of the source differs from that of the composed chain. The answer of the source differs
    from the answers of the composed chain and of the target.

    Returns:
      An index into `table` for each composed chain; -1 if there is no such query.
    """

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        answer = table.answer[item]
        unexpected = (answer != composed.answer[row]) & (answer != target.answer[row])
        return (table.parts[item, 2] != composed.parts[row, 2]) & unexpected

    return queries.random_matches(composed.facts[:, :1], table.facts[:, :1], fits, random)


def _stacked(parts: tuple[queries.Queries, ...]) -> queries.Queries:
    return queries.Queries(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
