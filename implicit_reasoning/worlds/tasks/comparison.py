"""Tasks of comparison: compare the values of one attribute of two entities.

A fact is `(entity, attribute) -> value`. The entities of the world are the compared entities,
followed by the values. Values have no facts. For every attribute, some compared entities have the
role `I` (in distribution) and the rest have the role `O` (out of distribution). The choice is
random and independent for each attribute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import END_TOKEN, Dataset, Rows, assemble, make_rows
from implicit_reasoning.worlds.tasks.cut import n_train_rows
from implicit_reasoning.worlds.tasks.pairs import PATTERNS, ComparisonPairs
from implicit_reasoning.worlds.tasks.transitivity import from_comparisons, from_facts_too
from implicit_reasoning.worlds.world import (
    NONE,
    ROLES,
    Stream,
    World,
    check_count,
    check_range,
    stream,
    world_from_table,
)

POSITIONS = ("attribute", "q", "entity1", "mask", "entity2")


def comparison(task: Any) -> Dataset:
    """Build the comparison task: facts `(entity, attribute) -> value`, and comparisons of values.

    A comparison is `[attribute, <q>, entity1, <mask>, entity2] -> label`. The label token
    identifies the attribute and the result: the value of entity1 is smaller than (truth `label` 0),
    equal to (1) or larger than (2) the value of entity2. For every attribute, a random fraction of
    the *entities* has the role `O`, and the rest have the role `I`. The training rows are all facts
    and `round(phi * n_id_facts)` comparisons of two `I` entities. The comparisons for a smaller phi
    are a prefix of the comparisons for a larger phi. Each unordered pair of `I` entities is held
    out with probability `holdout`. A held-out pair is never trained on and is tested in both
    orders.

    Args:
      task: settings with attributes world_seed, n_entities, n_attributes, n_values, ood_fraction
        (fraction of `O` entities); phi (training comparisons per `I` fact); holdout; probes
        (maximum number of probes per split); mixed_chains (whether to test pairs of an `I` and an
        `O` entity, which Wang et al. omit); end_token (whether to supervise `</a>`).

    Raises:
      InputError: a setting is out of bounds, or there are fewer comparisons than phi requires.

    Source: Wang et al. 2024, section 4.
    """
    check_range("phi", task.phi, 0)
    pairs = _pairs(task)
    n_train = n_train_rows(task.phi, pairs.sides[0].size, pairs.n_trainable, "comparisons")
    facts = {"id_triples": _facts(pairs.world, "I"), "ood_triples": _facts(pairs.world, "O")}
    patterns = PATTERNS if task.mixed_chains else ("ii", "oo")
    tested = {f"test_{kind}": pairs.draw(kind, task.probes, tested=True) for kind in patterns}
    return _dataset(task, pairs.world, facts | {"train_ii": pairs.draw("ii", n_train)}, tested)


def complex(task: Any) -> Dataset:
    """Build the task of comparing entities whose facts are not taught but can be inferred.

    The training rows are the facts of entities with role `I`, a fraction `share` of the comparisons
    of two `I` entities, and the same fraction of the comparisons of an `I` and an `O` entity. The
    facts of `O` entities are not taught. The split `ood_triples` tests whether the model infers
    these facts. The split `test_hard` has pairs of `O` entities. Their answers follow from facts
    and comparisons together, but not from comparisons alone. Each label has the same number of rows
    in `test_hard`. For one attribute, two graphs define what follows:

    - *comparisons alone*: an edge leads from the smaller to the larger entity of each training
      comparison, and edges in both directions connect equal entities. A path in one direction
      implies smaller or larger; paths in both directions imply equal.
    - *with facts*: the graph also has such edges between all `I` entities, according to their
      values.

    A pair is in `test_hard` if its answer follows from the second graph but not from the first. The
    split `test_oo` has random pairs of `O` entities, which may include pairs of `test_hard`.

    Args:
      task: settings as for `comparison`, without phi and mixed_chains; share (fraction of the
        comparisons that are trained on); hard_queries (maximum number of `test_hard` rows per
        label).

    Raises:
      InputError: a setting is out of bounds.

    Source: Wang et al. 2024, section 5 and appendix F (3%, 50 per label).
    """
    check_range("share", task.share, 0, 1)
    check_range("hard_queries", task.hard_queries, 1)
    pairs = _pairs(task)
    available = {"ii": pairs.n_trainable, "io": pairs.count("io"), "oi": pairs.count("oi")}
    chosen = {
        f"train_{kind}": pairs.draw(kind, round(task.share * n)) for kind, n in available.items()
    }
    tested = {
        "ood_triples": _facts(pairs.world, "O")[: task.probes],
        "test_ii": pairs.draw("ii", task.probes, tested=True),
        "test_hard": _hard(pairs, np.concatenate(list(chosen.values())), task.hard_queries),
        "test_oo": pairs.draw("oo", task.probes),
    }
    return _dataset(task, pairs.world, {"id_triples": _facts(pairs.world, "I")} | chosen, tested)


def _pairs(task: Any) -> ComparisonPairs:
    check_range("n_entities", task.n_entities, 2)
    check_range("n_attributes", task.n_attributes, 1)
    check_range("n_values", task.n_values, 1)
    check_range("ood_fraction", task.ood_fraction, 0, 1)
    check_range("holdout", task.holdout, 0, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    n_cells = (task.n_entities + task.n_values) * task.n_attributes
    check_count("(n_entities + n_values) x n_attributes", n_cells)
    shape = (task.n_entities, task.n_attributes)
    value = stream(task.world_seed, Stream.TAILS).integers(task.n_values, size=shape)
    tail = np.full((task.n_entities + task.n_values, task.n_attributes), NONE)
    tail[: task.n_entities] = task.n_entities + value
    # Random rank of every entity for every attribute; the last entities are O.
    rank = stream(task.world_seed, Stream.ROLES).random(shape).argsort(0).argsort(0)
    outside = rank >= task.n_entities - round(task.ood_fraction * task.n_entities)
    role = np.where(outside, ROLES.index("O"), ROLES.index("I")).astype(np.int8)
    world = world_from_table(tail, role.ravel(), task.world_seed)
    return ComparisonPairs.of(world, task.n_entities, task.holdout)


def _facts(world: World, role: str) -> Int[np.ndarray, "fact 2"]:
    """Return (attribute, entity) of the facts with a role, in random order."""
    order = stream(world.seed, Stream.FACT_ORDER).permutation(world.n_facts)
    order = order[world.facts.role[order] == ROLES.index(role)]
    return np.column_stack([world.facts.relation[order], world.facts.head[order]])


def _hard(
    pairs: ComparisonPairs, compared: np.ndarray, n_queries: int
) -> Int[np.ndarray, "pair 3"]:
    """Return the rows of `test_hard`, in the format of `ComparisonPairs.draw`."""
    found: list[list[np.ndarray]] = [[], [], []]
    for attribute, asked in enumerate(pairs.sides[1]):
        value, known = pairs.world.tail[:, attribute], np.zeros(pairs.world.n_entities, bool)
        known[pairs.sides[0][attribute]] = True
        here = compared[compared[:, 0] == attribute, 1:]
        easy = from_comparisons(value, here, asked)
        label = from_facts_too(value, known, here, asked)
        for kind, queries in enumerate(found):
            # An entity equals itself by comparisons alone, so self-pairs are never hard.
            first, second = np.nonzero((label == kind) & (easy != kind))
            same = np.full(len(first), attribute)
            queries.append(np.column_stack([same, asked[first], asked[second]]))
    by_label = [np.concatenate(queries) for queries in found]
    n_each = min(n_queries, *map(len, by_label))
    random = stream(pairs.world.seed, Stream.PAIRS, len(PATTERNS))
    chosen = [random.permutation(queries)[:n_each] for queries in by_label]
    return random.permutation(np.concatenate(chosen)).astype(np.int32)


def _dataset(
    task: Any, world: World, trained: dict[str, np.ndarray], tested: dict[str, np.ndarray]
) -> Dataset:
    """Build the dataset from the facts or comparisons of each split.

    A fact is a row (attribute, entity). A comparison is a row (attribute, entity1, entity2).
    """

    def rows(splits: dict[str, np.ndarray]) -> dict[str, Rows]:
        return {
            name: _rows(world, task.end_token, *part.astype(np.int32).T)
            for name, part in splits.items()
        }

    return assemble(
        rows(trained),
        rows(tested),
        vocab=_vocabulary(task),
        positions=POSITIONS,
        probes=task.probes,
        world=world,
    )


def _rows(world: World, end_token: bool, attribute: np.ndarray, *entities: np.ndarray) -> Rows:
    """Convert facts (one entity) or comparisons (two entities) to rows."""
    # Token ids: entities and values, attributes, three labels per attribute, <q>, <mask>, </a>.
    first_label = world.n_entities + world.n_relations
    q = first_label + 3 * world.n_relations
    end = q + 2 if end_token else None
    values = [world.tail[entity, attribute] for entity in entities]
    truth = {"attribute": attribute}
    for number, (entity, value) in enumerate(zip(entities, values, strict=True), start=1):
        truth |= {
            f"entity{number}": entity,
            f"value{number}": value,
            f"fact{number}": world.fact_id[entity, attribute],
            f"role{number}": world.role[entity, attribute],
        }
    about = world.n_entities + attribute
    if len(entities) == 1:
        return make_rows([entities[0], about], values, truth, end)
    label = 1 + np.sign(values[0] - values[1])
    marks = [np.full(len(attribute), token) for token in (q, q + 1)]
    prompt = [about, marks[0], entities[0], marks[1], entities[1]]
    return make_rows(prompt, [first_label + 3 * attribute + label], truth | {"label": label}, end)


def _vocabulary(task: Any) -> tuple[str, ...]:
    """Return the names of the tokens, as published."""
    attributes = range(task.n_attributes)
    return (
        *(f"<e_{i}>" for i in range(task.n_entities)),
        *(f"<{i}>" for i in range(task.n_values)),
        *(f"<attr_{i}>" for i in attributes),
        *(f"<attr_{i}_{label}>" for i in attributes for label in range(3)),
        *("<q>", "<mask>"),
        *([END_TOKEN] if task.end_token else []),
    )
