"""Tasks of multi-hop composition: the base task, and variants that serve as controls.

A variant changes which facts are taught as atomic triples, which chains are trained on, or which
answers are taught. All variants share the world, the order of the chains and the spelling of
`composition`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.tasks.cut import make_cut, make_plain_world
from implicit_reasoning.worlds.tasks.rows import decoys, make_dataset
from implicit_reasoning.worlds.world import Stream, check_range, redraw_tails, stream, with_role


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
        names, end_token, chain_of_thought (see `Spelling`); identity (see `with_identity`).

    Raises:
      InputError: a setting is out of bounds, or there are fewer chains than phi requires.

    Source: Wang et al. 2024, section 3.1; Ye et al. 2025 (mixed patterns). The notebook of Ye et
    al. treats phi as a fraction of all chains and therefore trains on every chain. Here, phi is the
    ratio that the paper reports.
    """
    return make_dataset(task, make_cut(task, make_plain_world(task)))


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
    cut = make_cut(task, make_plain_world(task))
    untaught = cut.trained.pop("id_triples")[: task.probes]
    return make_dataset(task, cut._replace(tested={"id_triples": untaught, **cut.tested}))


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
    cut = make_cut(task, with_role(make_plain_world(task), "H", task.held_out_fraction))
    facts = cut.trained["id_triples"]
    cut.trained["id_triples"] = facts[facts.allows("I")]
    held_out = {"held_out_id_triples": facts[facts.allows("H")][: task.probes]}
    return make_dataset(task, cut._replace(tested={**held_out, **cut.tested}))


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
    cut = make_cut(task, with_role(make_plain_world(task), "R", task.restricted_fraction))
    all_known = cut.chains.allows(*["IR"] * task.hops)
    restricted = cut.in_order(all_known & ~cut.chains.matches("i" * task.hops))
    inside, *others = cut.tested
    tested = {inside: cut.tested[inside], f"{inside}_sr": restricted[: task.probes]}
    return make_dataset(
        task, cut._replace(tested=tested | {name: cut.tested[name] for name in others})
    )


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
    table_a = make_plain_world(task)
    cut = make_cut(task, redraw_tails(table_a, Stream.SHADOW_TAILS))
    # The same pairs exist in both tables, so the fact numbers are the same.
    taught = table_a.facts.tail
    answers = {
        name: taught[part.facts[:, 0]] for name, part in cut.trained.items() if part.hops == 1
    }
    dataset = make_dataset(task, cut, answers)
    truth = dataset.truth | {"decoy": decoys(dataset, table_a)}
    return dataclasses.replace(dataset, truth=truth)


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
    cut = make_cut(task, make_plain_world(task))
    random = stream(task.world_seed, Stream.SCRAMBLED_ANSWERS)
    # Test chains come first, so that their answers, like the chains, do not depend on phi.
    answers = {
        name: random.integers(task.n_entities, size=len(part), dtype=np.int32)
        for name, part in {**cut.tested, **cut.trained}.items()
        if part.hops > 1
    }
    return make_dataset(task, cut, answers)
