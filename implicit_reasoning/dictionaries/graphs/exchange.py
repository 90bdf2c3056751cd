"""Write attribution graphs as JSON files for circuit-tracer's front end and for Neuronpedia.

A folder contains one file `<slug>.json` for each graph, and `graph-metadata.json`, which lists
them. Only nodes and edges that pruning keeps are written. Layers of features start at 0. The layer
of embeddings is "E", and the layer of logits is the number of layers plus 1.

    made = graph_json("who-is-it", graph, tokens=(3, 41, 57), names=vocabulary, n_layers=2)
    save_graph(folder, made)

Source: circuit-tracer 0.5.0, `frontend/graph_models.py` and `utils/create_graph_files.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from implicit_reasoning.dictionaries.graphs.attribution import Graph, node_kinds
from implicit_reasoning.dictionaries.graphs.influence import (
    EDGES,
    NODES,
    influence,
    prune,
    shares,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.paths import local_folder

Feature = tuple[int, int]
"""The layer and the number of a feature."""

_LIST = "graph-metadata.json"
_SLUG = re.compile(r"[\w-]+")


def graph_json(
    slug: str,
    graph: Graph,
    *,
    tokens: Sequence[int],
    names: Sequence[str],
    n_layers: int,
    labels: Mapping[Feature, str] | None = None,
    scan: str = "implicit_reasoning",
    nodes: float = NODES,
    edges: float = EDGES,
) -> dict[str, Any]:
    """Prune the graph of one prompt, and return the JSON of circuit-tracer's front end.

    Args:
      slug: the name of the graph and of its file: letters, digits, `_` and `-`.
      graph: the graph of one prompt (a `Graph` without the batch axis).
      tokens: the tokens of the prompt.
      names: the names of all tokens of the vocabulary.
      n_layers: the number of layers.
      labels: descriptions of features.
      scan: the name of the transcoders.
      nodes: the share of influence that the kept nodes have.
      edges: the share of the scores of edges that the kept edges have.

    Raises:
      InputError: the slug contains other characters.
    """
    if not _SLUG.fullmatch(slug):
        raise InputError(
            f"slug is {slug!r}; it names a file, so use letters, digits, '_' and '-' only"
        )
    kinds = node_kinds(graph, len(tokens), n_layers)
    flow = influence(shares(graph.adjacency), kinds.weights)
    kept = prune(
        graph.adjacency,
        kinds.weights,
        kinds.feature,
        kinds.always,
        nodes=nodes,
        edges=edges,
    )
    node, edge, flow, adjacency = jax.device_get((*kept, flow, graph.adjacency))
    described = _nodes(graph, tokens, names, n_layers, _cumulated(flow), labels or {})
    places = np.flatnonzero(node)
    targets, sources = np.nonzero(edge)
    links = [
        {
            "source": described[source]["node_id"],
            "target": described[target]["node_id"],
            "weight": float(adjacency[target, source]),
        }
        for target, source in zip(targets, sources, strict=True)
        if node[source] and node[target]
    ]
    linked = {link[end] for link in links for end in ("source", "target")}
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": [names[token] for token in tokens],
            "prompt": " ".join(names[token] for token in tokens),
            "node_threshold": nodes,
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            described[place]
            for place in places
            if described[place]["node_id"] in linked
            or described[place]["feature_type"] in ("embedding", "logit")
        ],
        "links": links,
    }


def save_graph(folder: str | os.PathLike[str], made: Mapping[str, Any]) -> None:
    """Save a graph that `graph_json` made. A graph with the same slug is replaced.

    Args:
      folder: the folder, which is created if missing.
      made: the graph.
    """
    folder, about = local_folder(folder, "folder"), made["metadata"]
    listed = read_json(folder / _LIST)["graphs"] if (folder / _LIST).exists() else []
    others = [one for one in listed if one["slug"] != about["slug"]]
    write_json(folder / f"{about['slug']}.json", made)
    write_json(folder / _LIST, {"graphs": [*others, about]})


def _nodes(
    graph: Graph,
    tokens: Sequence[int],
    names: Sequence[str],
    n_layers: int,
    cumulated: Float[np.ndarray, " node"],
    labels: Mapping[Feature, str],
) -> list[dict[str, Any]]:
    """Describe all nodes, in the order of the adjacency."""
    n_pos = len(tokens)
    layers, positions, features, activations, probabilities, said = jax.device_get(
        (graph.layer, graph.pos, graph.feature, graph.activation, graph.probability, graph.token)
    )
    found = [
        _node(
            f"{layer}_{feature}_{pos}",
            f"{layer}_{feature}-0",
            _pairing(int(layer), int(feature)),
            str(layer),
            int(pos),
            "cross layer transcoder",
            activation=float(activation),
            clerp=labels.get((int(layer), int(feature)), ""),
        )
        for layer, pos, feature, activation in zip(
            layers, positions, features, activations, strict=True
        )
    ]
    found += [
        _node(
            f"0_{layer}_{pos}",
            f"{layer}_{pos}-0",
            -1,
            str(layer),
            pos,
            "mlp reconstruction error",
        )
        for layer in range(n_layers)
        for pos in range(n_pos)
    ]
    found += [
        _node(f"E_{token}_{pos}", f"E_{token}-{pos}", pos, "E", pos, "embedding")
        for pos, token in enumerate(tokens)
    ]
    for one, influenced in zip(found, cumulated, strict=False):
        one["influence"] = float(influenced)
    last, top = n_pos - 1, str(n_layers + 1)
    return found + [
        _node(
            f"{top}_{token}_{last}",
            f"L_{token}-{last}",
            int(token),
            top,
            last,
            "logit",
            token_prob=float(probability),
            is_target_logit=place == 0,
            clerp=f'Output "{names[token]}" (p={probability:.3f})',
        )
        for place, (token, probability) in enumerate(zip(said, probabilities, strict=True))
    ]


def _node(
    name: str, script_name: str, feature: int, layer: str, pos: int, kind: str, **more: Any
) -> dict[str, Any]:
    """Describe one node, with the default values of circuit-tracer."""
    usual: dict[str, Any] = {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": pos,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": script_name,
        "clerp": "",
        "influence": None,
        "activation": None,
    }
    return usual | more


def _pairing(layer: int, feature: int) -> int:
    """Return Cantor's number of a pair."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _cumulated(flow: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Return for each node the share of influence of all nodes with at least its influence."""
    order = np.argsort(-flow, kind="stable")
    found = np.zeros_like(flow)
    found[order] = np.cumsum(flow[order]) / max(flow.sum(), 1e-10)
    return found
