"""Tasks of multi-hop composition: the base task, and variants that serve as controls.

A variant changes which facts are taught as atomic triples, which chains are trained on, or which
answers are taught. All variants share the world, the order of the chains and the spelling of
`composition`.
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
    """Build the composition task `(e1, r1, r2) -> e3`, trained on single facts and on some chains.

    The training rows are all facts, and `round(phi * n_id_facts)` chains of facts with role `I`.
    The test rows are held-out chains of `I` facts, and chains with at least one `O` fact; each role
    pattern has its own test split. The world's seed determines one random order of all chains, and
    every split of chains is a part of this order. `train_ii` is taken from the front, so the chains
    for a smaller phi are a prefix of the chains for a larger phi. `test_ii` is taken from the back,
    so it has the same chains for all phi.

    Args:
      task: settings with attributes world_seed, n_entities, n_relations, out_degree, ood_fraction
        (see `make_world`); hops (2 to 6); phi (training chains per `I` fact); holdout (fraction of
        the chains of `I` facts that training excludes); probes (maximum number of probes per
        split);
        mixed_chains (False omits the patterns that mix `I` and `O`, as in Wang et al.); order,
        names, end_token (see `Spelling`).

    Raises:
      InputError: a setting is out of bounds, or there are fewer chains than phi requires.

    Source: Wang et al. 2024, section 3.1; Ye et al. 2025 (mixed patterns). The notebook of Ye et
    al. treats phi as a fraction of all chains and therefore trains on every chain. Here, phi is the
    ratio that the paper reports.
    """
    world = _world(task)
    return _dataset(task, _cut(task, world))


def without_id_triples(task: Any) -> Dataset:
    """Build the composition task without the atomic triples of facts with role `I`.

    In training, these facts occur only in chains. The training splits are `ood_triples` and
    `train_ii`; `id_triples` is a test split. The chains are those of `composition` with the same
    settings, so the two tasks differ in nothing else. `test_ii` can still be answered by row
    completion. For `test_oi`, no training row connects the token of a bridge entity with the use of
    this entity in a second hop.

    Args:
      task: settings as for `composition`.

    Source: Ye et al. 2025, "without ID triples" (figure 3 of the paper).
    """
    cut = _cut(task, _world(task))
    untaught = cut.trained.pop("id_triples")[: task.probes]
    return _dataset(task, cut._replace(tested={"id_triples": untaught, **cut.tested}))


def held_out_id_triples(task: Any) -> Dataset:
    """Build the composition task in which some facts are taught in chains but not as triples.

    These facts, a fraction of the facts with role `I`, get the role `H`. The task tests whether a
    model can state facts that it has only used in chains: `held_out_id_triples` is a test split of
    the `H` facts, and `id_triples` has the remaining `I` facts. In chains, `H` facts count as `I`
    facts.

    Args:
      task: settings as for `composition`, and held_out_fraction (fraction of `I` facts held out).

    Source: Ye et al. 2025, "held-out ID triples".
    """
    check_range("held_out_fraction", task.held_out_fraction, 0, 1)
    cut = _cut(task, with_role(_world(task), "H", task.held_out_fraction))
    facts = cut.trained["id_triples"]
    cut.trained["id_triples"] = facts[facts.allows("I")]
    held_out = {"held_out_id_triples": facts[facts.allows("H")][: task.probes]}
    return _dataset(task, cut._replace(tested={**held_out, **cut.tested}))


def second_hop_restricted(task: Any) -> Dataset:
    """Build the composition task in which training never uses some facts after the first hop.

    These facts get the role `R`. They are taught as triples and used as first hops, where they
    count as `I`. The test split `test_ii_sr` has the chains with an `R` fact at a later hop and no
    `O` fact. Only the hop at which the `R` fact is used makes these chains out of distribution. A
    model that stores second hops separately from single facts stays at chance on `test_ii_sr`.

    Args:
      task: settings as for `composition`, and restricted_fraction (fraction of `I` facts
        restricted).

    Source: Ye et al. 2025, section 2.4 and appendix D.1 (the published version has no `O` facts).
    """
    check_range("restricted_fraction", task.restricted_fraction, 0, 1)
    cut = _cut(task, with_role(_world(task), "R", task.restricted_fraction))
    all_known = cut.chains.allows(*["IR"] * task.hops)
    restricted = cut.in_order(all_known & ~cut.chains.matches("i" * task.hops))
    inside, *others = cut.tested
    tested = {inside: cut.tested[inside], f"{inside}_sr": restricted[: task.probes]}
    return _dataset(task, cut._replace(tested=tested | {name: cut.tested[name] for name in others}))


def shadow(task: Any) -> Dataset:
    """Build the composition task with a decoy bridge: facts and chains come from different tables.

    Two tables have facts for the same (entity, relation) pairs, with independent random tails.
    Atomic triples teach table A. Chains follow table B, which is the dataset's `world`, at every
    hop. The tail of (e1, r1) in table A (truth `decoy`) can be decoded after (e1, r1), because the
    atomic prompt is a prefix of the chain, but the chain does not use it. The answer of the chain
    follows from the tail of (e1, r1) in table B, its bridge (truth e2). All truth columns refer to
    table B, except that `answer` is the taught answer. For atomic rows, the taught answer is the
    tail in table A, so `answer` equals `decoy`.

    A model can learn all training rows. It can learn `test_ii` by inferring table B from chains, as
    in the task `without_id_triples`. On patterns with an `O` fact, only chance accuracy is
    possible, because no row states the corresponding fact of table B.

    Args:
      task: settings as for `composition`.

    Source: a control designed for this project, for the inference that a state is used because it
    can be decoded.
    """
    table_a = _world(task)
    cut = _cut(task, redraw_tails(table_a, Stream.SHADOW_TAILS))
    # The same pairs exist in both tables, so the fact numbers are the same.
    taught = table_a.facts.tail
    answers = {
        name: taught[part.facts[:, 0]] for name, part in cut.trained.items() if part.hops == 1
    }
    dataset = _dataset(task, cut, answers)
    decoy = {"decoy": taught[dataset.truth["fact1"]]}
    return dataclasses.replace(dataset, truth=dataset.truth | decoy)


def scrambled(task: Any) -> Dataset:
    """Build the composition task with random answers: the bridge is decodable, but never needed.

    Atomic triples are true. The answer of each chain is random, drawn once and uniformly from all
    entities. The truth columns e2, e3, ... are those of the world; `answer` is the taught answer. A
    model can learn all training rows only by memorization. On every test split of chains, only
    chance accuracy is possible.

    Args:
      task: settings as for `composition`.

    Source: a control designed for this project, for instruments that detect composition.
    """
    cut = _cut(task, _world(task))
    random = stream(task.world_seed, Stream.SCRAMBLED_ANSWERS)
    # Test chains come first, so that their answers, like the chains, do not depend on phi.
    answers = {
        name: random.integers(task.n_entities, size=len(part), dtype=np.int32)
        for name, part in {**cut.tested, **cut.trained}.items()
        if part.hops > 1
    }
    return _dataset(task, cut, answers)


class _Cut(NamedTuple):
    """All chains, their random order, and the splits taken from it."""

    chains: Chains
    order: Int[np.ndarray, " chain"]
    trained: dict[str, Chains]
    tested: dict[str, Chains]

    def in_order(self, which: Bool[np.ndarray, " chain"]) -> Chains:
        """Return the selected chains, in the random order."""
        return self.chains[self.order[which[self.order]]]


def _world(task: Any) -> World:
    world = make_world(
        task.n_entities, task.n_relations, task.out_degree, task.ood_fraction, task.world_seed
    )
    _spelling(task).check(world)
    return world


def _spelling(task: Any) -> Spelling:
    return Spelling(task.order, task.names, task.end_token)


MAX_HOPS = 6  # the number of role patterns doubles with each hop
MAX_CHAINS = 2**28  # all chains are enumerated, which takes tens of bytes per chain


def _cut(task: Any, world: World) -> _Cut:
    """Return the splits that the docstring of `composition` describes."""
    check_range("hops", task.hops, 2, MAX_HOPS)
    n_chains = world.n_facts * task.out_degree ** (task.hops - 1)
    if n_chains > MAX_CHAINS:
        raise InputError(
            f"hops = {task.hops} with {world.n_facts:,} facts gives {n_chains:,} chains, but at "
            f"most {MAX_CHAINS:,} are allowed; choose a smaller world or out_degree"
        )
    check_range("holdout", task.holdout, 0, 1)
    check_range("phi", task.phi, 0)
    check_range("probes", task.probes, 1)
    seed, all_inside = task.world_seed, "i" * task.hops
    facts = enumerate_chains(world, 1).shuffled(stream(seed, Stream.FACT_ORDER))
    chains = enumerate_chains(world, task.hops)
    order = random_order(len(chains), stream(seed, Stream.CHAIN_ORDER))

    # Order and select chain numbers first, so that only the selected chains are copied.
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
    """Convert the splits to rows; `answers` replaces the true answers of some splits."""
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
    """Return the number of training rows that phi requires, `round(phi * n_id_facts)`.

    Args:
      phi: ratio of training rows to `I` facts, not a fraction of the available rows.
      n_id_facts: number of `I` facts.
      available: number of rows that are not held out.
      what: name of the rows for the error message, such as "chains".

    Raises:
      InputError: fewer rows are available.
    """
    # Compare before rounding, because a very large product cannot be converted to an int.
    if phi * n_id_facts > available + 0.5 or (wanted := round(phi * n_id_facts)) > available:
        largest = math.floor(1000 * available / n_id_facts) / 1000
        raise InputError(
            f"phi = {phi} needs {phi * n_id_facts:.0f} training {what} ({n_id_facts} I facts x"
            f" phi), but after the holdout there are {available}: phi can be at most {largest}"
        )
    return wanted
