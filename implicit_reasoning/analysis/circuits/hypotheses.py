"""Hypotheses for causal scrubbing: which values of a run stand for which variables.

A hypothesis says that the logits depend on some parts of the run only, and on each part only
through one variable, such as the bridge e2. A part is the terms of some senders of the edge graph
at one position. If the hypothesis is right, the terms of another prompt with the same value of the
variable can replace a part, and the terms of any prompt can replace everything else.

A part can have a hypothesis of its own, which says what its value is computed from.

Source: Chan et al. 2022, "Causal scrubbing" (interpretations of the nodes of a graph).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Bool, Int

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.circuits.selection import node_inputs
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.worlds import Dataset, prefix_keys
from implicit_reasoning.worlds.dataset import world_of

Condition = Callable[[queries.Queries, queries.Queries], Bool[np.ndarray, " pair"]]
"""Function of prompts and their replacement prompts that returns which pairs are allowed."""


@dataclass(frozen=True)
class Part:
    """The terms of some senders at one position, and what they stand for.

    Attributes:
      senders: names of senders, such as `a0.h1`; empty for all senders.
      pos: the position.
      variable: the variable, a name of `variables_of`.
      inputs: what the terms are computed from; None for the whole prompt.
      condition: which replacements are allowed. The default allows all prompts but the own one.
      tested: whether replacement prompts have another value of the variable in the null.
    """

    senders: tuple[str, ...]
    pos: int
    variable: str
    inputs: Hypothesis | None = None
    condition: Condition | None = None
    tested: bool = True


@dataclass(frozen=True)
class Hypothesis:
    """Parts of a run on which a result depends. Everything else does not matter to the result.

    Attributes:
      parts: the parts. No sender is in two parts at one position.
    """

    parts: tuple[Part, ...]


HypothesisFunction = Callable[[Dataset, EdgeGraph], Hypothesis]
"""Function that makes a hypothesis for a dataset and the edge graph of a model."""


def two_hop(dataset: Dataset, graph: EdgeGraph) -> Hypothesis:
    """Return the two-hop hypothesis: the state after the first hop stands for the bridge.

    At the position of the next to last relation, the state stands for the last bridge (e2 for
    chains of two hops). At the position of the last relation, it stands for this relation. Nothing
    else matters.

    The replacement of the bridge has another prefix, and the chain of its prefix and the last
    relation is not a training chain. A model that knows only its training chains does not pass.

    Args:
      dataset: a dataset of a chain task.
      graph: the edge graph of a model of this dataset.

    Raises:
      NotApplicable: the prompt does not have the order (e1, r1, r2, ...), or is not a chain.
    """
    need_chains(dataset)
    order = queries.prompt_order(dataset)
    if order != sorted(order):
        raise NotApplicable(
            "the two-hop hypothesis needs prompts (e1, r1, r2), but the prompts of this task are "
            f"({', '.join(dataset.positions)})"
        )
    hops, last = dataset.hops, graph.n_pos - 1
    return Hypothesis(
        (
            Part((), last - 1, f"e{hops}", condition=_untrained(dataset)),
            Part((), last, f"r{hops}", tested=False),
        )
    )


def of_nodes(graph: EdgeGraph, nodes: Mapping[tuple[str, int], str]) -> Hypothesis:
    """Return the hypothesis that some nodes, each with a variable, compute the logits alone.

    A node of the mapping reads the earlier nodes of the mapping from which there is an edge. The
    logits read those at the last position. Each node has a replacement for every reader, as in the
    paper, so every added node can double the number of forward passes.

        of_nodes(graph, {("m0", 1): "e2", ("a1.h0", 2): "e2", ("input", 2): "r2"})

    Args:
      graph: the edge graph of the model.
      nodes: the variable of each node. A node is the name of a sender and a position.

    Raises:
      InputError: a sender or a position does not exist, or no node reaches the logits.
    """
    for name, pos in nodes:
        if name not in graph.senders or not 0 <= pos < graph.n_pos:
            raise InputError(
                f"the node ({name!r}, {pos}) does not exist; senders are "
                f"{', '.join(graph.senders)}, and positions are 0 to {graph.n_pos - 1}"
            )
    inputs = node_inputs(graph, graph.n_pos)

    def read_by(name: str, pos: int) -> Hypothesis | None:
        if name == "input":
            return None
        mine = np.flatnonzero(inputs.node == graph.senders.index(name))
        return hypothesis(
            lambda sender, at: any(
                graph.number[sender, r] >= 0 and inputs.reads[r, pos, at] for r in mine
            )
        )

    def hypothesis(reads: Callable[[int, int], bool]) -> Hypothesis:
        return Hypothesis(
            tuple(
                Part((name,), pos, variable, read_by(name, pos))
                for (name, pos), variable in nodes.items()
                if reads(graph.senders.index(name), pos)
            )
        )

    found = hypothesis(lambda _, at: at == graph.n_pos - 1)
    if not found.parts:
        raise InputError(
            "no node of the hypothesis is at the last position, where the logits are read"
        )
    return found


def variables_of(dataset: Dataset, asked: queries.Queries) -> dict[str, Int[np.ndarray, " query"]]:
    """Return the values of all variables of some queries.

    Returns:
      The numbers of the entities and relations `e1`, `r1`, `e2`, ..., of the facts `fact1`, ...,
      and of the `answer`.
    """
    tails = world_of(dataset).facts.tail[asked.facts]
    found = {"e1": asked.parts[:, 0], "answer": asked.answer}
    for hop in range(dataset.hops):
        found |= {f"r{hop + 1}": asked.parts[:, hop + 1], f"e{hop + 2}": tails[:, hop]}
        found[f"fact{hop + 1}"] = asked.facts[:, hop]
    return found


@struct.dataclass
class Drawn:
    """The prompts of one run for each target, and those of the runs that replace its terms.

    A pytree, whose leaves are the prompts.

    Attributes:
      tokens: the prompts of the run, `[row, pos]`.
      rest: the prompts whose terms replace everything that is in no part, `[row, pos]`; None if
        nothing is replaced in the run.
      parts: the runs on the replacement prompts of the parts.
      senders: names of the senders whose terms the run gives; empty for all senders.
      pos: the position of these terms.
    """

    # The leaves of a pytree can be any objects, so their types are not checked.
    tokens: Any
    rest: Any = None
    parts: tuple[Drawn, ...] = ()
    senders: tuple[str, ...] = struct.field(pytree_node=False, default=())
    pos: int = struct.field(pytree_node=False, default=-1)


def draw(
    dataset: Dataset,
    hypothesis: Hypothesis,
    targets: queries.Queries,
    random: np.random.Generator,
    *,
    another_value: bool = False,
) -> tuple[Drawn, Bool[np.ndarray, " row"]]:
    """Draw replacement prompts for the parts of a hypothesis, from all chains of the world.

    Args:
      dataset: a dataset of a chain task.
      hypothesis: the hypothesis.
      targets: the prompts to scrub.
      random: the random generator.
      another_value: draw the null. Replacements of tested parts then have another value: a
        random permutation without fixed points gives the new value for each old one.

    Returns:
      The prompts, and whether every part of a target has a replacement prompt.

    Raises:
      InputError: the dataset has no variable with the name in a part.
    """
    table = queries.all_queries(dataset)
    values = variables_of(dataset, table)

    def of_run(wanted: Hypothesis | None, rows: queries.Queries) -> tuple[Drawn, np.ndarray]:
        tokens = queries.prompt_tokens(dataset, rows.parts)
        if wanted is None:
            return Drawn(tokens), np.ones(len(tokens), bool)
        own = variables_of(dataset, rows)
        known, parts = np.ones(len(rows.answer), bool), []
        for part in wanted.parts:
            if part.variable not in own:
                raise InputError(
                    f"this dataset has no variable {part.variable!r}; it has {', '.join(own)}"
                )
            asked = own[part.variable]
            if another_value and part.tested:
                asked = _other_values(values[part.variable], random)[asked]
            chosen, there = _replacements(part, rows, asked, table, values, random)
            run, also = of_run(part.inputs, chosen)
            known &= there & also
            parts.append(dataclasses.replace(run, senders=part.senders, pos=part.pos))
        rest = table.parts[random.integers(len(table.answer), size=len(tokens))]
        return Drawn(tokens, queries.prompt_tokens(dataset, rest), tuple(parts)), known

    return of_run(hypothesis, targets)


def _replacements(
    part: Part,
    rows: queries.Queries,
    asked: Int[np.ndarray, " row"],
    table: queries.Queries,
    values: Mapping[str, Int[np.ndarray, " query"]],
    random: np.random.Generator,
) -> tuple[queries.Queries, Bool[np.ndarray, " row"]]:
    """Return a query of the table for each row, and whether there is one."""
    condition = part.condition or _another

    def fits(row: np.ndarray, item: np.ndarray) -> np.ndarray:
        return condition(rows.only(row), table.only(item))

    found = queries.random_matches(asked[:, None], values[part.variable][:, None], fits, random)
    return table.only(np.maximum(found, 0)), found >= 0


def _another(target: queries.Queries, other: queries.Queries) -> Bool[np.ndarray, " pair"]:
    differ: np.ndarray = (target.parts != other.parts).any(1)
    return differ


def _untrained(dataset: Dataset) -> Condition:
    """Return a condition for replacement prompts of a bridge.

    The prefixes differ, and the replacement's prefix with the target's last relation is no training
    chain.
    """
    table = queries.all_queries(dataset)
    trained = table.parts[table.trained]
    size = int(table.parts.max(initial=0)) + 1

    def allowed(target: queries.Queries, other: queries.Queries) -> Bool[np.ndarray, " pair"]:
        composed = np.column_stack([other.parts[:, :-1], target.parts[:, -1]])
        keys = prefix_keys(np.concatenate([composed, trained]), size)[:, -1]
        known = np.isin(keys[: len(composed)], keys[len(composed) :])
        return ~known & (target.parts[:, :-1] != other.parts[:, :-1]).any(1)

    return allowed


def _other_values(values: Int[np.ndarray, " query"], random: np.random.Generator) -> np.ndarray:
    """Return a table that maps each value to another value, which also occurs."""
    present = random.permutation(np.unique(values))
    table = np.arange(int(values.max(initial=0)) + 1)
    table[present] = np.roll(present, 1)
    return table
