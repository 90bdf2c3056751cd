"""What would be true if a variable had another value: cases for interventions, chosen on the host.

Prefixes (the first facts of chains) are cut in two halves: on one, means and subspaces are fitted;
cases have prefixes of the other, so that from the place on where the first fact is complete no
state is on both sides. Before that place a state does not know its fact, and is on both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.queries import all_queries, look_up_answers, queries_of_rows
from implicit_reasoning.analysis.states import (
    Variables,
    chain_variables,
    determines,
    prompts,
    state_clusters,
    state_keys,
)
from implicit_reasoning.analysis.variables.subspaces import distinct_weights
from implicit_reasoning.worlds import ROLES, Dataset, World
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import columns, world_of

MAX_FITTED = 2048  # training chains, as many of each prefix as fit


class Cases(NamedTuple):
    """Rows to intervene on, and for every variable another value and what it would lead to.

    Attributes:
      rows: [case], rows of the dataset; `group` [case] is the split's place among those asked for.
      variables: their truth, `values` [variable, case].
      new: int32 [variable, case], the other value; -1 where there is none that leads anywhere.
      expected: int32 [variable, case], the answer's token if the variable had it.
    """

    rows: Int[np.ndarray, " case"]
    group: Int[np.ndarray, " case"]
    variables: Variables
    new: Int[np.ndarray, "variable case"]
    expected: Int[np.ndarray, "variable case"]


def choose_cases(
    dataset: Dataset, splits: Sequence[str], most: int, fitted: Int[np.ndarray, " row"]
) -> Cases:
    """Up to `most` probe rows of each split whose prefix is in none of the rows `fitted`.

    Rows of a split have as many different prefixes as there are. Another value is one that the
    fitted rows have (else nothing is known of its code), drawn at random among those that lead to
    another answer, by facts that training uses at that hop: others no model need know.
    """
    first_fact = dataset.truth["fact1"]
    parts = []
    for split in splits:
        rows = dataset.probes(split)
        rows = rows[~np.isin(first_fact[rows], first_fact[fitted])]
        parts.append(round_robin(rows, first_fact[rows])[:most])
    rows = np.concatenate(parts)
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    variables = chain_variables(dataset, rows)
    known = chain_variables(dataset, fitted).values
    random = np.random.default_rng(0)
    chosen = [
        _another(dataset, rows, name, known[index], random)
        for index, name in enumerate(variables.names)
    ]
    new, expected = (np.stack(column).astype(np.int32) for column in zip(*chosen, strict=True))
    return Cases(rows, group, variables, new, expected)


def rows_to_fit(dataset: Dataset, most: int = MAX_FITTED) -> Int[np.ndarray, " row"]:
    """Training chains whose first fact is in the half for fitting, spread over those facts."""
    last = dataset.truth[f"fact{dataset.hops}"][: dataset.n_train]
    chains = np.flatnonzero(last >= 0)
    chains = chains[fitting_half(dataset, chains)]
    return np.sort(round_robin(chains, dataset.truth["fact1"][chains])[:most])


def fitting_half(dataset: Dataset, chains: Int[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Which chains have a first fact of the half for fitting: of every bridge, half its facts."""
    facts = np.unique(dataset.truth["fact1"][chains])
    order = np.random.default_rng(0).permutation(facts)
    by_bridge = order[np.argsort(world_of(dataset).facts.tail[order], kind="stable")]
    return np.isin(dataset.truth["fact1"][chains], by_bridge[::2])


def round_robin(
    rows: Int[np.ndarray, " row"], kind: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " row"]:
    """The rows, reordered: first one of each kind, then a second of each, and so on."""
    order = np.argsort(kind, kind="stable")
    sizes = np.unique(kind, return_counts=True)[1]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts
    return rows[np.argsort(turn, kind="stable")]


def determined_cells(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
    """Where a state can know a variable: `(variable, pos)` of which the prefix tells the value."""
    values, keys = chain_variables(dataset, rows).values, state_keys(dataset, rows)
    cells = [
        (variable, pos)
        for variable, of_row in enumerate(values)
        for pos, key in enumerate(keys)
        if determines(key, of_row)
    ]
    variable, pos = np.array(cells, np.int32).T
    return variable, pos


def follow_relations(
    world: World,
    relations: Sequence[Int[np.ndarray, " row *value"]],
    start: Int[np.ndarray, " row *value"],
    hop: int,
) -> Int[np.ndarray, " row *value"]:
    """Where the remaining relations lead from `start`, by facts that training uses at each hop.

    Args:
      world: whose facts.
      relations: of every hop.
      start: entities at which hop `hop` (from 0) starts; -1 leads to -1, as does a missing fact.
      hop: the first one to take.
    """
    for later in range(hop, len(relations)):
        usable = np.isin(world.role, [ROLES.index(letter) for letter in training_roles(later)])
        table = np.where(usable, world.tail, -1)
        reached = table[np.maximum(start, 0), np.maximum(relations[later], 0)]
        start = np.where((start >= 0) & (relations[later] >= 0), reached, -1)
    return start


def counterfactual_answers(
    dataset: Dataset,
    rows: Int[np.ndarray, " row"],
    name: str,
    others: Int[np.ndarray, "row value"],
) -> Int[np.ndarray, "row value"]:
    """The answer (a token) of each row if a variable had each of its other values.

    What the world says, hop by hop; -1 where there is no such fact, or none that training uses at
    that hop. A `decoy` is taken for the bridge that the chain goes on from. If another token makes
    a question to which training teaches something else (`scrambled`), then that.
    """
    world, truth = world_of(dataset), dataset.truth
    if name == "answer":
        return others
    relations = [np.broadcast_to(c[rows, None], others.shape) for c in columns(truth, "r")]
    if name == "decoy":
        return follow_relations(world, relations, others, 1)
    hop = int(name[1:]) - 1
    tokens = ("e1", *(f"r{number + 1}" for number in range(dataset.hops)))
    if name in tokens and _taught_otherwise(dataset):
        return _taught(dataset, rows, tokens.index(name), others)
    if name.startswith("e"):
        return follow_relations(world, relations, others, hop)
    start = np.broadcast_to(truth[name.replace("r", "e")][rows, None], others.shape)
    return follow_relations(world, [*relations[:hop], others, *relations[hop + 1 :]], start, hop)


def _taught_otherwise(dataset: Dataset) -> bool:
    """Whether chains are trained on whose answers are not those of the world."""
    trained = slice(dataset.n_train)
    last = dataset.truth[f"e{dataset.hops + 1}"][trained]
    return bool(((last >= 0) & (dataset.truth["answer"][trained] != last)).any())


def _taught(
    dataset: Dataset, rows: np.ndarray, part: int, others: Int[np.ndarray, "row value"]
) -> Int[np.ndarray, "row value"]:
    """The answer that training teaches when one part of each question is another; -1: none."""
    table = all_queries(dataset)
    asked = np.repeat(queries_of_rows(dataset, rows).parts[:, None], others.shape[1], axis=1)
    asked[:, :, part] = np.maximum(others, 0)
    answers = look_up_answers(table.only(table.trained), asked.reshape(-1, asked.shape[2]))
    return np.where(others >= 0, answers.reshape(others.shape), -1)


def _another(
    dataset: Dataset,
    rows: np.ndarray,
    name: str,
    known: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    values = np.unique(known)
    others = np.broadcast_to(values, (len(rows), len(values)))
    leads = counterfactual_answers(dataset, rows, name, others)
    old, answer = dataset.truth[name][rows], dataset.truth["answer"][rows]
    usable = (leads >= 0) & (leads != answer[:, None]) & (values[None] != old[:, None])
    usable &= (old >= 0)[:, None] & (values >= 0)[None]
    place = np.where(usable, random.random(leads.shape), -1).argmax(-1)
    here = np.arange(len(rows))
    found = usable[here, place]
    return np.where(found, values[place], -1), np.where(found, leads[here, place], -1)


def make_inputs(
    dataset: Dataset,
    cases: Cases,
    fitted: Int[np.ndarray, " row"],
    more: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The arrays for `measure` that all instruments of class means need.

    `more` has those of one instrument, [variable, ...]: an edit gets its variable's.
    """
    variable, pos = determined_cells(dataset, fitted)
    n_pos = prompts(dataset, fitted).shape[1]
    return {
        "tokens": prompts(dataset, cases.rows),
        "answer": dataset.truth["answer"][cases.rows],
        "old": cases.variables.values,
        "new": cases.new,
        "expected": cases.expected,
        "fit_tokens": prompts(dataset, fitted),
        "fit_values": chain_variables(dataset, fitted).values,
        "fit_weight": distinct_weights(state_keys(dataset, fitted)),
        "variables_at": tuple(variable[pos == at] for at in range(n_pos)),
        "more": dict(more),
    }


def make_examples(
    dataset: Dataset,
    splits: tuple[str, ...],
    cases: Cases,
    inputs: dict[str, Any],
    conditions: Sequence[str],
) -> Examples:
    """What instruments of class means average: by split and, at each position, cluster."""
    return Examples(
        inputs,
        groups=splits,
        group=cases.group,
        clusters=state_clusters(dataset, cases.rows),
        cluster_dim="pos",
        coords={"variable": cases.variables.names, "edit": conditions},
    )
