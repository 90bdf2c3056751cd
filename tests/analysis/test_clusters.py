"""Instruments cluster outcomes of chains by bridge."""

import numpy as np
import pytest

from implicit_reasoning.analysis import find_instrument
from implicit_reasoning.analysis.patching.query_pairs import choose_pairs
from implicit_reasoning.analysis.states import choose_rows
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.model import Spec, Transformer

DATASET = small_world()
SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_mlp": 16}
MODEL = Transformer(Spec(d_vocab=DATASET.n_vocab, n_ctx=DATASET.n_ctx, **SIZES))
BRIDGES = len(np.unique(DATASET.truth["e2"]))


def same(one, other):
    pairs = np.unique(np.stack([one, other]), axis=1).shape[1]
    return pairs == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("behaviour", 1000),
        ("activation_patching", 150),
        ("back_patching", 150),
        ("parameter_patching", 150),
    ],
)
def test_questions_are_clustered_by_bridge(name, most):
    examples = find_instrument(name).examples(MODEL, DATASET)
    rows, _ = choose_rows(DATASET, examples.groups, most)
    assert same(examples.clusters, DATASET.truth["e2"][rows])


def test_patched_pairs_are_clustered_by_the_bridge_of_the_source():
    examples, pairs = (
        find_instrument("cross_query_patching").examples(MODEL, DATASET),
        choose_pairs(DATASET),
    )
    assert same(examples.clusters, DATASET.world.facts.tail[pairs.source.facts[:, 0]])


@pytest.mark.parametrize("name", ["lens", "mean_swap", "erasure", "das"])
def test_states_are_clustered_by_bridge_once_they_know_it(name):
    instrument = find_instrument(name)
    examples = instrument.examples(MODEL, DATASET)
    counts = [len(np.unique(line)) for line in examples.clusters]
    positions = instrument.coords(MODEL, DATASET)["pos"]
    for pos, count in zip(positions, counts, strict=True):
        assert count <= (40 if pos == "e1" else BRIDGES)
    assert same(examples.clusters[-1], examples.clusters[positions.index("r1")])
