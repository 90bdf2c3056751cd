"""States and truth variables: what most instruments start from.

`S[layer, pos]` is the residual after `layer` blocks, before the final norm: layer 0 is the sum of
token and position embeddings, layer `depth` is what the final norm reads.
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
    """`S[layer, pos]` of every row."""
    sites = model.resid_sites
    _, found = model.forward(params, tokens, sites=sites)
    return jnp.stack([found[site] for site in sites])


class Variables(NamedTuple):
    """Truth about some rows, as classes.

    Attributes:
      names: such as e1, r1, e2, r2, e3.
      values: int32 [variable, row], numbers of entities or relations; -1 where a row has none.
      tokens: int32 [variable, row], the token of each value.
      kinds: "entity" or "relation", by variable.
      first_token: {"entity": 0, "relation": n_entities}: the token of number 0 of a kind.
      sizes: {"entity": .., "relation": ..}: how many there are.
    """

    names: tuple[str, ...]
    values: Int[np.ndarray, "variable row"]
    tokens: Int[np.ndarray, "variable row"]
    kinds: tuple[str, ...]
    first_token: dict[str, int]
    sizes: dict[str, int]


def chain_variables(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Variables:
    """The variables of a task of chains: e1, r1, e2, ..., `answer`, and `decoy` if it has one.

    `answer` is what is taught; e3 is what follows from the world, which is the same but in tasks
    that teach something else, and only where it is not the same are both there.

    Raises:
      NotApplicable: the task is not one of chains, or spells an entity in two tokens.
    """
    need_chains(dataset)
    world, truth = dataset.world, dataset.truth
    assert world is not None  # chains are of a world
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
    """Raise `NotApplicable` unless this is a task of chains whose entities are one token each."""
    if "r2" not in dataset.truth or dataset.world is None:
        raise NotApplicable("this instrument needs a task of chains (e1, r1, r2) -> e3")
    if dataset.vocab[: dataset.world.n_entities] != tuple(
        f"<e_{number}>" for number in range(dataset.world.n_entities)
    ):
        raise NotApplicable(
            "this instrument needs entities of one token each; this task spells them in two "
            "(task.names), and then no single token is the bridge"
        )


def chain_splits(dataset: Dataset) -> tuple[str, ...]:
    """The splits of whole chains, in order; `NotApplicable` where the task is not one of chains."""
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
    """The first `most` probe rows of each split (they are in random order): `(rows, group)`."""
    parts = [dataset.probes(split)[:most] for split in splits]
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), group


def prompts(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "row pos"]:
    """The tokens of the prompts, the answers cut off; all of one length."""
    return dataset.tokens[rows, : len(dataset.positions)]


def state_keys(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """A number for each state, by position: in a causal model it depends on the prefix only."""
    return prefix_keys(prompts(dataset, rows), dataset.n_vocab).T


def state_clusters(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, "pos row"]:
    """Clusters of chains by position: the state; where it knows the bridge, the bridge."""
    bridges = clusters_of(dataset, rows)
    return np.stack(
        [bridges if determines(key, bridges) else key for key in state_keys(dataset, rows)]
    )


def determines(key: Int[np.ndarray, " row"], value: Int[np.ndarray, " row"]) -> bool:
    """Whether rows of one key all have one value."""
    pairs = np.unique(np.stack([key, value.astype(np.int64)], axis=1), axis=0)
    return len(pairs) == len(np.unique(key))
