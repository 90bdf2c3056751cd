"""Scores of heads and factored matrices equal those of two generations of TransformerLens."""

import dataclasses

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.components.detection import DETECTIONS, similarity
from implicit_reasoning.analysis.components.head_circuits import composition_scores
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.factored import ov_matrices, qk_matrices
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

CASES = ("untied, gelu_new", "looped, tied", "no norm, relu", "trained")
PEERS = ("transformer_lens_2", "transformer_lens_4")
FORMS = {
    "mul": {},
    "abs": {"measure": "abs"},
    "excluded": {"exclude_first": True, "exclude_current": True},
}
ROWS = 6


def ours_of(model, params, tokens):
    """Return what the scripts of the peers return, and what they read."""
    exact = Transformer(dataclasses.replace(model.spec, precision="highest"))
    sites = [f"blocks.{block}.attn.hook_pattern" for block in range(model.spec.depth)]

    @jax.jit
    def compute(params, tokens):
        _, found = exact.forward(params, tokens, sites=sites)
        patterns = jax.numpy.stack([found[site] for site in sites], axis=1)
        ours = {}
        for name, detect in DETECTIONS.items():
            theirs = f"{name.replace(' ', '_')}_head"
            ours[theirs] = detect(tokens)
            wanted = ours[theirs][:, None, None]
            for form, options in FORMS.items():
                ours[f"{theirs}/{form}"] = similarity(patterns, wanted, **options)
        ov, qk = ov_matrices(model, params), qk_matrices(model, params)
        for name, matrix in (("ov", ov), ("qk", qk)):
            ours[f"{name}/norm"] = matrix.norm()
            ours[f"{name}/values"] = matrix.S
            ours[f"{name}/eigenvalues"] = matrix.eigenvalues
            ours[f"{name}/corner"] = matrix.get_corner(2)
            ours[f"{name}/even"] = matrix.make_even().AB
        for kind, right in (("query", qk), ("key", qk.T), ("value", ov)):
            ours[f"composition/{kind}"] = composition_scores(
                ov[:, :, None, None], right[None, None]
            )
        names = ("W_Q", "W_K", "W_V", "W_O")
        blocks = [params["blocks"][str(n % model.spec.n_layers)]["attn"] for n in range(len(sites))]
        given = {name: jax.numpy.stack([block[name] for block in blocks]) for name in names}
        return ours, given | {"patterns": patterns, "tokens": tokens}

    return jax.tree.map(np.asarray, compute(params, tokens))


@pytest.fixture(scope="session")
def ours(made):
    """Return, for each case, the results of this package and what the peers read.

    Tokens repeat within rows, so that there are duplicates.
    """
    found = {}
    for case in CASES:
        model, params, tokens = made[case]
        again = np.concatenate([tokens[:ROWS, : tokens.shape[1] // 2]] * 2, axis=1)
        found[case] = ours_of(model, params, again)
    return found


@pytest.fixture(scope="session", params=PEERS)
def theirs(request, ours, tmp_path_factory):
    """Return, for each case, the results of a peer."""
    folder = tmp_path_factory.mktemp(request.param)
    for case, (_, given) in ours.items():
        (folder / case).mkdir()
        np.savez(folder / case / "heads.npz", **given)
    run_in(request.param, "heads", folder)
    results = {}
    for case in ours:
        with np.load(folder / case / "their_heads.npz") as file:
            results[case] = dict(file)
    return results


@pytest.mark.parametrize("case", CASES)
def test_scores_and_matrices_are_theirs(ours, theirs, case):
    mine, there = ours[case][0], theirs[case]
    assert mine.keys() == there.keys()
    assert mine["induction_head"].any() and mine["induction_head/mul"].max() > 0.01
    for name, value in there.items():
        if name.endswith("eigenvalues"):
            same_eigenvalues(mine[name], value)
            continue
        # TransformerLens rounds the measure "abs" to three digits.
        tolerance = 6e-4 if name.endswith("/abs") else 1e-4
        np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=tolerance, err_msg=name)


def same_eigenvalues(mine, theirs):
    """Compare eigenvalues in any order, by the sums of their powers."""
    size = np.abs(theirs).max()
    for power in range(1, theirs.shape[-1] + 1):
        sums = [((values / size) ** power).sum(-1) for values in (mine, theirs)]
        np.testing.assert_allclose(*sums, atol=1e-4)
