"""The task `cue_conflict`: the triple and the training chains of a fact have different bridges.

The triple and the chains are two cues. The cues contradict each other, and each cue alone is
unambiguous. A model that uses single facts answers from the bridge of the triple. A model that uses
training chains answers from the bridge of the chains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.evidence import with_evidence
from implicit_reasoning.worlds.tasks.cut import (
    Exceptions,
    cut_chains,
    make_plain_world,
    ordered_chains,
    spelling_of,
)
from implicit_reasoning.worlds.tasks.ladder import (
    choose_facts,
    first_with_the_same_later_fact,
    rank_by_first_fact,
    with_role_of,
)
from implicit_reasoning.worlds.tasks.rows import decoys, make_dataset
from implicit_reasoning.worlds.world import (
    NONE,
    ROLES,
    Stream,
    World,
    check_range,
    stream,
    world_from_table,
)

COUNTS = (1, 2, 4)
"""Number of training chains of the split facts of each kind."""


def cue_conflict(task: Any) -> Dataset:
    """Build the composition task with split facts, whose triple and chains contradict each other.

    A split fact is a fact with the role `S`. Its triple teaches one bridge, `decoy`. The fact is
    the first fact of 1, 2 or 4 training chains, which follow a different bridge, e2. A split fact
    is never a second fact. No two split facts share the bridge of their triples or the bridge of
    their chains. For every chain of a split fact, both bridges have a fact with the last relation
    of the chain, and the tails of these two facts differ. For every training chain of a split fact,
    a second training chain passes through e2 with the same last relation and a different first
    fact.

    The chains of a split fact that are not trained on are tested in two splits. `<n>` is the number
    of training chains of the split fact. The prompts and their order are the same in both splits.
    The answer is the tail from e2 in `test_s<n>_chains`, and the tail from `decoy` in
    `test_s<n>_fact`. The accuracy on `test_s<n>_chains` is the share of answers that follow the
    chains. The accuracy on `test_s<n>_fact` is the share of answers that follow the triple. The
    remaining answers follow neither.

    All other splits are those of `composition` with two hops. `id_triples` includes the triples of
    the split facts. phi counts neither the split facts nor their chains. The dataset has the truth
    columns of `evidence.with_evidence` and two more. `decoy` is the entity that the triple of the
    first fact teaches; only split facts have a `decoy` different from e2. `decoy_answer` is the
    tail from `decoy`, and -1 for the chains of all other facts. All other columns follow the
    chains, except that `answer` is the taught or expected answer.

    Args:
      task: settings as for `composition`, without hops; facts_per_count (split facts for each
        number of training chains). `chain_of_thought` must be False.

    Raises:
      InputError: a setting is out of bounds; `chain_of_thought` is True; there are too few bridges
        for the split facts; phi is too large or too small.

    Source: a task designed for this project.
    """
    check_range("facts_per_count", task.facts_per_count, 1)
    if spelling_of(task).chain_of_thought:
        raise InputError(
            "the task cue_conflict does not support chain_of_thought = True, because its chains "
            "have two bridges; choose chain_of_thought = False"
        )
    taught, world = split_worlds(make_plain_world(task), task.facts_per_count)
    split = np.flatnonzero(world.facts.role == ROLES.index("S"))
    n_trained = np.zeros(world.n_facts, np.int64)
    n_trained[stream(world.seed, Stream.FEW_CHAINS, 1).permutation(split)] = np.resize(
        COUNTS, len(split)
    )

    chains, order = ordered_chains(task, world, 2)
    first, (_, r2) = chains.facts[:, 0], chains.relations.T
    decoy_answer = taught.tail[taught.facts.tail[first], r2]  # -1 if that bridge lacks r2
    usable = usable_tails(world)
    asked = chains.allows("S") & differ(
        usable[taught.facts.tail[first], r2], usable[chains.entities[:, 1], r2]
    )
    rank = rank_by_first_fact(chains, order, asked)
    added = asked & (rank < n_trained[first])
    none, inside = np.zeros(len(chains), bool), chains.matches("ii")
    required = first_with_the_same_later_fact(chains, order, added, inside)
    cut = cut_chains(task, chains, order, Exceptions(none, required, added))

    answers = {
        name: taught.facts.tail[part.facts[:, 0]]
        for name, part in cut.trained.items()
        if part.hops == 1
    }
    held_out, *others = cut.tested
    tested = {held_out: cut.tested[held_out]}
    for count in COUNTS:
        some = order[(asked & ~added & (n_trained[first] == count))[order]][: task.probes]
        tested |= {f"test_s{count}_chains": chains[some], f"test_s{count}_fact": chains[some]}
        answers[f"test_s{count}_fact"] = decoy_answer[some]
    tested |= {name: cut.tested[name] for name in others}
    dataset = make_dataset(task, cut._replace(tested=tested), answers)
    dataset = with_evidence(_with_decoys(dataset, taught))
    _check(dataset)
    return dataset


def split_worlds(world: World, facts_per_count: int) -> tuple[World, World]:
    """Choose random split facts of a world, and a second bridge for each split fact.

    A split fact is a fact whose triple and whose training chains lead to different bridges.

    Args:
      world: a world of `I` and `O` facts.
      facts_per_count: number of split facts for each number of training chains in `COUNTS`.

    Returns:
      Two worlds in which the split facts have the role `S`. In the first world, all tails are those
      of `world`. In the second world, the split facts lead to their second bridges.

    Raises:
      InputError: there are too few bridges.
    """
    count, needed = len(COUNTS) * facts_per_count, max(COUNTS) + 1
    candidates = choose_facts(world, world.n_entities, needed)
    while True:
        split = candidates[:count]
        taught = with_role_of(world, split, "S")
        bridges = _other_bridges(taught, split, needed)
        if (bridges >= 0).all():
            break
        candidates = candidates[~np.isin(candidates, split[bridges < 0])]
    if len(split) < count:
        raise InputError(
            f"facts_per_count = {facts_per_count} needs {count} facts with two conflicting "
            f"bridges, but this world has only {len(split)} such facts whose bridges have {needed} "
            f"relations in common; facts_per_count can be at most {len(split) // len(COUNTS)}"
        )
    tail = world.tail.copy()
    tail[world.facts.head[split], world.facts.relation[split]] = bridges
    return taught, world_from_table(tail, taught.facts.role, world.seed)


def _other_bridges(
    world: World, split: Int[np.ndarray, " fact"], needed: int
) -> Int[np.ndarray, " fact"]:
    """Return a random second bridge for each split fact; -1 if no entity is suitable.

    The bridge of the triple and the second bridge have `needed` relations in common, with different
    tails, and an `I` fact leads to the second bridge.
    """
    usable, inside = usable_tails(world), world.facts.role == ROLES.index("I")
    free = stream(world.seed, Stream.FEW_CHAINS, 0).permutation(np.unique(world.facts.tail[inside]))
    found = np.full(len(split), NONE)
    for place, bridge in enumerate(world.facts.tail[split]):
        fits = differ(usable[bridge], usable[free]).sum(1) >= needed
        if fits.any():
            found[place] = free[fits.argmax()]
            free = np.delete(free, fits.argmax())
    return found


def usable_tails(world: World) -> Int[np.ndarray, "entity relation"]:
    """Return the tails of the facts that training chains may use as second facts.

    Returns:
      int [entity, relation]; -1 if there is no such fact.
    """
    letters = [ROLES.index(letter) for letter in training_roles(1)]
    return np.where(np.isin(world.role, letters), world.tail, NONE)


def differ(one: Int[np.ndarray, "..."], other: Int[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Return where two tables of tails have facts with different tails.

    Args:
      one: tails, with -1 if there is no fact.
      other: tails, broadcast against `one`.
    """
    return (one >= 0) & (other >= 0) & (one != other)


def _with_decoys(dataset: Dataset, taught: World) -> Dataset:
    truth = dataset.truth
    decoy = decoys(dataset, taught)
    split = np.flatnonzero((truth["role1"] == ROLES.index("S")) & (truth["r2"] >= 0))
    answer = np.full(len(dataset), NONE, np.int32)
    answer[split] = taught.tail[decoy[split], truth["r2"][split]]
    return dataclasses.replace(dataset, truth=truth | {"decoy": decoy, "decoy_answer": answer})


def _check(dataset: Dataset) -> None:
    """Check the finished dataset: how often split facts are used, and what their chains say.

    Raises:
      RuntimeError: a count or an answer is wrong, which is an error in the task.
    """
    truth = dataset.truth
    for count in COUNTS:
        chains, fact = (dataset.rows(f"test_s{count}_{cue}") for cue in ("chains", "fact"))
        if (dataset.exposure[truth["fact1"][chains]] != (count, 0)).any():
            raise RuntimeError(
                "error in the task cue_conflict: a split fact must be the first fact of "
                f"exactly {count} training chains and the second fact of none"
            )
        if (truth["evidence1"][chains] != count).any():
            raise RuntimeError(
                "error in the task cue_conflict: for a training chain of a split fact, no "
                "second training chain has the same bridge and last relation"
            )
        if (dataset.answers[chains] == dataset.answers[fact]).all(1).any():
            raise RuntimeError(
                "error in the task cue_conflict: the two bridges of a split fact must give "
                "different answers to its test chains"
            )
