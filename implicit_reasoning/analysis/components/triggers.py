"""List the possible triggers of neurons, and the states in which each trigger is present.

A trigger is a value of a variable, such as the bridge e2 = 7, a fact, such as (e1, r1) = (3, 5), or
a whole chain. The states are the distinct prefixes of the world's chains at each position. A
trigger is present in a state if the prefix determines it.

The trigger with the highest F1 of many has a high F1 by chance (selection bias). A trigger that is
present in several states is therefore chosen on one half of the states and scored on the second
half. Neither half contains a first fact of the other half. The exception is a trigger that a single
first fact implies, whose states are divided by their last relation. A trigger that is present in
one state only, such as a fact at the position of its relation, has no second half. It is scored on
all states, which the world determines completely.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.analysis.states import determines, need_chains
from implicit_reasoning.worlds import Dataset, prefix_keys
from implicit_reasoning.worlds.dataset import world_of

CHAIN = "chain"
"""Name of the variable whose values are whole chains."""

FACT = "fact"
"""Beginning of the names of variables whose values are facts: `fact1`, `fact2`, ..."""

_SEED = 0


class Triggers(NamedTuple):
    """The values of one variable at one position, as triggers of neurons.

    Attributes:
      values: int32 [state], the value in each state.
      second: bool [state], whether the state belongs to the half on which triggers are scored.
      scored: bool [value], whether both halves contain a state with the value. If the variable has
        at most one state for each value, all values that occur are scored, on all states.
      often: bool [value], whether both halves contain at least two states with the value.
      ambiguous: bool [value], whether a value of another variable is present in the same states.
      key: int32 [value, part], the entity of the trigger and its relations, in the order of the
        prompt; -1 where the trigger has no such part. A fact has its head and its relation. A chain
        has e1 and all relations.
      target: int32 [value], the entity that the trigger stands for or leads to; -1 for relations.
        An entity stands for itself, a fact leads to its tail, and a chain leads to its answer.
    """

    values: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    scored: Bool[np.ndarray, " value"]
    often: Bool[np.ndarray, " value"]
    ambiguous: Bool[np.ndarray, " value"]
    key: Int[np.ndarray, "value part"]
    target: Int[np.ndarray, " value"]


class PositionStates(NamedTuple):
    """The distinct states at one position, with their triggers.

    Attributes:
      tokens: int32 [state, token], the prefix of each state.
      shared: for each variable whose values occur in several states, its triggers.
      alone: for each variable whose values occur in one state each, its triggers.
    """

    tokens: Int[np.ndarray, "state token"]
    shared: dict[str, Triggers]
    alone: dict[str, Triggers]


class _Variable(NamedTuple):
    """A variable of chains: its value in each chain, and the meaning of the values."""

    values: Int[np.ndarray, " chain"]
    known_from: str  # the first position at which the prefix determines the variable
    key: Int[np.ndarray, "value part"]
    target: Int[np.ndarray, " value"]


def specificity(variable: str) -> int:
    """Return 0 for an entity or a relation, 1 for a fact and 2 for a chain.

    If two triggers fit a neuron equally well, the more specific one is its key. Otherwise, a neuron
    for one fact would seem to stand for a bridge to which the chosen half has one fact only.
    """
    return 2 if variable == CHAIN else int(variable.startswith(FACT))


def position_states(dataset: Dataset, most: int) -> dict[str, PositionStates]:
    """Return the distinct states at each position, with their triggers.

    Args:
      dataset: a dataset of a chain task.
      most: maximum number of chains. If the world has more chains, a random sample is used.

    Raises:
      NotApplicable: the task is not a chain task.
    """
    need_chains(dataset)
    asked = queries.all_queries(dataset)
    random = np.random.default_rng(_SEED)
    if len(asked.answer) > most:
        asked = asked.only(np.sort(random.permutation(len(asked.answer))[:most]))
    tokens, variables = queries.prompt_tokens(dataset, asked.parts), _variables(dataset, asked)
    keys, positions = prefix_keys(tokens, dataset.n_vocab), list(dataset.positions)
    fact_known = positions.index(first_known_position("e2", positions))
    found = {}
    for place, pos in enumerate(positions):
        rows = np.unique(keys[:, place], return_index=True)[1]
        known = {
            name: one for name, one in variables.items() if positions.index(one.known_from) <= place
        }
        unit = asked.facts[rows, 0] if place >= fact_known else np.arange(len(rows))
        e2 = variables["e2"].values[rows] if place >= fact_known else np.zeros(len(rows), np.int64)
        halves = _halves(unit, e2, random)
        shared: dict[str, Triggers] = {}
        alone: dict[str, Triggers] = {}
        for name, one in known.items():
            values = one.values[rows]
            counts = np.bincount(values, minlength=len(one.target))
            second = halves
            if determines(values, unit):  # else all states of a value would be in one half
                second = _halves(np.arange(len(rows)), values, random)
            single = counts.max() == 1
            of_half = [
                np.bincount(values[second == half], minlength=len(counts)) for half in (0, 1)
            ]
            scored = counts > 0 if single else (of_half[0] > 0) & (of_half[1] > 0)
            (alone if single else shared)[name] = Triggers(
                values.astype(np.int32),
                second,
                scored,
                np.minimum(*of_half) >= 2,
                np.zeros(len(counts), bool),
                one.key.astype(np.int32),
                one.target.astype(np.int32),
            )
        ambiguous = _ambiguous({**shared, **alone}, random)
        shared, alone = (
            {name: one._replace(ambiguous=ambiguous[name]) for name, one in some.items()}
            for some in (shared, alone)
        )
        found[pos] = PositionStates(tokens[rows, : place + 1], shared, alone)
    return found


def _variables(dataset: Dataset, asked: queries.Queries) -> dict[str, _Variable]:
    """Return the variables of chains: entities, relations, the answer, facts and the chain."""
    world, hops, last = world_of(dataset), dataset.hops, dataset.positions[-1]
    tail, entities = world.facts.tail, np.arange(world.n_entities)
    n_parts = hops + 1

    def key(*parts: np.ndarray) -> np.ndarray:
        missing = [np.full(len(parts[0]), -1)] * (n_parts - len(parts))
        return np.stack([*parts, *missing], axis=1)

    none = np.full(world.n_relations, -1)
    relation_keys = key(none, np.arange(world.n_relations))
    entity_keys, fact_keys = key(entities), key(world.facts.head, world.facts.relation)
    found = {}
    for hop in range(hops):
        start = asked.parts[:, 0] if hop == 0 else tail[asked.facts[:, hop - 1]]
        name = f"e{hop + 1}"
        known = first_known_position(name, dataset.positions)
        found[name] = _Variable(start, known, entity_keys, entities)
        name = f"r{hop + 1}"
        found[name] = _Variable(asked.parts[:, hop + 1], name, relation_keys, none)
    found["answer"] = _Variable(asked.answer, last, entity_keys, entities)
    for hop in range(hops):
        known = first_known_position(f"e{hop + 2}", dataset.positions)
        found[f"{FACT}{hop + 1}"] = _Variable(asked.facts[:, hop], known, fact_keys, tail)
    number = np.arange(len(asked.answer))
    found[CHAIN] = _Variable(number, last, asked.parts, asked.answer)
    return found


def _halves(
    unit: Int[np.ndarray, " state"],
    value: Int[np.ndarray, " state"],
    random: np.random.Generator,
) -> Bool[np.ndarray, " state"]:
    """Divide states into two halves. States of one unit are in the same half.

    Units with equal values are distributed evenly. A unit must have one value.
    """
    units, first, index = np.unique(unit, return_index=True, return_inverse=True)
    order = random.permutation(len(units))
    order = order[np.argsort(value[first][order], kind="stable")]
    in_order = value[first][order]
    starts = np.searchsorted(in_order, in_order)
    odd = np.empty(len(units), bool)
    # A random bit for each value, else values with one unit would all be in the first half.
    flip = random.integers(2, size=int(in_order.max()) + 1)[in_order]
    odd[order] = (np.arange(len(units)) - starts + flip) % 2 == 1
    halves: np.ndarray = odd[index]
    return halves


def _ambiguous(
    triggers: dict[str, Triggers], random: np.random.Generator
) -> dict[str, Bool[np.ndarray, " value"]]:
    """Return, for each variable, which values are present in the states of another value."""
    n_states = len(next(iter(triggers.values())).values)
    # A sum of random numbers identifies a set of states.
    codes = random.integers(2**62, size=n_states, dtype=np.int64).astype(np.uint64)
    sums = []
    for one in triggers.values():
        total = np.zeros(len(one.target), np.uint64)
        np.add.at(total, one.values, codes)
        sums.append(total)
    _, index, counts = np.unique(np.concatenate(sums), return_inverse=True, return_counts=True)
    twice = (counts > 1)[index]
    parts = np.split(twice, np.cumsum([len(total) for total in sums])[:-1])
    return dict(zip(triggers, parts, strict=True))
