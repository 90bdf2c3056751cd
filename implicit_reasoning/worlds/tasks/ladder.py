"""The task `ladder`: cold facts in two training chains each, with different evidence from chains.

A model can answer a chain by the single facts, or by the training chains with the same bridge. In
`composition`, the two methods give the same answer to nearly every chain of `test_ii`. The task
`ladder` has groups of facts, the rungs. The rungs differ only in the number of further training
chains that reveal the bridge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains, training_roles
from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.evidence import with_evidence
from implicit_reasoning.worlds.tasks.cut import (
    Exceptions,
    cut_chains,
    make_plain_world,
    ordered_chains,
)
from implicit_reasoning.worlds.tasks.rows import make_dataset
from implicit_reasoning.worlds.world import (
    NONE,
    ROLES,
    Stream,
    World,
    check_range,
    stream,
    world_from_table,
)

RUNGS = (0, 1, 2)
"""Number of shared training chains of the cold facts of each rung."""

CHAINS_PER_FACT = 2
"""Number of training chains of a cold fact. With four, the private chains reveal the bridge."""


def ladder(task: Any) -> Dataset:
    """Build the composition task with cold facts, each of which begins exactly two training chains.

    A cold fact `p -> b` leads from the prefix p = (e1, r1) to the bridge b, and has the role `C`.
    It is taught as a triple, and it is used as a second fact like any `I` fact. A bridge has at
    most one cold fact. Let r2 be the last relation of a training chain of p. The chain is *shared*
    if a different fact that leads to b is also trained with r2. Otherwise, the chain is *private*.
    A cold fact on rung s (0, 1 or 2) has s shared and 2 - s private training chains. Its truth
    column `evidence1`, the evidence that training chains give about the bridge, is therefore s. The
    evidence from the single fact is the same on every rung.

    The chains of cold facts that are not trained on are tested as `test_c0`, `test_c1` and
    `test_c2`, by rung. Chains of `I` facts that would make a private chain shared are not trained
    on; these chains are tested as `test_private`. All other splits are those of `composition` with
    two hops. `id_triples` includes the cold facts. phi counts neither the cold facts nor their
    chains. All chains have the truth columns of `evidence.with_evidence`.

    Args:
      task: settings as for `composition`, without hops; facts_per_rung (cold facts for each rung).

    Raises:
      InputError: a setting is out of bounds; out_degree is not less than n_relations; there are too
        few bridges for the cold facts; phi is too large or too small.

    Source: a task designed for this project. The evidence is defined as in the coverage principle
    (Chang et al. 2025, arXiv 2505.20278).
    """
    check_range("facts_per_rung", task.facts_per_rung, 1)
    world = make_plain_world(task)
    if task.out_degree >= task.n_relations:
        raise InputError(
            f"out_degree = {task.out_degree} must be less than n_relations = {task.n_relations}: "
            "if every entity has every relation, a model can infer the bridge from the relations "
            "that have no training chain"
        )
    cold = choose_facts(world, len(RUNGS) * task.facts_per_rung, CHAINS_PER_FACT + 1)
    if len(cold) < len(RUNGS) * task.facts_per_rung:
        raise InputError(
            f"facts_per_rung = {task.facts_per_rung} needs "
            f"{len(RUNGS) * task.facts_per_rung} bridges, but only {len(cold)} bridges "
            f"have enough facts: facts_per_rung can be at most {len(cold) // len(RUNGS)}"
        )
    world = with_role_of(world, cold, "C")
    rung = np.full(world.n_facts, NONE)
    rung[cold] = np.arange(len(cold)) % len(RUNGS)

    chains, order = ordered_chains(task, world, 2)
    rung_of = np.where(chains.allows("C", training_roles(1)), rung[chains.facts[:, 0]], NONE)
    rank = rank_by_first_fact(chains, order, rung_of >= 0)
    private, shared = rank < CHAINS_PER_FACT - rung_of, rank < CHAINS_PER_FACT
    private, shared = (rung_of >= 0) & private, (rung_of >= 0) & shared & ~private
    withheld = chains.matches("ii") & used_later(chains, private)
    required = first_with_the_same_later_fact(chains, order, shared, chains.matches("ii"))
    cut = cut_chains(task, chains, order, Exceptions(withheld, required, private | shared))
    inside, *others = cut.tested
    tested = {inside: cut.tested[inside]}
    for step in RUNGS:
        asked = cut.in_order((rung_of == step) & ~private & ~shared)
        tested[f"test_c{step}"] = asked[: task.probes]
    tested["test_private"] = cut.in_order(withheld)[: task.probes]
    tested |= {name: cut.tested[name] for name in others}
    used_alone = np.zeros(world.n_facts, bool)
    used_alone[chains.facts[private, 1]] = True
    cut = cut._replace(tested=tested)
    dataset = with_evidence(make_dataset(task, cut, private=used_alone))
    _check(dataset)
    return dataset


def choose_facts(world: World, count: int, n_later: int) -> Int[np.ndarray, " fact"]:
    """Choose `I` facts at random that lead to different bridges.

    At least one further `I` fact leads to each of these bridges. The facts for a smaller count are
    a prefix of the facts for a larger count.

    Args:
      world: a world of facts with the roles `I` (used in training chains) and `O` (not used).
      count: number of facts.
      n_later: number of `I` facts that each bridge must have for the second hop.

    Returns:
      Fact numbers, int [fact]; fewer than `count` if there are not enough bridges.
    """
    facts = world.facts
    inside = facts.role == ROLES.index("I")
    before, after = (
        np.bincount(side[inside], minlength=world.n_entities) for side in (facts.tail, facts.head)
    )
    suitable = inside & ((before >= 2) & (after >= n_later))[facts.tail]
    candidates = stream(world.seed, Stream.FEW_CHAINS).permutation(np.flatnonzero(suitable))
    _, first = np.unique(facts.tail[candidates], return_index=True)
    return candidates[np.sort(first)[:count]]  # the first fact of each bridge, in random order


def with_role_of(world: World, facts: Int[np.ndarray, " fact"], letter: str) -> World:
    """Return a world in which the given facts have the role `letter`.

    Args:
      world: the world.
      facts: fact numbers.
      letter: one of `ROLES`.
    """
    role = world.facts.role.copy()
    role[facts] = ROLES.index(letter)
    return world_from_table(world.tail, role, world.seed)


def rank_by_first_fact(
    chains: Chains, order: Int[np.ndarray, " chain"], which: Bool[np.ndarray, " chain"]
) -> Int[np.ndarray, " chain"]:
    """Rank the selected chains separately for each first fact.

    Args:
      chains: all chains.
      order: the indices of all chains in random order, which defines the ranks.
      which: bool [chain], the selected chains.

    Returns:
      int [chain], ranks from 0; -1 for chains that are not selected.
    """
    some = order[which[order]]
    some = some[np.argsort(chains.facts[some, 0], kind="stable")]
    _, first, size = np.unique(chains.facts[some, 0], return_index=True, return_counts=True)
    rank = np.full(len(chains), NONE)
    rank[some] = np.arange(len(some)) - np.repeat(first, size)
    return rank


def used_later(chains: Chains, which: Bool[np.ndarray, " chain"]) -> Bool[np.ndarray, " chain"]:
    """Return which chains have the same second fact as any of the selected chains.

    Args:
      chains: all chains.
      which: bool [chain], the selected chains.
    """
    used = np.zeros(chains.world.n_facts, bool)
    used[chains.facts[which, 1]] = True
    return used[chains.facts[:, 1]]


def first_with_the_same_later_fact(
    chains: Chains,
    order: Int[np.ndarray, " chain"],
    which: Bool[np.ndarray, " chain"],
    among: Bool[np.ndarray, " chain"],
) -> Bool[np.ndarray, " chain"]:
    """Choose one candidate chain for each second fact of the selected chains.

    The candidate has this second fact, and is the first such candidate in the order `order`.
    Nothing is chosen for a second fact without a candidate.

    Args:
      chains: all chains.
      order: the indices of all chains in random order.
      which: bool [chain], the selected chains.
      among: bool [chain], the candidates.

    Returns:
      bool [chain], the chosen chains.
    """
    possible = order[(among & used_later(chains, which))[order]]
    _, first = np.unique(chains.facts[possible, 1], return_index=True)
    found = np.zeros(len(chains), bool)
    found[possible[first]] = True
    return found


def _check(dataset: Dataset) -> None:
    """Check that the counts and the evidence of the finished dataset are those of the rungs.

    Raises:
      RuntimeError: a count or the evidence is wrong, which is an error in the task.
    """
    truth, world = dataset.truth, dataset.world
    assert world is not None
    cold = np.flatnonzero(world.facts.role == ROLES.index("C"))
    if len(np.unique(world.facts.tail[cold])) < len(cold):
        raise RuntimeError("error in the task ladder: a bridge must have at most one cold fact")
    if (dataset.exposure[cold, 0] != CHAINS_PER_FACT).any():
        raise RuntimeError(
            "error in the task ladder: a cold fact must be the first fact of exactly "
            f"{CHAINS_PER_FACT} training chains"
        )
    for step in RUNGS:
        rows = dataset.rows(f"test_c{step}")
        if (truth["evidence1"][rows] != step).any():
            raise RuntimeError(
                f"error in the task ladder: a cold fact on rung {step} must have {step} "
                "shared chains"
            )
