"""Patching grids agree with TransformerLens's: whole logit vectors of all cells and directions."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.patching.grids import (
    noising_and_denoising,
    part_names,
    patch_parts,
    patch_states,
)
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.cones import cache_sites
from tests.peers.cases import CASES
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

PEER = "transformer_lens_2"
ROWS = 6


@pytest.fixture(scope="session")
def patched(made, exchanged, tmp_path_factory):
    """Return the folder of cases, with `(tokens, others)` in each, after patching by the peer."""
    folder = tmp_path_factory.mktemp("patched")
    for case, (_, _, tokens) in made.items():
        (folder / case).mkdir()
        for name in ("ours.safetensors", "ours.json"):
            shutil.copy(exchanged(PEER) / case / name, folder / case)
        # Prompts differ at any number of positions, including the first and the last.
        rows = np.random.default_rng(0).permutation(len(tokens))[: ROWS + 1]
        np.save(folder / case / "tokens.npy", tokens[rows[:-1]])
        np.save(folder / case / "others.npy", tokens[rows[1:]])
    run_in(PEER, "patch_grids", folder)
    return folder


def grids_of(made, patched, case):
    """Return `(ours, theirs)` as `{name: [direction, layer, pos, (head), example, d_vocab]}`."""
    model, params, _ = made[case]
    exact = Transformer(dataclasses.replace(model.spec, precision="highest"))
    tokens, others = (np.load(patched / case / f"{name}.npy") for name in ("tokens", "others"))
    sites = cache_sites(exact, inside=True)

    @jax.jit
    def ours(params):
        runs = [exact.forward(params, batch, sites=sites)[1] for batch in (tokens, others)]
        return [
            noising_and_denoising(patch, exact, params, *runs)
            for patch in (patch_states, patch_parts)
        ]

    states, parts = (np.asarray(grid) for grid in ours(params))
    # [direction, block, part, pos, ...]: attention, the MLP, then the heads.
    assert part_names(model)[:3] == ("attention", "MLP", "head 0")
    named = {
        "resid_pre": states[:, :-1],
        "resid_post": states[:, 1:],
        "attn_out": parts[:, :, 0],
        "mlp_out": parts[:, :, 1],
        "head": np.moveaxis(parts[:, :, 2:], 2, 3),
    }
    with np.load(patched / case / "grids.npz") as file:
        return named, dict(file)


@pytest.mark.parametrize("case", CASES)
def test_every_cell_of_a_grid_is_theirs(made, patched, case):
    ours, theirs = grids_of(made, patched, case)
    assert ours.keys() == theirs.keys()
    for name, grid in ours.items():
        # Without norms logits reach 60, where 1e-4 is only a few rounding errors of float32.
        np.testing.assert_allclose(grid, theirs[name], rtol=2e-6, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", ["untied, gelu_new", "trained"])
def test_neighbours_in_a_grid_differ(made, patched, case):
    """A shift by a layer, position, head or direction would make the comparison fail."""
    _, theirs = grids_of(made, patched, case)
    for name, grid in theirs.items():
        for axis in range(4 if name == "head" else 3):
            steps = np.abs(np.diff(grid, axis=axis))
            others = tuple(other for other in range(grid.ndim) if other != axis)
            assert steps.max(others).min() > 0.01, (name, axis)
