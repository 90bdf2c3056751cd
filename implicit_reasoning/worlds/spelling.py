"""From chains to tokens: how entities, relations and answers are written down as rows.

What a row says does not depend on how it is spelt: the truth about a chain is the same in every
spelling, only tokens, targets and answer positions differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains
from implicit_reasoning.worlds.dataset import END_TOKEN, Rows, make_rows
from implicit_reasoning.worlds.world import World

ORDERS = ("e r r", "r r e")
"""Entity first, as published; or relations first, so that all hops share the last position."""


class Spelling(NamedTuple):
    """How chains are written.

    Attributes:
      order: of `ORDERS`: the prompt is [e1, r1, r2, ...] or [r1, r2, ..., e1].
      names: 0 to write an entity as one token; n to write it as a first and a last name, out of n
        each (Wang et al. 2024, appendix C). All names are used equally often, or nearly: each by
        n_entities / n entities, the paper's "token multiplicity".
      end_token: put `</a>` after the answer, and supervise it, as published.
    """

    order: str = "e r r"
    names: int = 0
    end_token: bool = False

    def check(self, world: World) -> None:
        """Raise an `InputError` if entities of this world cannot be written so."""
        if self.order not in ORDERS:
            known = " or ".join(map(repr, ORDERS))
            raise InputError(f"order is {self.order!r}; it must be {known}")
        if self.names and not (1 <= self.names <= world.n_entities <= self.names**2):
            raise InputError(
                f"names = {self.names} is out of bounds: {world.n_entities} entities need at least"
                f" {int(np.ceil(world.n_entities**0.5))} first and last names (so that every pair"
                f" is another entity), and at most {world.n_entities}; 0 writes one token each"
            )


PLAIN = Spelling()
"""Entity first, a token each, and nothing after the answer."""


def vocabulary(world: World, spelling: Spelling = PLAIN) -> tuple[str, ...]:
    """Names of the tokens: entities (or first, then last names), relations, then `</a>` if used."""
    if spelling.names:
        entities = [f"<{kind}_{i}>" for kind in ("first", "last") for i in range(spelling.names)]
    else:
        entities = [f"<e_{i}>" for i in range(world.n_entities)]
    relations = [f"<r_{i}>" for i in range(world.n_relations)]
    return (*entities, *relations, *([END_TOKEN] if spelling.end_token else []))


def position_names(hops: int, spelling: Spelling = PLAIN) -> tuple[str, ...]:
    """Names of the positions of a prompt of so many hops: e1, r1, r2; or e1.first, e1.last, ..."""
    entity = ("e1.first", "e1.last") if spelling.names else ("e1",)
    relations = tuple(f"r{hop + 1}" for hop in range(hops))
    return (*entity, *relations) if spelling.order == "e r r" else (*relations, *entity)


def rows_from_chains(
    chains: Chains,
    spelling: Spelling = PLAIN,
    answers: Int[np.ndarray, " chain"] | None = None,
) -> Rows:
    """Write chains (or, with one hop, atomic facts) as rows: `[e1, r1, r2] -> e3`; see `make_rows`.

    Args:
      chains: of one world.
      spelling: how to write them.
      answers: entities to teach in place of the true ones, [chain]; the rest of the truth stays.
    """
    world = chains.world
    taught = chains.entities[:, -1] if answers is None else answers
    entity, answer = (_spell(e, spelling.names) for e in (chains.entities[:, 0], taught))
    # Relations have their token numbers after those of the entities, or of their names.
    first = 2 * spelling.names or world.n_entities
    relations = [first + relation for relation in chains.relations.T]
    prompt = [*entity, *relations] if spelling.order == "e r r" else [*relations, *entity]
    end = first + world.n_relations if spelling.end_token else None
    truth = chain_truth(chains.entities, chains.relations, chains.facts, chains.roles)
    return make_rows(prompt, answer, truth, end)


def _spell(entity: Int[np.ndarray, " row"], names: int) -> list[Int[np.ndarray, " row"]]:
    """The tokens of entities, one column a token."""
    if not names:
        return [entity]
    # Pairs (i, i), then (i, i + 1), ...: for every number of entities all names are used alike.
    first = entity % names
    return [first, names + (first + entity // names) % names]


def chain_truth(
    entities: Int[np.ndarray, "chain entity"],
    relations: Int[np.ndarray, "chain hop"],
    facts: Int[np.ndarray, "chain hop"],
    roles: Int[np.ndarray, "chain hop"],
) -> dict[str, Int[np.ndarray, " chain"]]:
    """The truth columns of chains, before what depends on their spelling."""
    truth = {"e1": entities[:, 0]}
    for hop in range(facts.shape[1]):
        truth[f"r{hop + 1}"] = relations[:, hop]
        truth[f"e{hop + 2}"] = entities[:, hop + 1]
    truth |= {f"fact{hop + 1}": column for hop, column in enumerate(facts.T)}
    return truth | {f"role{hop + 1}": column for hop, column in enumerate(roles.T)}
