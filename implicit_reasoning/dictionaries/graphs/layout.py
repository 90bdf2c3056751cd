"""Places of nodes on the page of attribution graphs: layers upwards, and positions to the right.

A cell is a layer at a position. A row of a cell is a supernode: features that stand for the same
value, features that stand for a value that is not that of the query, features without a label, or
the error. A feature belongs to the row of its best label over all checkpoints, so a node has one
place at every checkpoint. Nodes that are never in the graph at the same checkpoint may share a
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from implicit_reasoning.dictionaries.graphs.query import Label, Query, QueryGraphs, StepGraph

OTHER, UNLABELED, ERROR = "another value", "no label", "error"
"""Texts of the rows whose features do not stand for a value of the query, and of errors."""

FEATURE, EMBEDDING, LOGIT = "feature", "embedding", "logit"
"""Kinds of nodes, besides `ERROR`."""

_LEFT, _TEXT, _SLOT, _ROW = 96, 118, 21, 23  # pixels
_PILL = (66, 46)  # width and height of the place of an embedding or of a logit
_PAD, _GAP, _BETWEEN = 9, 14, 34  # in a cell, between columns, between layers
_PER_ROW = 9  # places of features side by side


class Node(NamedTuple):
    """A node of the graphs of a query.

    Attributes:
      kind: `FEATURE`, `ERROR`, `EMBEDDING` or `LOGIT`.
      layer: the layer; -1 for embeddings, and the number of layers for logits.
      pos: the position.
      number: the number of the feature, or the token; -1 for errors.
      step: the checkpoint of a feature whose number means another feature at other checkpoints;
        otherwise -1.
    """

    kind: str
    layer: int
    pos: int
    number: int
    step: int = -1


class Row(NamedTuple):
    """A supernode: a row of a cell.

    Attributes:
      layer: the layer.
      pos: the position.
      variable: the variable whose value the features stand for; "" if there is none.
      text: the text of the row, such as "e2 = <e_12>".
    """

    layer: int
    pos: int
    variable: str
    text: str


class Box(NamedTuple):
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """The places of all nodes, in pixels from the upper left corner.

    Attributes:
      width: the width of the picture.
      height: the height of the picture.
      nodes: the nodes, in the order of their places.
      points: the center of each node.
      rows: the supernodes.
      row_of: the number of the row of each node; -1 for embeddings and logits.
      row_boxes: the rectangle of each row.
      cells: the rectangle of each cell.
      layers: the name and the height of the center of each layer.
    """

    width: float
    height: float
    nodes: list[Node]
    points: list[tuple[float, float]]
    rows: list[Row]
    row_of: list[int]
    row_boxes: list[Box]
    cells: list[Box]
    layers: list[tuple[str, float]]


def nodes_of(query: Query, at: StepGraph, *, same_features: bool) -> list[Node]:
    """Return the node at each place of a graph, in the order of the adjacency."""
    n_pos, graph, top = len(query.tokens), at.graph, query.n_layers
    step = -1 if same_features else at.step
    columns = (np.asarray(part).tolist() for part in (graph.layer, graph.pos, graph.feature))
    features = [
        Node(FEATURE, layer, pos, number, step) for layer, pos, number in zip(*columns, strict=True)
    ]
    errors = [Node(ERROR, layer, pos, -1) for layer in range(top) for pos in range(n_pos)]
    embeddings = [Node(EMBEDDING, -1, pos, token) for pos, token in enumerate(query.tokens)]
    logits = [Node(LOGIT, top, n_pos - 1, int(token)) for token in graph.token]
    return features + errors + embeddings + logits


def place_nodes(found: QueryGraphs) -> Layout:
    """Return the places of all nodes that pruning keeps at some checkpoint."""
    query = found.query
    seen: dict[Node, set[int]] = {}
    strength: dict[Node, float] = {}
    best: dict[Node, Label] = {}
    for number, at in enumerate(found.graphs):
        nodes = nodes_of(query, at, same_features=found.same_features)
        weights = np.concatenate([at.influence[: -len(at.graph.token)], at.graph.probability])
        for place in np.flatnonzero(at.kept.node):
            node, label = nodes[place], at.labels.get(int(place))
            seen.setdefault(node, set()).add(number)
            strength[node] = max(strength.get(node, 0.0), float(weights[place]))
            if label is not None and (node not in best or label.f1 > best[node].f1):
                best[node] = label
    members: dict[Row, list[Node]] = {}
    for node in seen:
        if node.kind in (FEATURE, ERROR):
            members.setdefault(row_of(query, node, best.get(node)), []).append(node)
    order = {name: place for place, name in enumerate((*reversed(query.truth), "", "error"))}
    rows = sorted(members, key=lambda row: (row.layer, row.pos, _rank(row, order)))
    slots = {row: _slots(members[row], seen, strength) for row in rows}
    logits = _slots([node for node in seen if node.kind == LOGIT], seen, strength)
    return _arrange(query, rows, slots, logits, [n for n in seen if n.kind == EMBEDDING])


def row_of(query: Query, node: Node, label: Label | None) -> Row:
    """Return the row of a feature with a label, or of an error."""
    if node.kind == ERROR:
        return Row(node.layer, node.pos, "", ERROR)
    if label is None:
        return Row(node.layer, node.pos, "", UNLABELED)
    if query.truth.get(label.variable) != label.value:
        return Row(node.layer, node.pos, "", OTHER)
    return Row(node.layer, node.pos, label.variable, f"{label.variable} = {label.value}")


def _rank(row: Row, order: Mapping[str, int]) -> tuple[int, int]:
    """Return the place of a row in its cell, from the top: variables, other values, the rest."""
    return order[row.variable], (OTHER, UNLABELED, ERROR).index(row.text) if not row.variable else 0


def _slots(
    nodes: Sequence[Node], seen: Mapping[Node, set[int]], strength: Mapping[Node, float]
) -> dict[Node, int]:
    """Give each node the first slot that no other node has at the same checkpoint."""
    taken: list[set[int]] = []
    found = {}
    for node in sorted(nodes, key=lambda node: (-strength[node], node)):
        free = (number for number, steps in enumerate(taken) if not steps & seen[node])
        slot = next(free, len(taken))
        if slot == len(taken):
            taken.append(set())
        taken[slot] |= seen[node]
        found[node] = slot
    return found


def _lines(slots: Mapping[Node, int]) -> int:
    """Return the number of lines of a row."""
    return max(slots.values()) // _PER_ROW + 1


def _arrange(
    query: Query,
    rows: Sequence[Row],
    slots: Mapping[Row, Mapping[Node, int]],
    logits: Mapping[Node, int],
    embeddings: Sequence[Node],
) -> Layout:
    """Turn rows and slots into pixels."""
    n_pos, positions = len(query.tokens), range(len(query.tokens))
    of_cell = {
        (layer, pos): [row for row in rows if (row.layer, row.pos) == (layer, pos)]
        for layer in range(query.n_layers)
        for pos in positions
    }
    starts, widths, x = [], [], float(_LEFT)
    for pos in positions:
        own = [max(slots[row].values()) + 1 for row in rows if row.pos == pos]
        least = 5 * _PILL[0] if pos == n_pos - 1 else _TEXT + 2 * _SLOT
        wide = max(least, _TEXT + _SLOT * min(_PER_ROW, max(own, default=0))) + 2 * _PAD
        starts.append(x)
        widths.append(wide)
        x += wide + _GAP
    points: dict[Node, tuple[float, float]] = {}
    boxes: dict[Row, Box] = {}
    cells, layers = [], []
    per_line = int(widths[-1] // _PILL[0])
    above = _PILL[1] * (max(logits.values()) // per_line + 1)
    for node, slot in logits.items():
        across, down = slot % per_line, slot // per_line
        left = starts[-1] + (across + 0.5) * _PILL[0]
        points[node] = left, (down + 0.5) * _PILL[1]
    layers.append(("logits", above / 2))
    y = float(above + _BETWEEN)
    for layer in reversed(range(query.n_layers)):
        inside = [sum(_lines(slots[row]) for row in of_cell[layer, pos]) for pos in positions]
        height = _ROW * max(*inside, 1) + 2 * _PAD
        for pos in positions:
            cells.append(Box(starts[pos], y, widths[pos], height))
            top = y + _PAD
            for row in of_cell[layer, pos]:
                boxes[row] = Box(starts[pos], top, widths[pos], _ROW * _lines(slots[row]))
                for node, slot in slots[row].items():
                    across, down = slot % _PER_ROW, slot // _PER_ROW
                    left = starts[pos] + _PAD + _TEXT + (across + 0.5) * _SLOT
                    points[node] = left, top + (down + 0.5) * _ROW
                top += boxes[row].height
        layers.append((f"MLP {layer}", y + height / 2))
        y += height + _BETWEEN
    for node in embeddings:
        points[node] = starts[node.pos] + widths[node.pos] / 2, y + _PILL[1] / 2
    layers.append(("embeddings", y + _PILL[1] / 2))
    number = {node: place for place, row in enumerate(rows) for node in slots[row]}
    nodes = sorted(points, key=lambda node: (node.layer, node.pos, points[node][::-1], node))
    return Layout(
        x - _GAP,
        y + _PILL[1],
        nodes,
        [points[node] for node in nodes],
        list(rows),
        [number.get(node, -1) for node in nodes],
        [boxes[row] for row in rows],
        cells,
        layers,
    )
