"""Everything that runs a model maps over stacked checkpoints; shapes are computed, not values."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import (
    acdc,
    corruptions,
    evaluation,
    learned_masks,
    nodes,
    paths,
    scores,
    selection,
)
from tests.analysis.circuits import tiny

CHECKPOINTS, TAUS = 3, np.array([0.01, 0.1], np.float32)


@pytest.mark.slow
def test_shapes_over_checkpoints():
    graph, model = tiny.GRAPH, tiny.MODEL
    mask = graph.alive
    orders = acdc.visiting_orders(graph, 2, seed=0)
    one = paths.path_masks(graph, [paths.EdgePath.parse("input -> a0.h1<v> -> m1 -> logits")])

    def run(params):
        runs = scores.two_runs(model, params, tiny.CLEAN, tiny.CORRUPT)
        of = model, params, graph, runs, tiny.metric
        mean = nodes.exact_nodes(*of).mean(-1)[graph.sender]
        ranks = selection.greedy(graph, mean)
        circuits = selection.nested_circuits(ranks, np.array([1, 5]))
        drawn = evaluation.random_knock_outs(jax.random.key(0), circuits[1], 4)
        masks = learned_masks.learn_masks(*of, TAUS, jax.random.key(0), steps=5)
        return {
            "metrics": evaluation.circuit_metrics(*of, circuits),
            "completeness": evaluation.completeness(*of, circuits[1], drawn).circuit,
            "minimality": evaluation.minimality(*of, circuits[1], drawn, size=5).effect,
            "acdc": acdc.acdc(*of[:4], None, TAUS, orders).circuit,
            "masks": masks.masks,
            "loss": masks.loss,
            "pruned": selection.prune(graph, circuits[1]),
            "paths": paths.path_effects(*of, one),
            "noise": corruptions.noisy_outputs(model, params, tiny.CLEAN, jax.random.key(0)),
        }

    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((CHECKPOINTS, *x.shape), x.dtype), tiny.params()
    )
    found = jax.eval_shape(jax.vmap(run), like)
    batch, senders = len(tiny.CLEAN), len(graph.senders)
    assert {name: value.shape for name, value in found.items()} == {
        "metrics": (CHECKPOINTS, 2, batch),
        "completeness": (CHECKPOINTS, 4, batch),
        "minimality": (CHECKPOINTS, 5),
        "acdc": (CHECKPOINTS, 2, 2, *mask.shape),
        "masks": (CHECKPOINTS, 2, *mask.shape),
        "loss": (CHECKPOINTS, 2, 5),
        "pruned": (CHECKPOINTS, *mask.shape),
        "paths": (CHECKPOINTS, 1, batch),
        "noise": (CHECKPOINTS, batch, graph.n_pos, senders, tiny.SPEC.d_model),
    }
