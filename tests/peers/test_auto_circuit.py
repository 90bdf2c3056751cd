"""Scores of edges and ACDC's circuits agree with those of AutoCircuit.

AutoCircuit runs on TransformerLens 2's model. Edges are patched at all positions together, and the
metric is a logit difference. Signs and factors differ: AutoCircuit's losses are minus the mean
metric, and its integrated gradients are a sum over the points.
"""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits.acdc import acdc, thresholds_of, visiting_orders
from implicit_reasoning.analysis.circuits.formats import auto_circuit_name
from implicit_reasoning.analysis.circuits.scores import eap, exact, mask_gradients, two_runs
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import save_weights
from implicit_reasoning.model.graph import EdgeGraph
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

CASES = ("untied, gelu_new", "no norm, relu", "trained")
ROWS = 6
SAMPLES = 5
POINTS = np.arange(SAMPLES + 1) / SAMPLES  # AutoCircuit's points: one more than its samples
BASES, EXPONENTS = (1, 3), (-4, -2)
TAUS = np.sort([base * 10.0**exponent for base in BASES for exponent in EXPONENTS])
ORDERS = 2


def given_of(model, tokens):
    """Return pairs of prompts, two answers for each pair, and orders of the edges."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(tokens))[: ROWS + 1]
    graph = EdgeGraph(model.spec, tokens.shape[1])
    return SimpleNamespace(
        graph=graph,
        clean=tokens[rows[:-1]],
        corrupt=tokens[rows[1:]],
        answers=np.stack([rng.permutation(model.spec.d_vocab)[:2] for _ in range(ROWS)], axis=1),
        orders=visiting_orders(graph, ORDERS, seed=0, by_position=False),
    )


def ours_of(model, params, given):
    """Return our scores, and the smallest threshold at which ACDC patches each edge."""
    model = Transformer(dataclasses.replace(model.spec, precision="highest"))
    answer, other = given.answers
    rows = np.arange(ROWS)

    def metric(logits):
        return logits[rows, answer] - logits[rows, other]

    @jax.jit
    def compute(params, clean, corrupt):
        runs = two_runs(model, params, clean, corrupt)
        common = model, params, given.graph, runs
        gradients = mask_gradients(*common, metric, points=POINTS)
        scores = {
            "exact": exact(*common, metric, by_position=False),
            "EAP": eap(*common, metric),
            "mask gradients": gradients,
        }
        circuits = acdc(*common, None, TAUS, given.orders, by_position=False).circuit
        return {name: score.sum(1).mean(1) for name, score in scores.items()}, circuits

    scores, circuits = jax.device_get(
        compute(params, jnp.asarray(given.clean), jnp.asarray(given.corrupt))
    )
    return scores | {"ACDC": thresholds_of(circuits, TAUS)[..., 0]}


@pytest.fixture(scope="session")
def given(made):
    return {case: given_of(made[case][0], made[case][2]) for case in CASES}


@pytest.fixture(scope="session")
def ours(made, given):
    """Return `ours(case)`: the arrays of `ours_of`, by name."""

    @functools.cache
    def compute(case):
        model, params, _ = made[case]
        return ours_of(model, params, given[case])

    return compute


@pytest.fixture(scope="session")
def theirs(made, given, tmp_path_factory):
    """Return `theirs(case)`: the arrays of AutoCircuit, by name."""
    folder = tmp_path_factory.mktemp("auto_circuit")
    for case in CASES:
        model, params, _ = made[case]
        (folder / case).mkdir()
        save_weights(folder / case / "ours.safetensors", model, params)
        for name in ("clean", "corrupt", "answers", "orders"):
            np.save(folder / case / f"{name}.npy", getattr(given[case], name))
        names = [auto_circuit_name(edge) for edge in given[case].graph.edges]
        files = {"edges": names, "taus": {"bases": BASES, "exponents": EXPONENTS}}
        for name, content in files.items():
            (folder / case / f"{name}.json").write_text(json.dumps(content))
    run_in("auto_circuit", "edge_scores", folder)

    @functools.cache
    def load(case):
        with np.load(folder / case / "scores.npz") as file:
            return dict(file)

    return load


def agree(ours, theirs):
    """Compare with a tolerance of 1e-4 of the largest score."""
    largest = np.abs(theirs).max()
    assert largest > 1e-2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("case", CASES)
def test_exact_scores_are_what_patching_one_edge_in_autocircuit_changes(ours, theirs, case):
    agree(ours(case)["exact"], theirs(case)["exact"])


@pytest.mark.parametrize("name", ["EAP", "mask gradients at 0"])
@pytest.mark.parametrize("case", CASES)
def test_eap_is_autocircuits(ours, theirs, case, name):
    agree(ours(case)["EAP"], -theirs(case)[name])


@pytest.mark.parametrize("case", CASES)
def test_mask_gradients_are_autocircuits(ours, theirs, case):
    agree(len(POINTS) * ours(case)["mask gradients"], -theirs(case)["integrated mask gradients"])


@pytest.mark.parametrize("case", CASES)
def test_acdc_patches_the_edges_that_autocircuit_patches(ours, theirs, case):
    own, other = ours(case)["ACDC"], theirs(case)["ACDC"]
    # The thresholds decide differently, and the order matters.
    sizes = [(other > 1.01 * tau).sum(1) for tau in TAUS]
    assert len(np.unique(sizes)) > 3, sizes
    assert (other != other[0]).any()
    np.testing.assert_allclose(own, other, rtol=1e-6)
