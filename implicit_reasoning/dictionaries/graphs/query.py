"""The graphs of one query at every checkpoint of a set of dictionaries, in one compiled program.

    found = query_graphs(run, load(run, "transcoder"), row=run.dataset.rows("test_ii")[0])
    write_page("graph.html", make_page(found), kind="attribution graphs")  # page.py

The features of each graph have labels by true variables (`labels.py`), and each graph has its
scores and its bridge share (`bridge.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.subject import Subject, stack_trees
from implicit_reasoning.dictionaries.graphs.attribution import Graph, attribute, node_kinds
from implicit_reasoning.dictionaries.graphs.bridge import (
    bridge_features,
    bridge_share,
    standing_for,
)
from implicit_reasoning.dictionaries.graphs.connections import de_embeddings, reading_vectors
from implicit_reasoning.dictionaries.graphs.influence import (
    EDGES,
    NODES,
    GraphScores,
    Pruned,
    graph_scores,
    influence,
    prune,
    shares,
)
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts, any_label_prompts
from implicit_reasoning.dictionaries.graphs.labels import (
    FeatureLabels,
    TrueValues,
    label_features,
    true_values,
)
from implicit_reasoning.dictionaries.graphs.measure import (
    Chains,
    Group,
    chains_of,
    replacement_groups,
)
from implicit_reasoning.dictionaries.replacement import Replacement, local_run
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer

TOKENS = 5
"""The number of tokens that describe a feature."""


class Label(NamedTuple):
    """A value for which a feature stands.

    Attributes:
      variable: the name of the variable, such as "e2".
      value: the name of the value, such as "<e_12>".
      f1: F1 of "the feature is active" as a predictor of the value, on held-out facts.
    """

    variable: str
    value: str
    f1: float


class Query(NamedTuple):
    """A prompt, and what is true of it.

    Attributes:
      positions: the names of the positions, such as ("e1", "r1", "r2").
      tokens: the tokens of the prompt.
      names: the names of all tokens of the vocabulary.
      truth: the name of the true value of each variable, such as {"e2": "<e_12>"}.
      answer: the token of the right answer.
      n_layers: the number of layers.
    """

    positions: tuple[str, ...]
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    truth: dict[str, str]
    answer: int
    n_layers: int


class StepGraph(NamedTuple):
    """The graph of a query at one checkpoint.

    Attributes:
      step: the training step.
      graph: the graph of one prompt (a `Graph` without the batch axis).
      kept: the nodes and edges that pruning keeps.
      influence: the influence of each node on the logits.
      scores: replacement and completeness.
      bridge_share: the share of the influence of e1 and r1 that passes through features of the
        bridge; nan if it is unknown.
      null_share: the same for another bridge.
      labels: the label of each feature that has one, by its place in the graph.
      tokens: the tokens whose embeddings add most to the pre-activation of each feature directly,
        from the weights alone (`connections.py`).
    """

    step: int
    graph: Graph
    kept: Pruned
    influence: Float[np.ndarray, " node"]
    scores: GraphScores
    bridge_share: float
    null_share: float
    labels: dict[int, Label]
    tokens: Int[np.ndarray, "feature token"]


class QueryGraphs(NamedTuple):
    """The graphs of a query over training.

    Attributes:
      query: the query.
      graphs: the graph at each checkpoint, in ascending order of steps.
      same_features: whether a feature's number means the same feature at every checkpoint. This is
        so if the dictionaries of a checkpoint start from those of its neighbor.
    """

    query: Query
    graphs: tuple[StepGraph, ...]
    same_features: bool


def query_graphs(
    run: Subject,
    made: Dictionaries,
    row: int,
    *,
    sparsity: float | None = None,
    seed: int = 0,
    max_features: int = 256,
    nodes: float = NODES,
    edges: float = EDGES,
) -> QueryGraphs:
    """Make the graphs of one query for the replacement models of all checkpoints of a set.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      row: the row of the dataset; its prompt is a chain.
      sparsity: the sparsity of the dictionaries; default: the median of the set.
      seed: the seed of the dictionaries.
      max_features: the number of places for features.
      nodes: the share of influence that the kept nodes have.
      edges: the share of the scores of edges that the kept edges have.

    Raises:
      InputError: the set has no transcoders of all MLPs, or none with this sparsity and seed; or
        the row is no chain.
      NotApplicable: the task has no chains.
    """
    dataset, model = run.dataset, run.model
    query = _query(run, row)
    replacement, groups = replacement_groups(model, made)
    chosen = _choose(groups, sparsity, seed)
    chains, prompts = chains_of(dataset, np.array([row])), any_label_prompts(dataset)
    true = true_values(dataset, prompts.rows)
    of_places = [
        stack_trees(*(made.params_of(group.numbers[place]) for group in chosen))
        for place in range(len(chosen[0].numbers))
    ]
    program = _program(model, replacement, chains, prompts, true, max_features, nodes, edges)
    found = jax.device_get(program((run.params([group.step for group in chosen]), of_places)))
    graphs = [
        _step_graph(group.step, true, query, *jax.tree.map(lambda leaf, at=at: leaf[at], found))
        for at, group in enumerate(chosen)
    ]
    return QueryGraphs(query, tuple(graphs), made.config.start != "cold")


def _query(run: Subject, row: int) -> Query:
    """Return the prompt of a row, and the names of the true values of its variables."""
    dataset = run.dataset
    true = true_values(dataset, np.array([row]))
    truth = {
        name: dataset.vocab[first + int(values[0])]
        for name, values, first in zip(true.names, true.values, true.first_token, strict=True)
        if values[0] >= 0
    }
    if len(truth) < len(true.names):
        missing = ", ".join(name for name in true.names if name not in truth)
        raise InputError(f"row {row} is no chain; it has no value of {missing}")
    return Query(
        tuple(dataset.positions),
        tuple(dataset.tokens[row, : len(dataset.positions)].tolist()),
        tuple(dataset.vocab),
        truth,
        int(dataset.truth["answer"][row]),
        run.model.spec.depth,
    )


def _choose(groups: Sequence[Group], sparsity: float | None, seed: int) -> list[Group]:
    """Return one replacement model for each step."""
    known = sorted({group.sparsity for group in groups})
    wanted = known[len(known) // 2] if sparsity is None else sparsity
    chosen = [group for group in groups if (group.sparsity, group.seed) == (wanted, seed)]
    if not chosen:
        seeds = ", ".join(str(one) for one in sorted({group.seed for group in groups}))
        raise InputError(
            f"the set has no replacement model with sparsity {wanted:g} and seed {seed}; its "
            f"sparsities are {', '.join(f'{one:g}' for one in known)} and its seeds are {seeds}"
        )
    return sorted(chosen, key=lambda group: group.step)


class _Found(NamedTuple):
    """What the program returns for each replacement model."""

    graph: Graph
    kept: Pruned
    influence: Array
    scores: GraphScores
    bridge_share: Array  # of the bridge of the query, and of another bridge
    labels: FeatureLabels  # of the features of the graph
    tokens: Array  # of the features of the graph


def _program(
    model: Transformer,
    replacement: Replacement,
    chains: Chains,
    prompts: LabelPrompts,
    true: TrueValues,
    max_features: int,
    nodes: float,
    edges: float,
) -> Any:
    """Return the compiled function that makes the graphs for all replacement models."""

    def one(item: tuple[Params, list[Params]]) -> _Found:
        arguments = model, item[0], replacement, item[1]
        acts = local_run(*arguments, jnp.asarray(prompts.tokens)).acts
        labels = label_features(acts, true, prompts)
        bridges = bridge_features(acts, prompts)
        graphs = attribute(*arguments, chains.tokens, max_features=max_features)
        graph: Graph = jax.tree.map(lambda leaf: leaf[0], graphs)
        n_pos = chains.tokens.shape[1]
        kinds = node_kinds(graph, n_pos, replacement.n_layers)
        normalized = shares(graph.adjacency)
        flow = influence(normalized, kinds.weights)
        sources = jnp.asarray(chains.sources)
        ends = [
            bridge_share(
                graph, kinds, standing_for(graph, bridges, jnp.asarray(bridge[0])), sources
            )
            for bridge in (chains.bridge, chains.other)
        ]
        place = graph.pos, graph.layer, graph.feature
        return _Found(
            graph,
            prune(
                graph.adjacency,
                kinds.weights,
                kinds.feature,
                kinds.always,
                nodes=nodes,
                edges=edges,
            ),
            flow,
            graph_scores(normalized, flow, kinds.weights, kinds.error, kinds.token),
            jnp.stack(ends),
            jax.tree.map(lambda leaf: leaf[place], labels),
            _top_tokens(*arguments, graph),
        )

    return jax.jit(lambda items: jax.lax.map(one, items))


def _top_tokens(
    model: Transformer,
    params: Params,
    replacement: Replacement,
    own: Sequence[Params],
    graph: Graph,
) -> Int[Array, "feature token"]:
    """Return the tokens with the largest de-embeddings for each feature of a graph."""
    read = reading_vectors(model, params, replacement.weights(own))
    scores = de_embeddings(params, read[graph.layer, :, graph.feature].T)
    tokens: Array = jax.lax.top_k(scores.T, min(TOKENS, len(scores)))[1]
    return tokens


def _step_graph(
    step: int,
    true: TrueValues,
    query: Query,
    graph: Graph,
    kept: Pruned,
    flow: Float[np.ndarray, " node"],
    scores: GraphScores,
    share: Float[np.ndarray, " bridge"],
    labels: Any,
    tokens: Int[np.ndarray, "feature token"],
) -> StepGraph:
    """Give names to the labels of one graph."""
    variable: Int[np.ndarray, " feature"] = labels.variable
    named = {
        int(place): Label(
            true.names[variable[place]],
            query.names[true.first_token[variable[place]] + int(labels.value[place])],
            float(labels.f1[place]),
        )
        for place in np.flatnonzero((variable >= 0) & graph.counts)
    }
    own, other = map(float, share)
    return StepGraph(step, graph, kept, flow, scores, own, other, named, tokens)
