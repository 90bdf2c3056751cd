"""Conversion of chains to tokens.

A `Spelling` is a token format. It determines how entities and answers are written, and in which
order. The truth about a chain does not depend on its token format. Two formats of a chain differ
only in tokens, targets and answer positions.
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
"""Orders of a prompt: the entity first, as published, or all relations first."""


class Spelling(NamedTuple):
    """Token format of chains.

    Attributes:
      order: "e r r" for the prompt [e1, r1, r2, ...], or "r r e" for [r1, r2, ..., e1].
      names: 0 to write an entity as one token; n > 0 to write an entity as two tokens, one of n
        first names and one of n last names (Wang et al. 2024, appendix C). Each name is used for
        about n_entities / n entities. The paper calls this number "token multiplicity".
      end_token: whether to append the supervised token `</a>` to the answer, as published.
      chain_of_thought: whether the answer of a chain begins with its bridge entities, in order.
    """

    order: str = "e r r"
    names: int = 0
    end_token: bool = False
    chain_of_thought: bool = False

    def check(self, world: World) -> None:
        """Check that this token format can represent all entities of a world.

        Raises:
          InputError: the order is unknown, or `names` is too small or too large for the number of
            entities.
        """
        if self.order not in ORDERS:
            known = " or ".join(map(repr, ORDERS))
            raise InputError(f"order is {self.order!r}; it must be {known}")
        if self.names and not (1 <= self.names <= world.n_entities <= self.names**2):
            raise InputError(
                f"names = {self.names} is out of bounds: for {world.n_entities} entities, "
                f"it must be from {int(np.ceil(world.n_entities**0.5))} to "
                f"{world.n_entities}, or 0 for one token per entity"
            )


PLAIN = Spelling()
"""The default spelling: entity first, one token per entity, and no end token."""


def vocabulary(world: World, spelling: Spelling = PLAIN) -> tuple[str, ...]:
    """Return the names of all tokens, in the order of their ids.

    The order is: entities (or first names, then last names), relations, and `</a>` if it is used.
    """
    if spelling.names:
        entities = [f"<{kind}_{i}>" for kind in ("first", "last") for i in range(spelling.names)]
    else:
        entities = [f"<e_{i}>" for i in range(world.n_entities)]
    relations = [f"<r_{i}>" for i in range(world.n_relations)]
    return (*entities, *relations, *([END_TOKEN] if spelling.end_token else []))


def position_names(hops: int, spelling: Spelling = PLAIN) -> tuple[str, ...]:
    """Return the names of the positions of a prompt, such as `("e1", "r1", "r2")`.

    If entities have two tokens, "e1.first" and "e1.last" replace "e1".

    Args:
      hops: number of hops.
      spelling: the token format, which determines the order.
    """
    entity = ("e1.first", "e1.last") if spelling.names else ("e1",)
    relations = tuple(f"r{hop + 1}" for hop in range(hops))
    return (*entity, *relations) if spelling.order == "e r r" else (*relations, *entity)


def rows_from_chains(
    chains: Chains,
    spelling: Spelling = PLAIN,
    answers: Int[np.ndarray, " chain"] | None = None,
) -> Rows:
    """Convert chains, or facts as one-hop chains, to rows `[e1, r1, r2] -> e3`.

    With a chain of thought, the rows of chains are `[e1, r1, r2] -> e2, e3`. The truth column
    `thought` is then the number of answer tokens that belong to bridge entities. It is 0 for facts.

    Args:
      chains: chains of one world.
      spelling: the token format.
      answers: int [chain], entities to teach instead of the last entities of the chains. Of the
        truth columns, only the columns of the answer change.

    Returns:
      The rows, as `make_rows` creates them.
    """
    world = chains.world
    taught = chains.entities[:, -1] if answers is None else answers
    entity, answer = (spell(e, spelling.names) for e in (chains.entities[:, 0], taught))
    bridges = chains.entities.T[1:-1] if spelling.chain_of_thought else ()
    thought = [token for bridge in bridges for token in spell(bridge, spelling.names)]
    # Token ids of relations follow those of entities or names.
    first = 2 * spelling.names or world.n_entities
    relations = [first + relation for relation in chains.relations.T]
    prompt = [*entity, *relations] if spelling.order == "e r r" else [*relations, *entity]
    end = first + world.n_relations if spelling.end_token else None
    truth = chain_truth(chains.entities, chains.relations, chains.facts, chains.roles)
    if spelling.chain_of_thought:
        truth["thought"] = np.full(len(chains), len(thought), np.int32)
    return make_rows(prompt, [*thought, *answer], truth, end)


def spell(entity: Int[np.ndarray, " row"], names: int) -> list[Int[np.ndarray, " row"]]:
    """Convert entities to tokens.

    Args:
      entity: entity numbers.
      names: 0 for one token per entity, n > 0 for a first and a last name (see `Spelling`).

    Returns:
      A list with one column [row] per token.
    """
    if not names:
        return [entity]
    # The order of the pairs is (i, i), then (i, i + 1), and so on, so that all names are used
    # almost equally often for any number of entities.
    first = entity % names
    return [first, names + (first + entity // names) % names]


def chain_truth(
    entities: Int[np.ndarray, "chain entity"],
    relations: Int[np.ndarray, "chain hop"],
    facts: Int[np.ndarray, "chain hop"],
    roles: Int[np.ndarray, "chain hop"],
) -> dict[str, Int[np.ndarray, " chain"]]:
    """Return the truth columns of chains that do not depend on the token format.

    Args:
      entities: e1, e2, ... of each chain.
      relations: r1, r2, ... of each chain.
      facts: the fact number at each hop.
      roles: the role of the fact at each hop, as an index into `ROLES`.

    Returns:
      Columns by name: e1, r1, e2, ..., fact1, ..., role1, ...
    """
    truth = {"e1": entities[:, 0]}
    for hop in range(facts.shape[1]):
        truth[f"r{hop + 1}"] = relations[:, hop]
        truth[f"e{hop + 2}"] = entities[:, hop + 1]
    truth |= {f"fact{hop + 1}": column for hop, column in enumerate(facts.T)}
    return truth | {f"role{hop + 1}": column for hop, column in enumerate(roles.T)}
