"""Graphs of a query at two checkpoints, written by hand."""

import numpy as np

from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.dictionaries.graphs.influence import GraphScores, Pruned
from implicit_reasoning.dictionaries.graphs.query import Label, Query, QueryGraphs, StepGraph

NAMES = ("a", "</script><b>b", "r", "s", "<i>c", "d")
QUERY = Query(
    positions=("e1", "r1", "r2"),
    tokens=(0, 2, 3),
    names=NAMES,
    truth={"e1": "a", "r1": "r", "e2": NAMES[1], "r2": "s", "answer": NAMES[4]},
    answer=4,
    n_layers=2,
)
# Nodes: 3 features, 6 errors (layer by layer), 3 embeddings, 2 logits.
FEATURES, SIZE = 3, 14
EMBEDDINGS, LOGITS = (9, 10, 11), (12, 13)


def step_graph(step, layers, positions, numbers, edges, labels, tokens):
    """Return a graph whose edges are `{(source, target): weight}`; every node of one is kept."""
    adjacency = np.zeros((SIZE, SIZE), np.float32)
    for (source, target), weight in edges.items():
        adjacency[target, source] = weight
    touched = np.isin(np.arange(SIZE), list(edges)) | np.isin(np.arange(SIZE), EMBEDDINGS)
    graph = Graph(
        adjacency,
        np.array(layers),
        np.array(positions),
        np.array(numbers),
        activation=np.array([1.5, 2.5, 3.5], np.float32),
        counts=np.ones(FEATURES, bool),
        token=np.array([4, 1]),
        probability=np.array([0.75, 0.25], np.float32),
        total=np.zeros(FEATURES + 2, np.float32),
        n_active=np.array(5),
    )
    return StepGraph(
        step,
        graph,
        Pruned(touched, adjacency != 0),
        influence=np.linspace(0.1, 0.5, SIZE).astype(np.float32),
        scores=GraphScores(np.float32(0.5), np.float32(0.25)),
        bridge_share=0.125,
        null_share=float("nan"),
        labels=labels,
        tokens=np.array(tokens),
    )


def hand_made(same_features=True):
    """Return the graphs at two checkpoints. Feature 7 of MLP 0 at r1 is in both."""
    before = step_graph(
        10,
        (0, 0, 1),
        (1, 1, 2),
        (5, 7, 2),
        {(9, 0): 1.0, (9, 1): -3.0, (0, 12): 2.0, (1, 12): 1.0, (8, 12): 1.0, (2, 13): -1.0},
        {0: Label("e2", NAMES[1], 0.55), 1: Label("e2", NAMES[4], 0.75)},
        tokens=[(5, 5), (2, 3), (5, 5)],
    )
    after = step_graph(
        2000,
        (0, 0, 1),
        (1, 1, 2),
        (7, 8, 2),
        {(9, 0): 4.0, (10, 0): -1.0, (0, 2): 3.0, (1, 2): 1.5, (2, 12): 5.0},
        {0: Label("e2", NAMES[1], 0.9), 1: Label("e2", NAMES[1], 0.6), 2: Label("r2", "s", 0.5)},
        tokens=[(0, 4), (5, 5), (5, 5)],
    )
    return QueryGraphs(QUERY, (before, after), same_features)
