"""Which queries meet in a patch: one token exchanged, or a chain composed of two questions.

Chosen by the truth of the world, on the host, at random once; `queries` has the tables.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import world_of

BRIDGE, OOD, TRAINED, SAME = "another bridge", "O source", "trained chain", "same bridge"
"""Groups of pairs; in all but `TRAINED` the composed chain is absent from training:

- `BRIDGE`: the source's first fact takes part in training chains, as the target's does;
- `OOD`: it does not; no table of trained chains, completed however, has an entry for its prefix;
- `TRAINED`: as `BRIDGE`, but the composed chain was trained on: what remembering does;
- `SAME`: another prefix with the target's own bridge. A composer does not change its answer.
"""

GROUPS = (BRIDGE, OOD, TRAINED, SAME)
_MAX_PAIRS = 400  # pairs of a group
_SEED = 0


def replacements(
    dataset: Dataset, asked: queries.Queries, random: np.random.Generator
) -> tuple[Int[np.ndarray, "part row"], Int[np.ndarray, "part row"]]:
    """For each part of the questions another value, and the answer it leads to.

    Returns:
      `(token, answer)` by part (e1, r1, ...); -1 where no question with another answer exists.
    """
    table = queries.all_queries(dataset)
    tokens, answers = [], []
    for part in range(dataset.hops + 1):
        rest = np.delete(np.arange(dataset.hops + 1), part)
        found = _exchanged(asked, table, table.trained, rest, random)
        # A question that nobody was trained on only where there is no other.
        wider = _exchanged(asked, table, ~table.trained, rest, random)
        found = np.where(found >= 0, found, wider)
        token = queries.prompt_tokens(dataset, table.parts[found])[:, _place(dataset, part)]
        tokens.append(np.where(found >= 0, token, -1))
        answers.append(np.where(found >= 0, table.answer[found], -1))
    return np.stack(tokens), np.stack(answers)


def _place(dataset: Dataset, part: int) -> int:
    """The position of a part (of e1, r1, r2, ...) in a prompt."""
    return queries.prompt_order(dataset).index(part)


def _exchanged(
    asked: queries.Queries,
    table: queries.Queries,
    which: np.ndarray,
    rest: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """The number of a question of `which` with the same `rest` and another answer; -1: none."""
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
    """Another token of the same kind, any of them, for each part, and the answer it leads to.

    Returns:
      `(token, answer)` by part; the answer is -1 where that is no question, or has the clean one.
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
    """Questions that meet: source, target, and the chain that is composed of both."""

    source: queries.Queries
    target: queries.Queries
    composed: queries.Queries
    group: np.ndarray


def choose_pairs(dataset: Dataset) -> ComposedPairs:
    """Up to `_MAX_PAIRS` pairs of each group; targets are probes that are trained on.

    Raises:
      NotApplicable: no training chain is a probe.
    """
    table, random = queries.all_queries(dataset), np.random.default_rng(_SEED)
    trained = np.flatnonzero(dataset.probe[: dataset.n_train])
    trained = trained[dataset.truth[f"fact{dataset.hops}"][trained] >= 0]
    if not len(trained):
        raise NotApplicable(
            "cross_query_patching needs training chains among the probes; this task has none"
        )
    targets = queries.queries_of_rows(dataset, random.permutation(trained)[: 2 * _MAX_PAIRS])
    usual = queries.have_roles(dataset, table, training_roles(0))
    candidates = {
        BRIDGE: table.only(usual & ~table.trained),
        OOD: table.only(queries.have_roles(dataset, table, "O") & ~table.trained),
        TRAINED: table.only(table.trained),
        SAME: table.only(usual & ~table.trained),
    }
    parts = []
    for number, group in enumerate(GROUPS):
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
            )
        )
    columns = zip(*parts, strict=True)
    source, target, composed, group = columns
    return ComposedPairs(
        _stacked(source), _stacked(target), _stacked(composed), np.concatenate(group)
    )


def _compose(
    targets: queries.Queries,
    candidates: queries.Queries,
    same_bridge: bool,
    random: np.random.Generator,
) -> tuple[queries.Queries, queries.Queries]:
    """For each target a candidate with another first fact and the same r2, ..."""

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        # In both parts: else exchanging one token would make the composed question of the target.
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
    """The source: the same first fact, another r2, and an answer that nobody expects here."""

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        answer = table.answer[item]
        unexpected = (answer != composed.answer[row]) & (answer != target.answer[row])
        return (table.parts[item, 2] != composed.parts[row, 2]) & unexpected

    return queries.random_matches(composed.facts[:, :1], table.facts[:, :1], fits, random)


def _stacked(parts: tuple[queries.Queries, ...]) -> queries.Queries:
    return queries.Queries(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
