"""Multi-hop composition, and the variations that say what it takes.

A variation changes which facts are taught as atomic triples, which chains are trained on, or which
answers are taught; all share the world, the order of the chains and the spelling of `composition`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains, enumerate_chains, patterns, random_order
from implicit_reasoning.worlds.dataset import Dataset, assemble
from implicit_reasoning.worlds.spelling import (
    Spelling,
    position_names,
    rows_from_chains,
    vocabulary,
)
from implicit_reasoning.worlds.world import (
    Stream,
    World,
    check_range,
    make_world,
    redraw_tails,
    stream,
    with_role,
)


def composition(task: Any) -> Dataset:
    """Multi-hop composition: learn `(e1, r1, r2) -> e3` from single facts and examples of chains.

    Trained on: all facts, and `round(phi * n_id_facts)` chains of `I` facts. Tested on: `I` chains
    held out, and chains with `O` facts, by pattern. All chains are shuffled once by the world's
    seed, and every split is cut from that one order: `train_ii` from its front, so that a smaller
    phi is a prefix of a larger one; `test_ii` from its back, so that it is the same for all phi.

    Args:
      task: with attributes world_seed, n_entities, n_relations, out_degree, ood_fraction (see
        `make_world`); hops, 2 to 6; phi, training chains per `I` fact; holdout, the share of
        all-`I` chains kept from training; probes, the most rows of a split to evaluate on;
        mixed_chains, False to leave out the patterns that mix `I` and `O`, as Wang et al. do;
        order, names, end_token (see `Spelling`).

    Raises:
      InputError: a setting is out of bounds, or there are fewer chains than phi asks for.

    Source: Wang et al. 2024, section 3.1; Ye et al. 2025 (mixed patterns). Ye's notebook takes phi
    for a share of all chains and so trains on every one; here it is the ratio that they report.
    """
    world = _world(task)
    return _dataset(task, _cut(task, world))


def without_id_triples(task: Any) -> Dataset:
    """Composition whose `I` facts are never taught by themselves, only through chains.

    Trained on `ood_triples` and `train_ii`; `id_triples` is a tested split. The chains are those of
    `composition` with the same settings, so that the two differ in nothing else. By the rules of
    row completion `test_ii` can be answered all the same; `test_oi` lacks what ties the name of a
    bridge entity to its use as a second hop.

    Args:
      task: as for `composition`.

    Source: Ye et al. 2025, "without ID triples" (the paper's figure 3).
    """
    cut = _cut(task, _world(task))
    untaught = cut.trained.pop("id_triples")[: task.probes]
    return _dataset(task, cut._replace(tested={"id_triples": untaught, **cut.tested}))


def held_out_id_triples(task: Any) -> Dataset:
    """Composition where some `I` facts, now of role `H`, are used in chains but never taught alone.

    Whether the model can say what it only used: `held_out_id_triples` is a tested split,
    `id_triples` are the facts retained. Chains of `H` facts count as all-`I` ones everywhere.

    Args:
      task: as for `composition`, with held_out_fraction, the share of `I` facts held out.

    Source: Ye et al. 2025, "held-out ID triples".
    """
    check_range("held_out_fraction", task.held_out_fraction, 0, 1)
    cut = _cut(task, with_role(_world(task), "H", task.held_out_fraction))
    facts = cut.trained["id_triples"]
    cut.trained["id_triples"] = facts[facts.allows("I")]
    held_out = {"held_out_id_triples": facts[facts.allows("H")][: task.probes]}
    return _dataset(task, cut._replace(tested={**held_out, **cut.tested}))


def second_hop_restricted(task: Any) -> Dataset:
    """Composition where some facts, of role `R`, are taught and used as first hops, never later.

    Out of distribution by nothing but the place in the query: `test_ii_sr` holds the chains with an
    `R` fact at a later hop (and no `O` fact); `R` facts as first hops count as `I`. A model that
    keeps second hops in another place than single facts stays at chance on `test_ii_sr`.

    Args:
      task: as for `composition`, with restricted_fraction, the share of `I` facts restricted.

    Source: Ye et al. 2025, section 2.4 and appendix D.1 (the published one has no `O` facts).
    """
    check_range("restricted_fraction", task.restricted_fraction, 0, 1)
    cut = _cut(task, with_role(_world(task), "R", task.restricted_fraction))
    all_known = cut.chains.allows(*["IR"] * task.hops)
    restricted = cut.in_order(all_known & ~cut.chains.matches("i" * task.hops))
    inside, *others = cut.tested
    tested = {inside: cut.tested[inside], f"{inside}_sr": restricted[: task.probes]}
    return _dataset(task, cut._replace(tested=tested | {name: cut.tested[name] for name in others}))


def shadow(task: Any) -> Dataset:
    """Facts are taught from one table, chains from another that is never shown: a decoy bridge.

    Two tables have facts for the same (entity, relation) pairs, and tails drawn independently.
    Atomic triples teach table A; chains follow table B, the dataset's `world`, at every hop. So A's
    bridge (truth `decoy`) can be decoded after (e1, r1) - the atomic prompt is a prefix of the
    chain - and is of no use for the chain; B's bridge (truth e2) is what its answer follows from.
    Truth is of table B in every row; `answer` is what is taught, in atomic rows A's tail = `decoy`.

    What a model can reach: all training rows; `test_ii`, by learning B from chains alone, as
    without ID triples; on patterns with an `O` fact only chance, for no row says what B has there.

    Args:
      task: as for `composition`.

    Source: the house's own control, for "what can be decoded is used".
    """
    table_a = _world(task)
    cut = _cut(task, redraw_tails(table_a, Stream.SHADOW_TAILS))
    # The same pairs exist in both tables, so that a fact has the same number in both.
    taught = table_a.facts.tail
    answers = {
        name: taught[part.facts[:, 0]] for name, part in cut.trained.items() if part.hops == 1
    }
    dataset = _dataset(task, cut, answers)
    decoy = {"decoy": taught[dataset.truth["fact1"]]}
    return dataclasses.replace(dataset, truth=dataset.truth | decoy)


def scrambled(task: Any) -> Dataset:
    """Composition whose chains have random answers: a memoriser, with a bridge that is decodable.

    Atomic triples are true. The answer of every chain is drawn once, uniformly from all entities;
    truth keeps the real e2, e3, ..., and `answer` is what is taught. What a model can reach: all
    training rows, by memorising them; on every test split of chains chance, by construction.

    Args:
      task: as for `composition`.

    Source: the house's own control, for instruments that find composition.
    """
    cut = _cut(task, _world(task))
    random = stream(task.world_seed, Stream.SCRAMBLED_ANSWERS)
    # Tested chains first: then their answers, like the chains themselves, do not depend on phi.
    answers = {
        name: random.integers(task.n_entities, size=len(part), dtype=np.int32)
        for name, part in {**cut.tested, **cut.trained}.items()
        if part.hops > 1
    }
    return _dataset(task, cut, answers)


class _Cut(NamedTuple):
    """All chains, the one random order they are taken in, and the splits cut from it."""

    chains: Chains
    order: Int[np.ndarray, " chain"]
    trained: dict[str, Chains]
    tested: dict[str, Chains]

    def in_order(self, which: Bool[np.ndarray, " chain"]) -> Chains:
        """Some of the chains, in the random order."""
        return self.chains[self.order[which[self.order]]]


def _world(task: Any) -> World:
    world = make_world(
        task.n_entities, task.n_relations, task.out_degree, task.ood_fraction, task.world_seed
    )
    _spelling(task).check(world)
    return world


def _spelling(task: Any) -> Spelling:
    return Spelling(task.order, task.names, task.end_token)


MAX_HOPS = 6  # the patterns of roles double with each
MAX_CHAINS = 2**28  # all of them are enumerated, in some tens of bytes each


def _cut(task: Any, world: World) -> _Cut:
    """The splits of `composition`; see there."""
    check_range("hops", task.hops, 2, MAX_HOPS)
    n_chains = world.n_facts * task.out_degree ** (task.hops - 1)
    if n_chains > MAX_CHAINS:
        raise InputError(
            f"hops = {task.hops} over {world.n_facts:,} facts makes {n_chains:,} chains; there can "
            f"be at most {MAX_CHAINS:,}: choose a smaller world or out_degree"
        )
    check_range("holdout", task.holdout, 0, 1)
    check_range("phi", task.phi, 0)
    check_range("probes", task.probes, 1)
    seed, all_inside = task.world_seed, "i" * task.hops
    facts = enumerate_chains(world, 1).shuffled(stream(seed, Stream.FACT_ORDER))
    chains = enumerate_chains(world, task.hops)
    order = random_order(len(chains), stream(seed, Stream.CHAIN_ORDER))

    # Chains are put in order by their numbers: of most only those have to be moved.
    inside = order[chains.matches(all_inside)[order]]
    id_triples = facts.where("i")
    n_held_out = round(task.holdout * len(inside))
    n_train = n_train_rows(task.phi, len(id_triples), len(inside) - n_held_out, "chains")
    trained = {
        "id_triples": id_triples,
        "ood_triples": facts.where("o"),
        f"train_{all_inside}": chains[inside[:n_train]],
    }
    tested = {f"test_{all_inside}": chains[inside[::-1][: min(n_held_out, task.probes)]]}
    for pattern in patterns(task.hops):
        mixed = len(set(pattern)) > 1
        if pattern != all_inside and (task.mixed_chains or not mixed):
            ordered = order[chains.matches(pattern)[order]]
            tested[f"test_{pattern}"] = chains[ordered[: task.probes]]
    return _Cut(chains, order, trained, tested)


def _dataset(
    task: Any, cut: _Cut, answers: dict[str, Int[np.ndarray, " chain"]] | None = None
) -> Dataset:
    """Spell the splits; `answers` are entities to teach in place of the true ones, by split."""
    world, spelling, other = cut.chains.world, _spelling(task), answers or {}

    def rows(splits: dict[str, Chains]) -> dict:
        return {
            name: rows_from_chains(part, spelling, other.get(name)) for name, part in splits.items()
        }

    return assemble(
        rows(cut.trained),
        rows(cut.tested),
        vocab=vocabulary(world, spelling),
        positions=position_names(task.hops, spelling),
        probes=task.probes,
        world=world,
    )


def n_train_rows(phi: int | float, n_id_facts: int, available: int, what: str) -> int:
    """How many chains, or whatever `what` is, phi asks for; an `InputError` if there are fewer.

    Phi is a ratio of counts: phi * n_id_facts of them, not a share of those there are.
    """
    # Compared before it is rounded: what is too large to count is too large, not an error.
    if phi * n_id_facts > available + 0.5 or (wanted := round(phi * n_id_facts)) > available:
        largest = math.floor(1000 * available / n_id_facts) / 1000
        raise InputError(
            f"phi = {phi} asks for {phi * n_id_facts:.0f} training {what} ({n_id_facts} I facts x"
            f" phi), but after the holdout there are {available}: phi can be at most {largest}"
        )
    return wanted
