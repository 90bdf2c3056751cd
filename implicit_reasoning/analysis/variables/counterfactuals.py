"""Choose cases for interventions on a variable, with counterfactual answers, on the host.

A case is a row of the dataset whose state is edited. The first facts of chains are divided into two
halves. Class means and subspaces are fitted to chains whose first fact is in one half. The cases
are chains whose first fact is in the other half. If the prefix up to a position determines the
first fact, no state at this position is in both sets. At earlier positions, the same state can be
in both sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.facts import first_occurrences
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
from implicit_reasoning.worlds import ROLES, Dataset, World
from implicit_reasoning.worlds.chains import training_roles
from implicit_reasoning.worlds.dataset import columns, world_of

MAX_FITTED = 2048  # maximum number of training chains for fitting


class Cases(NamedTuple):
    """Rows to intervene on, with a new value and a counterfactual answer for every variable.

    Attributes:
      rows: the rows of the dataset, `[case]`.
      group: the index of the split of each row, `[case]`.
      variables: the truth variables of the rows; the array `variables.values` is `[variable,
        case]`.
      new: int32 `[variable, case]`, the new value; -1 if no value changes the answer.
      expected: int32 `[variable, case]`, the answer token for the new value; -1 if `new` is -1.
    """

    rows: Int[np.ndarray, " case"]
    group: Int[np.ndarray, " case"]
    variables: Variables
    new: Int[np.ndarray, "variable case"]
    expected: Int[np.ndarray, "variable case"]


def choose_cases(
    dataset: Dataset, splits: Sequence[str], most: int, fitted: Int[np.ndarray, " row"]
) -> Cases:
    """Choose rows of each split as cases, and a new value of every variable for each case.

    The first fact of a case is not the first fact of any row in `fitted`. The cases of a split have
    as many different first facts as possible. The new value is drawn at random from the values that
    change the answer and that occur in the fitted rows, because only those values have a class
    mean. Counterfactual answers use a fact only at a hop at which training uses it, because a model
    may not know the fact at a different hop.

    Args:
      dataset: the dataset.
      splits: the splits to choose from.
      most: the maximum number of cases per split.
      fitted: the rows for fitting.
    """
    rows, group = held_out_probes(dataset, splits, most, dataset.truth["fact1"][fitted])
    variables = chain_variables(dataset, rows)
    known = chain_variables(dataset, fitted).values
    random = np.random.default_rng(0)
    chosen = [
        _another(dataset, rows, name, known[index], random)
        for index, name in enumerate(variables.names)
    ]
    new, expected = (np.stack(column).astype(np.int32) for column in zip(*chosen, strict=True))
    return Cases(rows, group, variables, new, expected)


def held_out_probes(
    dataset: Dataset, splits: Sequence[str], most: int, fitted_facts: Int[np.ndarray, " fact"]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Return at most `most` evaluation rows of each split, without rows of fitted first facts.

    The rows of a split have as many different first facts as possible.

    Returns:
      `(rows, group)`, both [row]; `group` is the index of the split.
    """
    first_fact, parts = dataset.truth["fact1"], []
    for split in splits:
        rows = dataset.probes(split)
        rows = rows[~np.isin(first_fact[rows], fitted_facts)]
        parts.append(round_robin(rows, first_fact[rows])[:most])
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), group


def rows_to_fit(dataset: Dataset) -> Int[np.ndarray, " row"]:
    """Return at most `MAX_FITTED` training chains for fitting, in ascending order.

    The chains begin with the first facts that `fitting_half` chooses. The number of chains is about
    the same for each of these facts.
    """
    last = dataset.truth[f"fact{dataset.hops}"][: dataset.n_train]
    chains = np.flatnonzero(last >= 0)
    chains = chains[fitting_half(dataset, chains)]
    return np.sort(round_robin(chains, dataset.truth["fact1"][chains])[:MAX_FITTED])


def fitting_half(dataset: Dataset, chains: Int[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Return whether each chain is for fitting.

    For every bridge, half of the first facts that lead to it are chosen at random. The chains that
    begin with a chosen fact are for fitting.
    """
    facts = np.unique(dataset.truth["fact1"][chains])
    order = np.random.default_rng(0).permutation(facts)
    by_bridge = order[np.argsort(world_of(dataset).facts.tail[order], kind="stable")]
    return np.isin(dataset.truth["fact1"][chains], by_bridge[::2])


def round_robin(
    rows: Int[np.ndarray, " row"], kind: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " row"]:
    """Reorder rows: one row of each kind comes first, then a second row of each kind, and so on."""
    order = np.argsort(kind, kind="stable")
    sizes = np.unique(kind, return_counts=True)[1]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts
    return rows[np.argsort(turn, kind="stable")]


def determined_cells(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
    """Return the pairs `(variable, pos)` for which the prefix up to `pos` determines the variable.

    The states of a causal model can represent the variable at these positions only.
    """
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
    """Follow the relations from a given hop to the last hop.

    Only facts that training uses at the respective hop are followed.

    Args:
      world: the world with the facts.
      relations: the relation of every hop.
      start: the entity at which the first followed hop starts; -1 if there is none.
      hop: the first hop to follow, counted from 0.

    Returns:
      The last entity; -1 if `start` is -1, or if a hop needs a fact that does not exist or that
      training does not use.
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
    """Return the answer token that each row would have for given values of one variable.

    The answer usually follows from the facts of the world, hop by hop. If the variable is `decoy`,
    the chain continues from the given value, as from a bridge. If the variable is an input token
    and training teaches answers that do not follow from the world (`scrambled`), the answer is the
    one that training teaches for the changed query.

    Args:
      dataset: the dataset.
      rows: the rows.
      name: the name of the variable.
      others: the values to give to the variable in each row.

    Returns:
      int `[row, value]`; -1 if there is no answer, because a fact does not exist, training does not
      use the fact at that hop, or training does not teach an answer.
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
    """Return whether the answers of some training chains do not follow from the world."""
    trained = slice(dataset.n_train)
    last = dataset.truth[f"e{dataset.hops + 1}"][trained]
    return bool(((last >= 0) & (dataset.truth["answer"][trained] != last)).any())


def _taught(
    dataset: Dataset, rows: np.ndarray, part: int, others: Int[np.ndarray, "row value"]
) -> Int[np.ndarray, "row value"]:
    """Return the answer that training teaches for the query with one part replaced.

    It is -1 if the new query is not a training query.
    """
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
    """Make the inputs of `cells.intervene`, as arrays on the host.

    Args:
      dataset: the dataset.
      cases: the cases to intervene on.
      fitted: the rows for fitting.
      more: further arrays that the edit of an instrument needs, each `[variable, ...]`. The edit
        finds the entries of its variable in `Cell.more`.
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
        "fit_weight": first_occurrences(state_keys(dataset, fitted)).astype(np.float32),
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
    """Make the examples of an instrument. Groups are splits, and clusters depend on the position.

    Args:
      dataset: the dataset.
      splits: the splits of the cases.
      cases: the cases.
      inputs: the inputs of `measure`.
      conditions: the labels of the edits and controls.
    """
    return Examples(
        inputs,
        groups=splits,
        group=cases.group,
        clusters=state_clusters(dataset, cases.rows),
        cluster_dim="pos",
        coords={"variable": cases.variables.names, "edit": conditions},
    )
