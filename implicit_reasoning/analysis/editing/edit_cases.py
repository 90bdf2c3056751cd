"""Choose facts to edit, and list the consequences of each edit with their true answers.

An edit gives a fact (e1, r1) -> b the new tail b'. In a known world, the answer to every prompt
after an edit follows from the edited table of facts. The consequences of an edit are the prompts
whose answers change, and the prompts that are most likely to change by mistake:

- the fact: (e1, r1) -> b'
- first hop: (e1, r1, r2) -> T[b', r2]
- second hop: (e0, r0, r1) -> b', where T[e0, r0] = e1
- same entity: (e1, r) -> T[e1, r], for other relations r
- same relation: (e, r1) -> T[e, r1], for other entities e

The last two do not change. All other prompts do not change either; a sample of them, the same for
all edits, measures locality.

With a chain of thought, the answer to a chain is the bridge, followed by the last entity. The
prompts of chains then have one more token, which is the bridge that the model has output.

Sources: Cohen et al. 2023, "Evaluating the ripple effects of knowledge editing" (compositionality I
and II, relation specificity); Zhong et al. 2023, "MQuAKE".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.facts import GROUPS
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, Dataset, World, enumerate_chains
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import world_of
from implicit_reasoning.worlds.world import NONE

KINDS = ("fact", "first hop", "second hop", "same entity", "same relation")
"""Kinds of consequences."""

POSITIONS = ("e1", "r1", "r2")
EDITED_ROLES = ("I", "O", "C")
"""The roles of facts that are edited by default."""

_KIND = 6  # column of `kind` in the rows of `_consequences_of`; the next column is `place`
MOST = 12
"""Maximum number of consequences of one kind, except for the fact itself."""

_ROUNDED = 16
"""The number of prompts is padded to a multiple of this number.

Worlds with similar numbers of prompts then share one compiled program.
"""


class FactEdits(NamedTuple):
    """Facts with new tails.

    Attributes:
      fact: the number of the edited fact.
      new: the new tail b', which differs from the old tail and from e1.
      groups: names of the groups of edits, by the role of the fact.
      group: the group of each edit, as an index into `groups`.
    """

    fact: Int[np.ndarray, " edit"]
    new: Int[np.ndarray, " edit"]
    groups: tuple[str, ...]
    group: Int[np.ndarray, " edit"]


class Consequences(NamedTuple):
    """The consequences of all edits, padded to the same number of prompts for each edit.

    Attributes:
      tokens: the prompts. Prompts of one fact are padded with token 0. With a chain of thought, the
        fourth token, the bridge that the model outputs, is also 0.
      position: the position that predicts the answer.
      before: the right answer before the edit.
      after: the right answer after the edit; equal to `before` if the edit does not change it.
      kind: the kind of the prompt, as an index into `KINDS`; -1 for padding.
      place: the position where the prompt uses the edited fact; -1 if it does not use the fact.
      shared: whether the prompt uses a fact of another edit, before or after all edits. The right
        answer after all edits together may then differ from `after`.
    """

    tokens: Int[np.ndarray, "edit prompt pos"]
    position: Int[np.ndarray, "edit prompt"]
    before: Int[np.ndarray, "edit prompt"]
    after: Int[np.ndarray, "edit prompt"]
    kind: Int[np.ndarray, "edit prompt"]
    place: Int[np.ndarray, "edit prompt"]
    shared: Bool[np.ndarray, "edit prompt"]


class Others(NamedTuple):
    """A sample of the prompts of the world, for locality.

    Attributes:
      tokens, position, answer: as in `Consequences`.
      related: whether the prompt is a consequence of each edit.
    """

    tokens: Int[np.ndarray, "prompt pos"]
    position: Int[np.ndarray, " prompt"]
    answer: Int[np.ndarray, " prompt"]
    related: Bool[np.ndarray, "edit prompt"]


def need_editable(dataset: Dataset) -> World:
    """Return the world of a dataset whose facts can be edited.

    Raises:
      NotApplicable: the task is not a chain task of two hops with prompts (e1, r1, r2), or the
        taught answers differ from those of the world.
    """
    need_chains(dataset, allows_thought=True)
    truth, world = dataset.truth, world_of(dataset)
    if dataset.positions != POSITIONS:
        raise NotApplicable(
            f"editing needs prompts {', '.join(POSITIONS)}; the prompts of this task are "
            f"{', '.join(dataset.positions)}"
        )
    last = np.where(truth["fact2"] >= 0, truth["fact2"], truth["fact1"])
    tail = truth["answer"]
    if has_thought(dataset):
        tail = np.where(truth["thought"] > 0, truth["answer2"], tail)
    wrong = (last >= 0) & (tail != world.facts.tail[last])
    if wrong.any():
        raise NotApplicable(
            "editing needs answers that follow from the facts of the world; "
            f"{int(wrong.sum()):,} rows of this task have other answers"
        )
    return world


def has_thought(dataset: Dataset) -> bool:
    """Return whether answers to chains begin with the bridge (chain of thought)."""
    return "thought" in dataset.truth


def choose_edits(
    dataset: Dataset, count: int, seed: int = 0, roles: Sequence[str] = EDITED_ROLES
) -> FactEdits:
    """Choose facts of some roles, and a new tail for each of them.

    Every edit has at least one first-hop consequence: an r2 with which training chains can use a
    fact of the old tail and a fact of the new tail, and the two facts lead to different answers.

    Args:
      dataset: a dataset of a chain task.
      count: maximum number of edits. The roles get equal numbers. If the world has too few facts of
        a role, the other roles get more.
      seed: the seed of the choice.
      roles: the roles of the facts, from `EDITED_ROLES`.

    Raises:
      InputError: there is no role, or facts of a role cannot be edited.
      NotApplicable: no fact of the dataset can be edited; see `need_editable`.
    """
    if not roles or not set(roles) <= set(EDITED_ROLES):
        raise InputError(
            f"roles is {tuple(roles)}; give one or more of the roles {', '.join(EDITED_ROLES)}"
        )
    world, random = need_editable(dataset), np.random.default_rng(seed)
    of_role = {r: np.flatnonzero(world.facts.role == ROLES.index(r)) for r in roles}
    # Roles with few facts choose first, so that the other roles get what is left.
    order = sorted(of_role, key=lambda letter: len(of_role[letter]))
    chosen: dict[str, list[tuple[int, int]]] = {letter: [] for letter in of_role}
    for number, letter in enumerate(order):
        most = (count - sum(map(len, chosen.values()))) // (len(order) - number)
        for fact in random.permutation(of_role[letter]).tolist():
            if len(chosen[letter]) == most:
                break
            new = _new_tail(world, fact, random)
            chosen[letter] += [(fact, new)] * (new >= 0)
    there = [letter for letter in EDITED_ROLES if chosen.get(letter)]
    if not there:
        raise NotApplicable("no fact of this dataset can be edited: no new tail has consequences")
    fact, new_tails = np.concatenate([chosen[letter] for letter in there]).T
    group = np.repeat(np.arange(len(there)), [len(chosen[letter]) for letter in there])
    return FactEdits(fact, new_tails, tuple(GROUPS[letter] for letter in there), group)


def training_chains(dataset: Dataset) -> Int[np.ndarray, "fact hop"]:
    """Count the training chains that use each fact of the world at the first and second hop.

    Args:
      dataset: a dataset of a chain task of two hops.

    Raises:
      NotApplicable: the facts of the dataset cannot be edited; see `need_editable`.
    """
    n_facts = need_editable(dataset).n_facts
    trained = [dataset.truth[name][: dataset.n_train] for name in ("fact1", "fact2")]
    chains = trained[1] >= 0
    return np.stack([np.bincount(used[chains], minlength=n_facts) for used in trained], axis=1)


def consequences(dataset: Dataset, edits: FactEdits, seed: int = 0) -> Consequences:
    """List the consequences of each edit, at most 12 of each kind.

    Chains of the first hop are those of `choose_edits`. Chains of the second hop begin with a fact
    that training chains use at the first hop.

    Args:
      dataset: a dataset of a chain task.
      edits: the edits.
      seed: the seed of the choice of prompts.
    """
    world, random = need_editable(dataset), np.random.default_rng(seed)
    last = 2 + has_thought(dataset)
    parts = [
        _consequences_of(world, int(fact), int(new), set(edits.fact.tolist()), random, last)
        for fact, new in zip(edits.fact, edits.new, strict=True)
    ]
    width = rounded(max(map(len, parts)))
    table = np.zeros((len(parts), width, len(parts[0][0])), np.int32)
    table[..., _KIND : _KIND + 2] = NONE
    for number, part in enumerate(parts):
        table[number, : len(part)] = part
    position, before, after, kind, place, shared = np.moveaxis(table[..., 3:], -1, 0)
    tokens = np.pad(table[..., :3], ((0, 0), (0, 0), (0, last - 2)))
    return Consequences(tokens, position, before, after, kind, place, shared.astype(bool))


def rounded(count: int) -> int:
    """Return a number of prompts with padding, so that similar worlds share one program."""
    return -(-count // _ROUNDED) * _ROUNDED


def other_prompts(dataset: Dataset, edits: FactEdits, count: int, seed: int = 0) -> Others:
    """Choose prompts at random among all facts and two-hop chains of the world.

    A prompt is related to an edit if it uses the edited fact, or is one of its consequences of the
    kinds "same entity" and "same relation".

    Args:
      dataset: a dataset of a chain task.
      edits: the edits.
      count: maximum number of prompts.
      seed: the seed of the choice.
    """
    world = need_editable(dataset)
    random, facts = np.random.default_rng(seed), world.facts
    alone = np.arange(world.n_facts, dtype=np.int32)
    pairs = enumerate_chains(world, 2).facts
    paths = np.concatenate([np.column_stack([alone, np.full_like(alone, NONE)]), pairs])
    paths = random.permutation(paths)[:count]
    first, second = paths.T
    single = second < 0
    later = np.where(single, 0, world.n_entities + facts.relation[second])
    columns = [facts.head[first], world.n_entities + facts.relation[first], later]
    last = 2 + has_thought(dataset)
    tokens = np.column_stack([*columns, *[np.zeros_like(later)] * (last - 2)])
    related = (paths[None] == edits.fact[:, None, None]).any(-1)
    near = facts.head[first][None] == facts.head[edits.fact][:, None]
    near |= facts.relation[first][None] == facts.relation[edits.fact][:, None]
    answer = facts.tail[np.where(single, first, second)]
    position = np.where(single, 1, last).astype(np.int32)
    return Others(tokens.astype(np.int32), position, answer, related | (near & single[None]))


def _new_tail(world: World, fact: int, random: np.random.Generator) -> int:
    """Return a new tail for a fact at random; -1 if there is none."""
    head, old = world.facts.head[fact], world.facts.tail[fact]
    if head == old:
        return NONE
    there = _allowed(world, 1)
    differs = there & there[old][None] & (world.tail != world.tail[old][None])
    possible = np.flatnonzero(differs.any(1))
    possible = possible[(possible != old) & (possible != head)]
    return int(random.choice(possible)) if len(possible) else NONE


def _allowed(world: World, hop: int) -> Bool[np.ndarray, "entity relation"]:
    """Return whether training chains can use each fact at a hop, from 0."""
    found: np.ndarray = np.isin(world.role, [ROLES.index(r) for r in training_roles(hop)])
    return found


def _consequences_of(
    world: World, fact: int, new: int, edited: set[int], random: np.random.Generator, answered: int
) -> list[tuple[int, ...]]:
    """Return the rows of one edit; the columns are the fields of `Consequences`.

    Chains are answered at the position `answered`.
    """
    facts, tail, number = world.facts, world.tail, world.fact_id
    head, relation, old = (int(column[fact]) for column in facts[:3])
    there = _allowed(world, 1)
    others = edited - {fact}
    changed = tail.copy()
    changed[head, relation] = new

    def some(items: np.ndarray) -> list[int]:
        found: list[int] = random.permutation(items)[:MOST].tolist()
        return found

    def row(kind: int, e: int, r: int, r2: int | None, place: int, path: set[int]) -> None:
        last = 0 if r2 is None else world.n_entities + r2
        before, after = tail[e, r], changed[e, r]
        if r2 is not None:
            before, after = tail[before, r2], changed[after, r2]
        position, shared = 1 if r2 is None else answered, bool(path & others)
        tokens = e, world.n_entities + r, last
        rows.append((*tokens, position, int(before), int(after), kind, place, shared))

    rows: list[tuple[int, ...]] = []
    row(0, head, relation, None, 1, set())
    leads = there[old] & there[new] & (tail[old] != tail[new])
    for r2 in some(np.flatnonzero(leads)):
        row(1, head, relation, r2, 1, {int(number[old, r2]), int(number[new, r2])})
    before = (facts.tail == head) & _allowed(world, 0)[facts.head, facts.relation]
    for one in some(np.flatnonzero(before & (np.arange(world.n_facts) != fact))):
        row(2, int(facts.head[one]), int(facts.relation[one]), relation, answered, {one})
    for r in some(np.flatnonzero((tail[head] >= 0) & (np.arange(world.n_relations) != relation))):
        row(3, head, r, None, NONE, {int(number[head, r])})
    for e in some(np.flatnonzero((tail[:, relation] >= 0) & (np.arange(len(tail)) != head))):
        row(4, e, relation, None, NONE, {int(number[e, relation])})
    return rows
