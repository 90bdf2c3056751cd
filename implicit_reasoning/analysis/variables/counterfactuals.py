"""Choose the rows to edit, with new values of variables and counterfactual answers.

A case is a dataset row whose state is edited. The first facts of chains are divided into two
halves. Class means and subspaces are fitted to chains whose first facts are in the first half. The
first facts of cases are in the second half. At positions whose prefix determines the first fact,
states of cases are therefore never used for fitting. At earlier positions, cases and fitted chains
can have equal states.
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
    """Rows to edit (cases), with a new value and a counterfactual answer for each variable.

    Attributes:
      rows: the indices of the dataset rows.
      group: the index of the split of each row.
      variables: the current values of the variables in each row.
      new: the new value of each variable in each row; -1 if no value changes the answer.
      expected: the right answer token for the new value; -1 if there is no new value.
    """

    rows: Int[np.ndarray, " case"]
    group: Int[np.ndarray, " case"]
    variables: Variables
    new: Int[np.ndarray, "variable case"]
    expected: Int[np.ndarray, "variable case"]


def choose_cases(
    dataset: Dataset, splits: Sequence[str], most: int, fitted: Int[np.ndarray, " row"]
) -> Cases:
    """Choose rows to edit (cases), and a new value of every variable for each row.

    Chosen rows and rows in `fitted` have no first fact in common. The chosen rows of a split have
    as many different first facts as possible. The new value is a random value that changes the
    answer. The new value must occur in the rows in `fitted`, because a swap needs the class mean of
    the new value. Counterfactual answers are computed only from facts that training uses at the
    same hop, because a model may not know a fact at other hops.

    Args:
      dataset: the dataset.
      splits: the names of the splits from which rows are chosen.
      most: the maximum number of rows per split.
      fitted: the dataset rows to which class means are fitted.
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
    """Choose evaluation rows whose first facts are not used for fitting.

    The chosen rows of a split have as many different first facts as possible.

    Args:
      dataset: the dataset.
      splits: the names of the splits from which rows are chosen.
      most: the maximum number of rows per split.
      fitted_facts: the numbers of the first facts that are used for fitting.

    Returns:
      `(rows, group)`, both [row]. `group` is the split of each row, as an index into `splits`.
    """
    first_fact, parts = dataset.truth["fact1"], []
    for split in splits:
        rows = dataset.probes(split)
        rows = rows[~np.isin(first_fact[rows], fitted_facts)]
        parts.append(round_robin(rows, first_fact[rows])[:most])
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), group


def rows_to_fit(dataset: Dataset) -> Int[np.ndarray, " row"]:
    """Choose the training chains to which class means, erasers and subspaces are fitted.

    At most `MAX_FITTED` chains are returned, in ascending order of rows. `fitting_half` chooses the
    first facts of the chains. All chosen first facts have about the same number of chains.
    """
    last = dataset.truth[f"fact{dataset.hops}"][: dataset.n_train]
    chains = np.flatnonzero(last >= 0)
    chains = chains[fitting_half(dataset, chains)]
    return np.sort(round_robin(chains, dataset.truth["fact1"][chains])[:MAX_FITTED])


def fitting_half(dataset: Dataset, chains: Int[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Return whether the first fact of each chain is used for fitting.

    For every bridge (e2), a random half of the first facts that lead to the bridge is used for
    fitting.
    """
    facts = np.unique(dataset.truth["fact1"][chains])
    order = np.random.default_rng(0).permutation(facts)
    by_bridge = order[np.argsort(world_of(dataset).facts.tail[order], kind="stable")]
    return np.isin(dataset.truth["fact1"][chains], by_bridge[::2])


def round_robin(
    rows: Int[np.ndarray, " row"], kind: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " row"]:
    """Reorder rows so that the kinds of rows alternate.

    The first rows are one row of each kind, followed by a second row of each kind, and so on.
    """
    order = np.argsort(kind, kind="stable")
    sizes = np.unique(kind, return_counts=True)[1]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts
    return rows[np.argsort(turn, kind="stable")]


def determined_cells(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
    """Return the positions whose prefix determines a variable, for all variables.

    The prefix of a position is the tokens up to and including the position.

    States of a causal model can represent a variable only at these positions.

    Returns:
      `(variable, pos)`, both [cell], the indices of the variables and of the positions.
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
    """Follow the relations of a chain from a given hop to the last hop.

    A fact is followed only if training uses the fact at this hop.

    Args:
      world: the world with the facts.
      relations: an array of relations for each hop.
      start: the head entity of the first followed hop; -1 if there is no entity.
      hop: the first hop to follow, counted from 0.

    Returns:
      The tail entity of the last hop; -1 if `start` is -1, if a fact does not exist, or if training
      does not use a fact at its hop.
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
    """Return the right answers to queries in which the value of one variable is changed.

    Usually, the facts of the world determine the answer. If the variable is `decoy`, its new value
    is used as the bridge (e2). In the world `scrambled`, training targets do not follow from the
    facts. If an input token is changed in this world, the answer is the training target of the
    changed query.

    Args:
      dataset: the dataset.
      rows: the indices of dataset rows.
      name: the name of the changed variable.
      others: the new values of the variable in each row.

    Returns:
      int `[row, value]`, the answer tokens. An answer is -1 if a fact does not exist, or if
      training does not use a fact at its hop. In `scrambled`, an answer is -1 if the changed query
      is not a training query.
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
    """Make the inputs of `cells.intervene`.

    Args:
      dataset: the dataset.
      cases: the rows to edit, with the new values.
      fitted: the dataset rows to which class means or erasers are fitted.
      more: further arrays `[variable, ...]` that the edit of an instrument needs, by name.
        `Cell.more` contains the parts of these arrays for the variable of the cell.
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
    """Make the examples of an instrument that edits a variable.

    The groups are the splits. At positions whose prefix determines the bridge (e2), rows with the
    same bridge form a cluster. At all other positions, rows with the same prefix form a cluster.

    Args:
      dataset: the dataset.
      splits: the names of the splits.
      cases: the rows to edit.
      inputs: the inputs of `measure`.
      conditions: the labels of the real edits and of the controls.
    """
    return Examples(
        inputs,
        groups=splits,
        group=cases.group,
        clusters=state_clusters(dataset, cases.rows),
        cluster_dim="pos",
        coords={"variable": cases.variables.names, "edit": conditions},
    )
