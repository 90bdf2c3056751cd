"""The page of attribution graphs: one query, with a slider over checkpoints.

    found = query_graphs(run, load(run, "transcoder"), row)
    save_page(run.files, found)                                # graphs/<query>.html of the run
    write_page("graphs.html", make_page(found), kind=KIND)     # or a file anywhere

The report of the run lists the pages in its directory. A page is one HTML file that loads nothing.
A reader moves the slider, looks at nodes with the mouse or the keyboard, pins cards of nodes, and
joins the features of a supernode into one node. The page has the same graph as tables. Without
scripts, it shows the scores of all checkpoints and the nodes of the last one.

layout.py   gives every node one place for all checkpoints
graph.html  is the template, graph.js the script and graph.css the style
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.graphs.bridge import MIN_F1
from implicit_reasoning.dictionaries.graphs.influence import shares
from implicit_reasoning.dictionaries.graphs.layout import (
    EMBEDDING,
    ERROR,
    FEATURE,
    LOGIT,
    UNLABELED,
    Layout,
    Node,
    nodes_of,
    place_nodes,
)
from implicit_reasoning.dictionaries.graphs.query import Query, QueryGraphs, StepGraph
from implicit_reasoning.figures import Page
from implicit_reasoning.pages import json_for_script, make_environment, read_source, write_page
from implicit_reasoning.runs import Layout as RunLayout

KIND = "attribution graphs"
"""What kind of page it is, for `pages.write_page`."""

_TEMPLATES = make_environment("implicit_reasoning.dictionaries.graphs")
_SHOWN = 75  # percent of the flow along edges that is shown at first


def make_page(found: QueryGraphs) -> Page:
    """Make the page of the graphs of one query.

    Args:
      found: the graphs at all checkpoints, as from `query_graphs`.
    """
    layout = place_nodes(found)
    data = page_data(found, layout)
    query, last = found.query, data["graphs"][-1]
    body = _TEMPLATES.get_template("graph.html").render(
        data=json_for_script(data),
        graphs=data["graphs"],
        layout=layout,
        columns=[
            {"text": text, "x": box.x + box.width / 2}
            for text, box in zip(query.positions, layout.cells, strict=False)
        ],
        nodes=_static_rows(data, last),
        last=len(found.graphs) - 1,
        shown=_SHOWN,
        same_features=found.same_features,
        least=MIN_F1,
        bridge=query.truth.get("e2", ""),
        script=read_source(_TEMPLATES, "graph.js"),
    )
    style = read_source(_TEMPLATES, "graph.css")
    name = "attribution_graph_" + "_".join(map(str, query.tokens))
    return Page(name, "Which features lead to the answer?", _lead(query, found), body, style)


def save_page(files: RunLayout, found: QueryGraphs) -> Path:
    """Write the page of the graphs of one query into the directory of a run.

    A page of the same query is replaced.

    Args:
      files: the files of the run, `run.files`.
      found: the graphs at all checkpoints, as from `query_graphs`.

    Returns:
      The file of the page. The report of the run lists it.
    """
    page = make_page(found)
    path = files.graphs / f"{page.name}.html"
    write_page(path, page, KIND)
    return path


def _lead(query: Query, found: QueryGraphs) -> str:
    prompt = " ".join(query.names[token] for token in query.tokens)
    said = f"The prompt is “{prompt}”, and the right answer is “{query.names[query.answer]}”. "
    if "e2" in query.truth:
        said += f"The first fact leads to the bridge e2 = “{query.truth['e2']}”. "
    return said + (
        f"The page has the attribution graph of this prompt at {len(found.graphs)} checkpoints. "
        "Move the slider to see which features the answer depends on at each of them."
    )


def page_data(found: QueryGraphs, layout: Layout) -> dict[str, Any]:
    """Return the data of the page, as JSON can represent them.

    `nodes` has every node once, with its place. `graphs` has one entry for each checkpoint. Its
    `nodes` has the index of each node of the graph, with the activation, the influence and the
    label. Its `edges` has `[source, target, weight, share, flow]`, sorted by flow: the share of the
    absolute input of the target, and that share times the influence of the target.
    """
    query = found.query
    index = {node: place for place, node in enumerate(layout.nodes)}
    texts = [_names(query, node) for node in layout.nodes]
    return {
        "positions": list(query.positions),
        "truth": query.truth,
        "answer": query.names[query.answer],
        "nodes": [
            {
                "kind": node.kind,
                "layer": node.layer,
                "pos": node.pos,
                "number": node.number,
                "row": layout.row_of[place],
                "x": round(layout.points[place][0], 1),
                "y": round(layout.points[place][1], 1),
                "name": texts[place][0],
                "short": texts[place][1],
            }
            for place, node in enumerate(layout.nodes)
        ],
        "rows": [
            {
                **row._asdict(),
                "x": round(box.x, 1),
                "y": round(box.y, 1),
                "height": round(box.height, 1),
                # Features without a common value are no supernode.
                "joins": bool(row.variable),
            }
            for row, box in zip(layout.rows, layout.row_boxes, strict=True)
        ],
        "graphs": [_graph_data(found, at, index) for at in found.graphs],
    }


def _names(query: Query, node: Node) -> tuple[str, str]:
    """Return the name of a node, and a short one for the picture."""
    where = query.positions[node.pos]
    if node.kind == EMBEDDING:
        return f"embedding of {query.names[node.number]} at {where}", query.names[node.number]
    if node.kind == LOGIT:
        return f"logit of {query.names[node.number]}", query.names[node.number]
    if node.kind == ERROR:
        return f"error of MLP {node.layer} at {where}", ""
    return f"feature {node.number} of MLP {node.layer} at {where}", str(node.number)


def _graph_data(found: QueryGraphs, at: StepGraph, index: Mapping[Node, int]) -> dict[str, Any]:
    """Return the data of the graph at one checkpoint."""
    query, graph = found.query, at.graph
    nodes = nodes_of(query, at, same_features=found.same_features)
    adjacency = np.asarray(graph.adjacency)
    normalized = np.asarray(shares(jnp.asarray(adjacency)))
    reached = np.asarray(at.influence, np.float64)
    reached[-len(graph.token) :] += graph.probability
    kept = np.flatnonzero(at.kept.node)
    targets, sources = np.nonzero(at.kept.edge)
    flow = normalized[targets, sources] * reached[targets]
    order = np.argsort(-flow, kind="stable")
    probability = dict(zip(graph.token.tolist(), graph.probability.tolist(), strict=True))
    return {
        "step": at.step,
        "replacement": _number(at.scores.replacement),
        "completeness": _number(at.scores.completeness),
        "bridge_share": _number(at.bridge_share),
        "null_share": _number(at.null_share),
        # It is unknown if the answer is not among the logit nodes.
        "answer": _number(probability.get(query.answer, 0) or math.nan),
        "top": query.names[int(graph.token[0])],
        "active": int(graph.n_active),
        "nodes": [
            {
                "node": index[nodes[place]],
                "influence": _number(reached[place]),
                **_details(nodes[place], int(place), at, query.names),
            }
            for place in kept
        ],
        "edges": [
            [
                index[nodes[sources[edge]]],
                index[nodes[targets[edge]]],
                _number(adjacency[targets[edge], sources[edge]]),
                _number(normalized[targets[edge], sources[edge]]),
                _number(flow[edge]),
            ]
            for edge in order
        ],
    }


def _details(node: Node, place: int, at: StepGraph, names: Sequence[str]) -> dict[str, Any]:
    """Return what is known of a node only if it is a feature or a logit."""
    if node.kind == LOGIT:
        number = place - len(at.kept.node) + len(at.graph.token)
        return {"probability": _number(at.graph.probability[number])}
    if node.kind != FEATURE:
        return {}
    label = at.labels.get(place)
    return {
        "activation": _number(at.graph.activation[place]),
        "label": None if label is None else [label.variable, label.value, _number(label.f1)],
        "tokens": [names[token] for token in at.tokens[place]],
    }


def _number(value: Any) -> float | None:
    """Return a number with four significant digits; None if it is unknown."""
    return float(f"{float(value):.4g}") if math.isfinite(value) else None


def _static_rows(data: Mapping[str, Any], graph: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table of nodes of one graph, for pages without scripts."""
    found = []
    for one in sorted(graph["nodes"], key=lambda one: -(one["influence"] or 0)):
        label, value = one.get("label"), one.get("activation", one.get("probability"))
        found.append(
            {
                "name": data["nodes"][one["node"]]["name"],
                "label": f"{label[0]} = {label[1]} (F1 {label[2]:.2f})"
                if label
                else (UNLABELED if "activation" in one else ""),
                "value": "" if value is None else f"{value:.2f}",
                "influence": f"{one['influence']:.3f}",
            }
        )
    return found
