"""Identity rows: optional training rows that lead from an entity to itself.

All tasks with chains have this option. Source: "Identity Bridge", arXiv 2509.24653. In that paper,
models that also learn `e -> e` compose facts that were never composed in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains, random_order, training_roles
from implicit_reasoning.worlds.dataset import Rows, make_rows
from implicit_reasoning.worlds.spelling import spell, vocabulary
from implicit_reasoning.worlds.tasks.cut import Cut, spelling_of
from implicit_reasoning.worlds.world import ROLES, Stream, World, stream, world_from_table

KINDS = ("", "entities", "chains", "both")
"""Choices of `task.identity`: no identity rows, `[e] -> e`, chains, or both."""


def with_identity(
    task: Any, cut: Cut, private: Bool[np.ndarray, " fact"] | None = None
) -> tuple[Cut, dict[str, Rows]]:
    """Add the identity rows that `task.identity` names to the training rows of a task.

    - `entities`: the split `identity_triples` has one row `[e] -> e` for every entity.
    - `chains`: the split `train_identity` has chains with a relation r_id that leads from every
      entity to itself: `(e, r_id, r2) -> T[e, r2]` for each fact that can be a second fact, and
      `(e1, r1, r_id) -> e2` for each fact that can be a first fact. phi does not count these
      chains. Shortcuts and the truth column `evidence1` treat them as training chains.
    - `both`: both kinds of rows are added.

    For chains, r_id becomes the last relation of the world. The facts with r_id have the role `E`
    and are not taught as triples. All other splits keep their rows. Only the numbering of the facts
    changes.

    Args:
      task: the settings of the task.
      cut: the splits of the task.
      private: bool [fact], the second facts that no identity chain may use, so that private chains
        of `ladder` stay private; None if there are none.

    Returns:
      The splits with `train_identity`, and a dict with the rows of `identity_triples`.

    Raises:
      InputError: `task.identity` is unknown, or chains are requested for a task with more than two
        hops.
    """
    # A user's task that calls `composition` may lack this setting, which was added later.
    kind = getattr(task, "identity", "")
    if kind not in KINDS:
        known = " or ".join(map(repr, KINDS))
        raise InputError(f"identity is {kind!r}; it must be {known}")
    rows: dict[str, Rows] = {}
    world, spelling = cut.chains.world, spelling_of(task)
    random = stream(world.seed, Stream.IDENTITY)
    entities = random_order(world.n_entities, random)
    if kind in ("chains", "both"):
        if cut.chains.hops != 2:
            raise InputError(f"identity = {kind!r} requires hops = 2, but hops = {cut.chains.hops}")
        none = np.zeros(world.n_facts, bool)
        cut = _with_chains(cut, none if private is None else private, random)
    if kind in ("entities", "both"):
        spelt = spell(entities, spelling.names)
        # The end token is the last token of the vocabulary.
        last = len(vocabulary(cut.chains.world, spelling)) - 1
        end = last if spelling.end_token else None
        rows["identity_triples"] = make_rows(spelt, spelt, {"e1": entities}, end)
    return cut, rows


def _with_chains(cut: Cut, private: Bool[np.ndarray, " fact"], random: np.random.Generator) -> Cut:
    world = cut.chains.world
    wider = _with_identity_relation(world)

    def moved(facts: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        # Every entity before the head of a fact has one more fact.
        return facts + world.facts.head[facts]

    def in_wider(parts: dict[str, Chains]) -> dict[str, Chains]:
        return {name: Chains(wider, moved(part.facts)) for name, part in parts.items()}

    first, later = (
        np.flatnonzero(np.isin(world.facts.role, [ROLES.index(one) for one in training_roles(hop)]))
        for hop in (0, 1)
    )
    later = later[~private[later]]
    identity = wider.fact_id[:, -1]
    pairs = [
        np.stack([identity[world.facts.head[later]], moved(later)], axis=1),
        np.stack([moved(first), identity[world.facts.tail[first]]], axis=1),
    ]
    chains = Chains(wider, np.concatenate(pairs).astype(np.int32)).shuffled(random)
    trained = {**in_wider(cut.trained), "train_identity": chains}
    return cut._replace(
        chains=Chains(wider, moved(cut.chains.facts)), trained=trained, tested=in_wider(cut.tested)
    )


def _with_identity_relation(world: World) -> World:
    """Return the world with one more relation, which leads from every entity to itself."""
    entities = np.arange(world.n_entities)[:, None]
    tail = np.concatenate([world.tail, entities], axis=1)
    role = np.concatenate([world.role, np.full_like(entities, ROLES.index("E"))], axis=1)
    return world_from_table(tail, role[tail >= 0], world.seed)
