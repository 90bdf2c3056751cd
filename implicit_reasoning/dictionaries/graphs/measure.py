"""Make the attribution graphs of chains for all replacement models of a set of dictionaries.

A set has one replacement model for each checkpoint, sparsity and seed: one cross-layer transcoder,
or the transcoders of all MLPs. All replacement models and prompts are one compiled program.

    found = measure_graphs(run, load(run, "transcoder"))
    found.bridge_share.sel(bridge="own")

For each chain, the result has the scores of the graph, the number of active features, whether one
of them stands for the bridge, and the bridge share (`bridge.py`). The bridge share has two nulls:
the features of the bridge of another chain, and as many random features that are active at the same
positions and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int

from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.analysis.subject import Subject, stack_trees
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.attribution import Graph, attribute, node_kinds
from implicit_reasoning.dictionaries.graphs.bridge import (
    BridgeFeatures,
    bridge_features,
    bridge_share,
    random_active,
    standing_for,
)
from implicit_reasoning.dictionaries.graphs.influence import graph_scores, influence, shares
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts, any_label_prompts
from implicit_reasoning.dictionaries.replacement import Replacement, local_run, mlp_sites
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

BRIDGES = ("own", "another chain's", "random features")
OUTCOMES = ("replacement", "completeness", "n_active", "has_bridge", "bridge_share")
Measure = Callable[[Transformer, Params, Replacement, Sequence[Params]], dict[str, Array]]
_MAX_CHAINS = 60  # of each split
_SEED = 0


class Group(NamedTuple):
    """The members of a set that replace all MLPs of a model together.

    Attributes:
      step: the checkpoint.
      sparsity: the sparsity of the transcoders.
      seed: their seed.
      numbers: the indices of the members, in the order of the layers.
    """

    step: int
    sparsity: float
    seed: int
    numbers: tuple[int, ...]


def replacement_groups(model: Transformer, made: Dictionaries) -> tuple[Replacement, list[Group]]:
    """Find the replacement models of a set of dictionaries.

    Returns:
      The replacement model without parameters, and the members of each replacement model.

    Raises:
      InputError: the set has no transcoders of all MLPs.
    """
    sites = mlp_sites(model)
    by_key: dict[tuple[int, float, int], dict[tuple[str, ...], int]] = {}
    for number, member in enumerate(made.members):
        if len(member.steps) == 1:
            key = member.step, member.sparsity, member.seed
            by_key.setdefault(key, {})[member.write] = number
    layers = [(site,) for site in sites.write]
    groups = []
    for key, members in by_key.items():
        if sites.write in members:
            groups.append(Group(*key, (members[sites.write],)))
        elif all(layer in members for layer in layers):
            groups.append(Group(*key, tuple(members[layer] for layer in layers)))
    if not groups:
        raise InputError(
            f"the set {made.config.name!r} has no transcoders of all MLPs at one checkpoint; train "
            "a set with --config=implicit_reasoning.dictionaries.defaults:transcoder or "
            ":cross_layer"
        )
    dictionaries: Sequence[InferenceDictionary] = [made.dictionary] * len(groups[0].numbers)
    return Replacement(tuple(dictionaries), sites), groups


class Chains(NamedTuple):
    """Chains whose graphs are made.

    Attributes:
      tokens: the prompts of the chains.
      bridge: the bridge of each chain.
      other: the bridge of another chain with another bridge, for the null.
      sources: whether each position has a token of the first fact.
    """

    tokens: Int[np.ndarray, "chain pos"]
    bridge: Int[np.ndarray, " chain"]
    other: Int[np.ndarray, " chain"]
    sources: Bool[np.ndarray, " pos"]


def chains_of(dataset: Dataset, rows: Int[np.ndarray, " chain"]) -> Chains:
    """Return the chains of some rows, with a bridge of another chain for each."""
    random = np.random.default_rng(_SEED)
    bridge = dataset.truth["e2"][rows]
    other = random.permutation(bridge)
    for place in np.flatnonzero(other == bridge):
        others = bridge[bridge != bridge[place]]
        if not len(others):  # All chains have one bridge.
            splits = [dataset.truth["e2"][dataset.rows(split)] for split in chain_splits(dataset)]
            everywhere = np.concatenate(splits)
            others = everywhere[everywhere != bridge[place]]
        other[place] = random.choice(others)
    sources = np.isin(dataset.positions, ("e1", "r1"))
    return Chains(prompts(dataset, rows), bridge, other, sources)


def measure_graphs(
    run: Subject,
    made: Dictionaries,
    *,
    splits: Sequence[str] = (),
    max_features: int = 256,
) -> xr.Dataset:
    """Make the graphs of chains for all replacement models of a set, and measure them.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      splits: the splits of the chains; default: all splits of chains.
      max_features: the number of places for features. `n_active` shows whether it is enough.

    Returns:
      A dataset with the dimension `group` (replacement models, with the coordinates `step`,
      `sparsity` and `seed`) and the dimension `split`. `has_bridge` is the share of chains with an
      active feature that stands for the bridge. Means have intervals that are clustered by bridge,
      as `<name>_low` and `<name>_high`, and the number of bridges that count as `<name>_n`.

    Raises:
      InputError: the set has no transcoders of all MLPs.
      NotApplicable: the task has no chains.
    """
    dataset = run.dataset
    chosen = tuple(splits) or chain_splits(dataset)
    rows, split = choose_rows(dataset, chosen, _MAX_CHAINS)
    outcomes, groups = over_groups(
        run,
        made,
        partial(
            _outcomes,
            chains=chains_of(dataset, rows),
            labels=any_label_prompts(dataset),
            max_features=max_features,
        ),
    )
    return _labeled(outcomes, groups, chosen, split, clusters_of(dataset, rows))


def over_groups(
    run: Subject, made: Dictionaries, measure: Measure
) -> tuple[dict[str, np.ndarray], list[Group]]:
    """Measure all replacement models of a set, in one compiled program.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      measure: function of the model, its parameters at the checkpoint, the replacement model and
        the parameters of its transcoders. It returns arrays by name.

    Returns:
      The arrays, with a leading axis for the replacement models, and the members of each.

    Raises:
      InputError: the set has no transcoders of all MLPs.
    """
    model = run.model
    replacement, groups = replacement_groups(model, made)
    steps = sorted({group.step for group in groups})
    items = (
        np.array([steps.index(group.step) for group in groups]),
        [
            stack_trees(*(made.params_of(group.numbers[place]) for group in groups))
            for place in range(len(groups[0].numbers))
        ],
    )

    @jax.jit
    def program(params: Params, items: tuple[Array, list[Params]]) -> dict[str, Array]:
        def one(item: tuple[Array, list[Params]]) -> dict[str, Array]:
            number, own = item
            return measure(model, jax.tree.map(lambda leaf: leaf[number], params), replacement, own)

        found: dict[str, Array] = jax.lax.map(one, items)
        return found

    outcomes: dict[str, np.ndarray] = jax.device_get(program(run.params(steps), items))
    return outcomes, groups


def group_coords(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the coordinates of the dimension `group`: step, sparsity and seed."""
    names = ("step", "sparsity", "seed")
    return {name: ("group", [getattr(group, name) for group in groups]) for name in names}


def _outcomes(
    model: Transformer,
    params: Params,
    replacement: Replacement,
    own: Sequence[Params],
    *,
    chains: Chains,
    labels: LabelPrompts,
    max_features: int,
) -> dict[str, Array]:
    """Return the outcomes of every chain for one replacement model."""
    arguments = model, params, replacement, own
    acts = local_run(*arguments, jnp.asarray(labels.tokens)).acts
    features = bridge_features(acts, labels)
    graphs = attribute(*arguments, chains.tokens, max_features=max_features)
    judge = partial(_judged, features, jnp.asarray(chains.sources), replacement.n_layers)
    keys = jax.random.split(jax.random.key(_SEED), len(chains.bridge))
    return jax.vmap(judge)(graphs, jnp.asarray(chains.bridge), jnp.asarray(chains.other), keys)


def _judged(
    features: BridgeFeatures,
    sources: Array,
    n_layers: int,
    graph: Graph,
    bridge: Array,
    other: Array,
    key: Array,
) -> dict[str, Array]:
    """Return the outcomes of one graph."""
    kinds = node_kinds(graph, len(sources), n_layers)
    normalized = shares(graph.adjacency)
    flow = influence(normalized, kinds.weights)
    scores = graph_scores(normalized, flow, kinds.weights, kinds.error, kinds.token)
    own, another = (standing_for(graph, features, one) for one in (bridge, other))
    place = graph.pos * n_layers + graph.layer
    chosen = own, another, random_active(key, place, graph.counts, own)
    return {
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "n_active": graph.n_active.astype(jnp.float32),
        "has_bridge": own.any().astype(jnp.float32),
        "bridge_share": jnp.stack([bridge_share(graph, kinds, one, sources) for one in chosen]),
    }


def _labeled(
    outcomes: dict[str, np.ndarray],
    groups: Sequence[Group],
    splits: Sequence[str],
    split: Int[np.ndarray, " chain"],
    clusters: Int[np.ndarray, " chain"],
) -> xr.Dataset:
    """Average the outcomes of the chains of each split, with clustered intervals."""
    arrays: dict[str, Any] = {}
    for name in OUTCOMES:
        # The chains come last. Chains whose first fact has no influence have no bridge share.
        values = np.moveaxis(np.asarray(outcomes[name], np.float64), 1, -1)
        known = np.isfinite(values)
        parts: dict[str, list[np.ndarray]] = {"": [], "_low": [], "_high": [], "_n": []}
        for number in range(len(splits)):
            of = split == number
            intervals = ClusterIntervals(clusters[of])
            found = intervals.interval_given(np.where(known, values, 0)[..., of], known[..., of])
            ends = found.mean, found.low, found.high, found.n_clusters
            for part, end in zip(parts.values(), ends, strict=True):
                part.append(np.asarray(end))
        dims = ("group", "split", "bridge")[: values.ndim]
        for end, part in parts.items():
            arrays[f"{name}{end}"] = dims, np.stack(part, axis=1)
    coords = {
        "split": list(splits),
        "bridge": list(BRIDGES),
        **group_coords(groups),
    }
    return xr.Dataset(arrays, coords)
