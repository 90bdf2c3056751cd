"""Count the tails of an entity among the entities with the highest logits.

Source: Geva et al. 2023, "Dissecting recall of factual associations in auto-regressive language
models", section 5 (attribute rate).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

WHOSE = ("own", "another's")
"""Whose tails are counted: those of the entity itself, or those of another entity (null)."""


def tails_of(
    dataset: Dataset, entity: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, "whose row entity"]:
    """Return masks of the tails of each row's entity, and of another random entity."""
    world = world_of(dataset)
    tails = np.zeros((world.n_entities, world.n_entities), bool)
    tails[world.facts.head, world.facts.tail] = True
    # Each entity number gets a random shift that is not 0, so the other entity differs.
    shift = np.random.default_rng(0).integers(1, world.n_entities, world.n_entities)
    another = (np.arange(world.n_entities) + shift) % world.n_entities
    return np.stack([tails[entity], tails[another[entity]]])


def tail_shares(
    logits: Float[Array, "row token"], tails: Bool[Array, "whose row entity"]
) -> Float[Array, "whose row"]:
    """Return the share of an entity's m tails that are among the m entities of highest logit."""
    entities = logits[:, : tails.shape[-1]]
    tokens = jnp.broadcast_to(jnp.arange(tails.shape[-1])[:, None], tails.shape[:0:-1])
    rank = ranks(entities, tokens[None])[0].T  # [row, entity]
    count = tails.sum(-1)
    return ((rank[None] < count[..., None]) & tails).sum(-1) / count
