"""Compute the states of a model, and the values of variables in queries.

The state `S[layer, pos]` is the residual stream after `layer` blocks. Layer 0 is the sum of token
and position embeddings. Layer `depth` is the input of the final norm. A variable is an entity or
relation of a chain, such as e2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset, prefix_keys
from implicit_reasoning.worlds.clusters import clusters_of


def residuals(
    model: Transformer, params: Params, tokens: Int[Array, "batch pos"]
) -> Float[Array, "layer batch pos d_model"]:
    """Return the residual stream after 0, 1, ..., `depth` blocks.

    Layer 0 is the sum of token and position embeddings.
    """
    sites = model.resid_sites
    _, found = model.forward(params, tokens, sites=sites)
    return jnp.stack([found[site] for site in sites])


def neuron_sites(model: Transformer) -> tuple[str, ...]:
    """Return the names of the sites of the MLP neurons (`hook_post`), one site for each block."""
    return tuple(f"blocks.{block}.mlp.hook_post" for block in range(model.spec.depth))


class Variables(NamedTuple):
    """The values of variables, such as e2, in some rows of a dataset.

    Attributes:
      names: the names of the variables, such as "e1", "r1", "e2", "r2", "answer".
      values: int32 [variable, row], the number of the entity or relation; -1 if the variable has no
        value in the row.
      tokens: int32 [variable, row], the token of the entity or relation; -1 if the variable has no
        value in the row.
      kinds: the type of each variable, "entity" or "relation".
      first_token: the lowest token of each type: `{"entity": 0, "relation": n_entities}`.
      sizes: the number of values of each type: `{"entity": n_entities, "relation": n_relations}`.
    """

    names: tuple[str, ...]
    values: Int[np.ndarray, "variable row"]
    tokens: Int[np.ndarray, "variable row"]
    kinds: tuple[str, ...]
    first_token: dict[str, int]
    sizes: dict[str, int]


def chain_variables(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Variables:
    """Return the values of the variables e1, r1, e2, ... in some rows of a chain task.

    The variable `answer` is the training target. The last entity of a chain, such as e3, is the
    answer that follows from the facts of the world. The last entity is included only if it differs
    from the training target in some row. The tasks `shadow` and `cue_conflict` also have the
    variable `decoy`. The decoy is the training target of the prompt (e1, r1), and can differ from
    the bridge e2.

    Args:
      dataset: a dataset of a chain task.
      rows: indices of dataset rows.

    Raises:
      NotApplicable: the task is not a chain task, or entities consist of two tokens.
    """
    need_chains(dataset)
    world, truth = dataset.world, dataset.truth
    assert world is not None  # every chain task has a world
    hops = dataset.hops
    last = f"e{hops + 1}"
    names = [n for hop in range(1, hops + 1) for n in (f"e{hop}", f"r{hop}")] + ["answer"]
    chains = rows[truth[f"fact{hops}"][rows] >= 0]
    if (truth[last][chains] != truth["answer"][chains]).any():
        names.insert(-1, last)
    if "decoy" in truth:
        names.append("decoy")
    values = np.stack([truth[name][rows] for name in names]).astype(np.int32)
    kinds = tuple("relation" if name.startswith("r") else "entity" for name in names)
    first = {"entity": 0, "relation": world.n_entities}
    offset = np.array([first[kind] for kind in kinds], np.int32)[:, None]
    return Variables(
        names=tuple(names),
        values=values,
        tokens=np.where(values >= 0, values + offset, np.int32(-1)),
        kinds=kinds,
        first_token=first,
        sizes={"entity": world.n_entities, "relation": world.n_relations},
    )


def need_chains(dataset: Dataset, *, allows_thought: bool = False) -> None:
    """Raise an error if the task is not a chain task with answers of one token.

    Args:
      dataset: the dataset.
      allows_thought: whether answers may begin with the bridge.

    Raises:
      NotApplicable: the task is not a chain task, entities consist of two tokens, or answers begin
        with the bridge (e2).
    """
    if "r2" not in dataset.truth or dataset.world is None:
        raise NotApplicable("this instrument needs a task with chains (e1, r1, r2) -> e3")
    if dataset.vocab[: dataset.world.n_entities] != tuple(
        f"<e_{number}>" for number in range(dataset.world.n_entities)
    ):
        raise NotApplicable(
            "this instrument needs entities of one token, but this task uses two tokens for each "
            "entity (see task.names)"
        )
    if "thought" in dataset.truth and not allows_thought:
        raise NotApplicable(
            "this instrument needs answers of one entity, but answers of this task begin with the "
            "bridge (see task.chain_of_thought)"
        )


def chain_splits(dataset: Dataset) -> tuple[str, ...]:
    """Return the non-empty splits whose prompts are full chains, such as (e1, r1, r2).

    Raises:
      NotApplicable: the task is not a chain task.
    """
    need_chains(dataset)
    last = dataset.truth[f"fact{dataset.hops}"]
    return tuple(
        name
        for name in dataset.splits
        if len(rows := dataset.rows(name)) and (last[rows[:1]] >= 0).all()
    )


def choose_rows(
    dataset: Dataset, splits: Sequence[str], most: int
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Choose rows of each split for a measurement.

    The chosen rows are the first probe rows of the split. Probe rows are the rows for evaluation,
    which the dataset has in random order.

    Args:
      dataset: the dataset.
      splits: the names of the splits.
      most: the maximum number of rows per split.

    Returns:
      `(rows, group)`, both [row]. `group` is the split of each row, as an index into `splits`.
    """
    parts = [dataset.probes(split)[:most] for split in splits]
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), group


def another_of_group(
    group: Int[np.ndarray, " row"], random: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Choose a random different row of the same group for each row.

    Every row is chosen once. A row that is alone in its group is chosen for itself.

    Args:
      group: the group of each row.
      random: the random number generator.

    Returns:
      The index of the chosen row, for each row.
    """
    other = np.empty(len(group), np.int64)
    for number in np.unique(group):
        members = random.permutation(np.flatnonzero(group == number))
        other[members] = np.roll(members, 1)  # unlike a permutation, this keeps no row in its place
    return other


def prompts(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "row pos"]:
    """Return the tokens of the prompts, without the answers.

    Args:
      dataset: the dataset.
      rows: indices of dataset rows.
    """
    return dataset.tokens[rows, : len(dataset.positions)]


def state_keys(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """Return a number that identifies the prefix of each row at each position.

    The prefix consists of the tokens up to and including the position. At each position, rows with
    equal numbers have equal prefixes, and therefore equal states in a causal model.
    """
    return prefix_keys(prompts(dataset, rows), dataset.n_vocab).T


def state_clusters(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """Return the cluster of each row at each position, for confidence intervals.

    At a position whose prefix determines the bridge (e2), rows with the same bridge form a cluster.
    At all other positions, rows with the same prefix form a cluster.
    """
    bridges = clusters_of(dataset, rows)
    return np.stack(
        [bridges if determines(key, bridges) else key for key in state_keys(dataset, rows)]
    )


def determines(key: Int[np.ndarray, " row"], value: Int[np.ndarray, " row"]) -> bool:
    """Return whether rows with equal keys always have equal values."""
    pairs = np.unique(np.stack([key, value.astype(np.int64)], axis=1), axis=0)
    return len(pairs) == len(np.unique(key))
