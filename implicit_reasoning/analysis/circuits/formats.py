"""Files of circuits of other programs: EAP-IG's graph JSON, and AutoCircuit's prune scores.

EAP-IG writes one JSON file with the scores of all edges and the edges of a circuit, without
positions. MIB's tools read the same file. The names of edges are those of `EdgeGraph`.

AutoCircuit's `PruneScores` are a dictionary from the names of modules to arrays
`[seq?, head?, sender]`; the axis `seq` exists if positions are separate. A `.safetensors` file with
these arrays becomes `PruneScores` by `safetensors.torch.load_file`. AutoCircuit itself pickles
them. Nodes have names such as `Resid Start`, `A0.1`, `MLP 0`, `A1.0.Q` and `Resid End`.

Sources: github.com/hannamw/EAP-IG, `Graph.to_json` and `Graph.from_json`; AutoCircuit 1.0.1,
`transformer_lens_utils.factorized_src_nodes`, `factorized_dest_nodes` and `Edge.patch_idx`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model.exchange.arrays import checked, read_arrays, write_arrays
from implicit_reasoning.model.graph import INPUTS, EdgeGraph
from implicit_reasoning.model.units import Edge


class EdgeScores(NamedTuple):
    """The contents of a file of EAP-IG.

    Attributes:
      scores: the score of each edge of the graph.
      circuit: the edges of the circuit.
    """

    scores: Float[np.ndarray, " edge"]
    circuit: Bool[np.ndarray, " edge"]


def write_eap_ig(
    path: str | os.PathLike[str],
    graph: EdgeGraph,
    scores: Float[np.ndarray, " edge"],
    circuit: Bool[np.ndarray, " edge"] | None = None,
) -> None:
    """Write scores and a circuit as a JSON file of EAP-IG.

    Args:
      path: the file.
      graph: the edge graph.
      scores: the score of each edge at all positions together. EAP-IG sums over positions.
      circuit: the edges of the circuit; None means no edge, as in a file with scores only.
    """
    inside = np.zeros(len(graph.edges), bool) if circuit is None else circuit
    nodes = {name: {"in_graph": _in_circuit(graph, name, inside)} for name in graph.senders}
    nodes["logits"] = {"in_graph": True}
    edges = {
        str(edge): {"score": float(score), "in_graph": bool(chosen)}
        for edge, score, chosen in zip(graph.edges, scores, inside, strict=True)
    }
    write_json(path, {"cfg": _config(graph), "nodes": nodes, "edges": edges}, indent=None)


def read_eap_ig(path: str | os.PathLike[str], graph: EdgeGraph) -> EdgeScores:
    """Read the scores and the circuit of a JSON file of EAP-IG.

    Args:
      path: the file.
      graph: the edge graph of the model to which the file belongs.

    Raises:
      InputError: the file is not a graph of EAP-IG, or belongs to a model of another size.
    """
    found = read_json(path)
    if not isinstance(found, Mapping) or not {"cfg", "edges"} <= set(found):
        raise InputError(f"{path} is not a graph of EAP-IG; it must contain `cfg` and `edges`")
    _check_config(path, found["cfg"], graph)
    edges, wanted = found["edges"], {str(edge) for edge in graph.edges}
    if set(edges) != wanted:
        odd = sorted(set(edges) ^ wanted)
        raise InputError(
            f"{path} must contain exactly the {len(wanted)} edges of the model; {odd[0]} is "
            f"{'missing' if odd[0] in wanted else 'not among them'}"
        )
    try:
        rows = [(edges[str(edge)]["score"], edges[str(edge)]["in_graph"]) for edge in graph.edges]
        scores, circuit = (np.array(column) for column in zip(*rows, strict=True))
        return EdgeScores(scores.astype(np.float64), circuit.astype(bool))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is not a graph of EAP-IG; every edge must have `score` and `in_graph`"
        ) from None


def to_prune_scores(
    graph: EdgeGraph, scores: Float[np.ndarray, "edge pos"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Convert scores to AutoCircuit's `PruneScores`.

    Args:
      graph: the edge graph.
      scores: the score of each edge. If the axis `pos` has length 1, the arrays have no axis `seq`.

    Returns:
      For each module, the scores of its edges as `[seq?, head?, sender]`.
    """
    found = {}
    for module, numbers in _modules(graph).items():
        table = np.moveaxis(scores[numbers], -1, 0)  # [pos, receiver, sender]
        table = table if module.endswith("_input") else table[:, 0]
        found[module] = np.ascontiguousarray(table if scores.shape[1] > 1 else table[0])
    return found


def from_prune_scores(
    graph: EdgeGraph, arrays: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "edge pos"]:
    """Convert AutoCircuit's `PruneScores` to scores of edges.

    Args:
      graph: the edge graph of the model.
      arrays: for each module, the scores of its edges as `[seq?, head?, sender]`.

    Returns:
      The score of each edge. Without an axis `seq`, the axis `pos` has length 1.

    Raises:
      InputError: a module is missing or unknown, or an array has another shape.
    """
    modules = _modules(graph)
    if set(arrays) != set(modules):
        odd = sorted(set(arrays) ^ set(modules))
        raise InputError(
            f"prune scores must contain exactly the modules {', '.join(modules)}; {odd[0]} is "
            f"{'missing' if odd[0] in modules else 'not among them'}"
        )
    end = np.ndim(arrays[f"blocks.{graph.spec.depth - 1}.hook_resid_post"])
    n_pos = graph.n_pos if end == 2 else 1
    scores = np.zeros((len(graph.edges), n_pos))
    for module, numbers in modules.items():
        inner = numbers.shape if module.endswith("_input") else numbers.shape[1:]
        shape = (n_pos, *inner) if end == 2 else inner
        if arrays[module].shape != shape:
            raise InputError(
                f"{module} has shape {arrays[module].shape}; prune scores of this model have the "
                f"shape {shape}"
            )
        scores[numbers] = np.moveaxis(arrays[module].reshape(n_pos, *numbers.shape), 0, -1)
    return scores


def write_prune_scores(
    path: str | os.PathLike[str], graph: EdgeGraph, scores: Float[np.ndarray, "edge pos"]
) -> None:
    """Write scores as AutoCircuit's `PruneScores`, to a `.safetensors` or `.npz` file.

    Args:
      path: the file.
      graph: the edge graph.
      scores: the score of each edge. If the axis `pos` has length 1, the arrays have no axis `seq`.

    Raises:
      InputError: the path has another suffix.
    """
    arrays = to_prune_scores(graph, scores)
    plain = {module: array.astype(np.float32) for module, array in arrays.items()}
    write_arrays(checked(path), plain)


def read_prune_scores(
    path: str | os.PathLike[str], graph: EdgeGraph
) -> Float[np.ndarray, "edge pos"]:
    """Read AutoCircuit's `PruneScores` from a `.safetensors` or `.npz` file.

    Args:
      path: the file.
      graph: the edge graph of the model.

    Raises:
      InputError: the file is damaged, or does not belong to a model of this size.
    """
    return from_prune_scores(graph, read_arrays(checked(path)))


def auto_circuit_name(edge: Edge) -> str:
    """Return AutoCircuit's name of an edge, such as `Resid Start->A0.1.Q`."""
    return f"{_their_node(edge.sender, 'Resid Start')}->{_their_node(edge.receiver, 'Resid End')}"


def edge_of_auto_circuit(name: str) -> Edge:
    """Return the edge with AutoCircuit's name.

    Raises:
      InputError: the text is not the name of an edge between a sender and a receiver.
    """
    sender, _, receiver = name.partition("->")
    return Edge(_our_node(sender), _our_node(receiver))


_OURS = re.compile(r"a(?P<block>\d+)\.h(?P<head>\d+)(<(?P<part>[qkv])>)?|m(?P<mlp>\d+)")
_THEIRS = re.compile(r"A(?P<block>\d+)\.(?P<head>\d+)(\.(?P<part>[QKV]))?|MLP (?P<mlp>\d+)")


def _their_node(name: str, end: str) -> str:
    found = _OURS.fullmatch(name)
    if found is None:  # the embeddings or the logits
        return end
    if found["mlp"]:
        return f"MLP {found['mlp']}"
    part = f".{found['part'].upper()}" if found["part"] else ""
    return f"A{found['block']}.{found['head']}{part}"


def _our_node(name: str) -> str:
    ends = {"Resid Start": "input", "Resid End": "logits"}
    found = _THEIRS.fullmatch(name)
    if name not in ends and found is None:
        raise InputError(
            f"{name!r} is not a node of AutoCircuit; nodes have names such as Resid Start, A0.1, "
            "MLP 0, A1.0.Q and Resid End"
        )
    if found is None:
        return ends[name]
    if found["mlp"]:
        return f"m{found['mlp']}"
    part = f"<{found['part'].lower()}>" if found["part"] else ""
    return f"a{found['block']}.h{found['head']}{part}"


def _modules(graph: EdgeGraph) -> dict[str, np.ndarray]:
    """Return the numbers of the edges into each module, as `[receiver, sender]`."""
    depth, found = graph.spec.depth, {}
    for layer in range(depth):
        parts = {part: f"hook_{part}_input" for part in INPUTS} | {"mlp": "hook_mlp_in"}
        for part, name in parts.items():
            receivers = graph.receivers_of(layer, part)
            count = graph.senders_before(receivers.start)
            found[f"blocks.{layer}.{name}"] = graph.number[:count, receivers].T
    found[f"blocks.{depth - 1}.hook_resid_post"] = graph.number[:, -1:].T
    return found


def _in_circuit(graph: EdgeGraph, name: str, circuit: np.ndarray) -> bool:
    """Return whether a sender has an edge from it in the circuit, and an edge into it."""
    out_of = circuit[graph.sender == graph.senders.index(name)].any()
    own = [number for number, r in enumerate(graph.receivers) if r.partition("<")[0] == name]
    return bool(out_of and (name == "input" or circuit[np.isin(graph.receiver, own)].any()))


def _config(graph: EdgeGraph) -> dict[str, Any]:
    spec = graph.spec
    sizes = {"n_layers": spec.depth, "n_heads": spec.n_heads}
    return sizes | {"parallel_attn_mlp": False, "d_model": spec.d_model}


def _check_config(path: str | os.PathLike[str], found: Any, graph: EdgeGraph) -> None:
    for name, value in _config(graph).items():
        if not isinstance(found, Mapping) or found.get(name, value) != value:
            stated = found.get(name) if isinstance(found, Mapping) else found
            raise InputError(f"{path} has {name} {stated!r} in `cfg`, but the model has {value!r}")
