"""Tasks of multi-hop composition: the base task, and variants that serve as controls.

A variant changes which facts are taught as atomic triples, which chains are trained on, or which
answers are taught. All variants use the same world, the same order of chains and the same token
format as `composition`.
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
    The test rows are held-out chains of `I` facts, and chains with at least one `O` fact. Each
    pattern of roles, such as `oi`, has its own test split. The seed of the world determines one
    random order of all chains. `train_ii` is taken from the front of this order, so the chains for
    a smaller phi are a prefix of the chains for a larger phi. `test_ii` is taken from the back and
    does not depend on phi.

    Args:
      task: settings with attributes world_seed, n_entities, n_relations, out_degree, ood_fraction
        (see `make_world`); hops (2 to 6); phi (training chains per `I` fact); holdout (fraction of
        the chains of `I` facts that training excludes); probes (maximum number of probes per
        split); mixed_chains (False omits the patterns that mix `I` and `O`, as in Wang et al.);
        order, names, end_token, chain_of_thought (see `Spelling`); identity (see `with_identity`).

    Raises:
      InputError: a setting is out of bounds, or there are fewer chains than phi requires.

    Source: Wang et al. 2024, section 3.1; Ye et al. 2025 (mixed patterns). The notebook of Ye et
    al. treats phi as a fraction of all chains and therefore trains on every chain. Here, phi is the
    ratio that the paper reports.
    """
    return make_dataset(task, make_cut(task, make_plain_world(task)))


def without_id_triples(task: Any) -> Dataset:
    """Build the composition task without the atomic triples of facts with role `I`.

    In training, `I` facts occur only in chains. The training splits are `ood_triples` and
    `train_ii`; `id_triples` is a test split. Everything else is the same as in `composition` with
    the same settings. A model can still answer `test_ii` by the shortcut of row completion. For
    `test_oi`, no training row connects the token of a bridge entity with the second hop from this
    entity.

    Args:
      task: settings as for `composition`.

    Source: Ye et al. 2025, "without ID triples" (figure 3 of the paper).
    """
    cut = make_cut(task, make_plain_world(task))
    untaught = cut.trained.pop("id_triples")[: task.probes]
    return make_dataset(task, cut._replace(tested={"id_triples": untaught, **cut.tested}))


def held_out_id_triples(task: Any) -> Dataset:
    """Build the composition task in which some facts are taught in chains but not as triples.

    A fraction of the facts with role `I` gets the role `H`. An `H` fact occurs in training chains
    like an `I` fact, but is not taught as a triple. The task tests whether a model can state facts
    that training shows only in chains. The test split `held_out_id_triples` has the `H` facts. The
    training split `id_triples` has the remaining `I` facts.

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
    """Build the composition task in which training uses some facts only at the first hop.

    These facts get the role `R`. An `R` fact is taught as a triple, and training chains use it as a
    first hop like an `I` fact. The test split `test_ii_sr` has the chains with an `R` fact at a
    later hop and no `O` fact. These chains are out of distribution only because of the hop at which
    the `R` fact is used. A model that stores second hops separately from single facts stays at
    chance on `test_ii_sr`.

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
    """Build the composition task in which triples and chains teach different bridges.

    Two tables have facts for the same (entity, relation) pairs, with independent random tails.
    Atomic triples teach table A. Chains follow table B, the `world` of the dataset, at every hop.
    The tail of (e1, r1) in table A is the truth column `decoy`. `decoy` can be decoded after (e1,
    r1), because the atomic prompt is a prefix of the chain. The chain does not use `decoy`. The
    bridge of the chain (truth `e2`) is the tail of (e1, r1) in table B. All truth columns refer to
    table B, except that `answer` is the taught answer. For an atomic row, the taught answer is the
    tail in table A, so `answer` equals `decoy`.

    A model can learn all training rows. It can learn `test_ii` by inferring table B from chains, as
    in the task `without_id_triples`. On patterns with an `O` fact, only chance accuracy is
    possible, because no training row depends on the tail of an `O` fact in table B.

    Args:
      task: settings as for `composition`.

    Source: a control designed for this project. It tests the inference that a model uses every
    state that can be decoded.
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
    """Build the composition task with random answers, for which the bridge is not needed.

    Atomic triples are true, so the bridge can be decoded. The answer of each chain is drawn once,
    uniformly from all entities. The truth columns e2, e3, ... follow the world; `answer` is the
    taught answer. A model can learn the training chains only by memorization. On every test split
    of chains, only chance accuracy is possible.

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
