"""Compute the states of a model, and the truth variables of its queries.

Most instruments use both. `S[layer, pos]` is the residual stream after `layer` blocks, before the
final norm. Layer 0 is the sum of token and position embeddings. Layer `depth` is the input of the
final norm.
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
    """Return the residual stream at every layer and position.

    Layer 0 is the sum of token and position embeddings.
    """
    sites = model.resid_sites
    _, found = model.forward(params, tokens, sites=sites)
    return jnp.stack([found[site] for site in sites])


def neuron_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites of the MLP neurons, after their activation function, of every block."""
    return tuple(f"blocks.{block}.mlp.hook_post" for block in range(model.spec.depth))


class Variables(NamedTuple):
    """The values of the truth variables in some rows of a dataset.

    Attributes:
      names: names of the variables, such as e1, r1, e2, r2, e3.
      values: int32 [variable, row], entity or relation numbers; -1 if a row lacks the variable.
      tokens: int32 [variable, row], the token of each value; -1 if a row lacks the variable.
      kinds: "entity" or "relation", for each variable.
      first_token: {"entity": 0, "relation": n_entities}, the first token of each kind.
      sizes: {"entity": n_entities, "relation": n_relations}, the number of values of each kind.
    """

    names: tuple[str, ...]
    values: Int[np.ndarray, "variable row"]
    tokens: Int[np.ndarray, "variable row"]
    kinds: tuple[str, ...]
    first_token: dict[str, int]
    sizes: dict[str, int]


def chain_variables(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Variables:
    """Return the variables of a chain task: e1, r1, e2, ..., `answer` and, if it exists, `decoy`.

    `answer` is the answer that training teaches. The last entity (e3 with two hops) is the answer
    that follows from the world. The last entity is included only if it differs from `answer` for
    some chain. `decoy` exists only in datasets of the tasks `shadow` and `cue_conflict`. It is the
    answer that training teaches for the prompt (e1, r1), which can differ from the bridge e2.

    Args:
      dataset: a dataset of a chain task.
      rows: [row], the rows to describe.

    Raises:
      NotApplicable: the task is not a chain task, or it spells an entity with two tokens.
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


def need_chains(dataset: Dataset) -> None:
    """Raise `NotApplicable` if answers of the task are not the last entities of chains.

    That is the case if the task has no chains, if an entity is more than one token, or if answers
    begin with the bridge.
    """
    if "r2" not in dataset.truth or dataset.world is None:
        raise NotApplicable("this instrument needs a task of chains (e1, r1, r2) -> e3")
    if dataset.vocab[: dataset.world.n_entities] != tuple(
        f"<e_{number}>" for number in range(dataset.world.n_entities)
    ):
        raise NotApplicable(
            "this instrument needs entities of one token each; this task spells entities with "
            "two tokens (task.names)"
        )
    if "thought" in dataset.truth:
        raise NotApplicable(
            "this instrument needs answers of one entity; answers of this task begin with the "
            "bridge (task.chain_of_thought)"
        )


def chain_splits(dataset: Dataset) -> tuple[str, ...]:
    """Return the non-empty splits whose prompts have all hops of a chain, in the dataset's order.

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
    """Return the first `most` probe rows of each split. The dataset has them in random order.

    Returns:
      `(rows, group)`, both [row]; `group` is the index in `splits` of each row's split.
    """
    parts = [dataset.probes(split)[:most] for split in splits]
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), group


def prompts(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "row pos"]:
    """Return the tokens of the prompts without the answers. All prompts have the same length."""
    return dataset.tokens[rows, : len(dataset.positions)]


def state_keys(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """Return, for each position and row, a number that identifies the row's prefix.

    The prefix is the tokens up to and including the position. Two rows with equal numbers at a
    position have equal prefixes. In a causal model a state depends on its prefix only, so the
    states of the two rows at the position are equal too.
    """
    return prefix_keys(prompts(dataset, rows), dataset.n_vocab).T


def state_clusters(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """Return the cluster of each row at each position, for a chain task.

    At positions whose prefix determines the bridge, the cluster is the bridge. At all other
    positions, the cluster is the prefix.
    """
    bridges = clusters_of(dataset, rows)
    return np.stack(
        [bridges if determines(key, bridges) else key for key in state_keys(dataset, rows)]
    )


def determines(key: Int[np.ndarray, " row"], value: Int[np.ndarray, " row"]) -> bool:
    """Return whether all rows with the same key have the same value."""
    pairs = np.unique(np.stack([key, value.astype(np.int64)], axis=1), axis=0)
    return len(pairs) == len(np.unique(key))
