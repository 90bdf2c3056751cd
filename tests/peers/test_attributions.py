"""Attributions agree with those of two generations of TransformerLens, and with captum's.

TransformerLens caches values and gradients by its hooks, and PyTorch computes the gradients.
Captum's integrated gradients run on TransformerLens 2's model, with the same quadrature nodes.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.components.estimates import (
    ESTIMATES,
    block_sites,
    cell_sites,
    estimated_effects,
    state_sites,
)
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import save_weights
from implicit_reasoning.model.gradients import site_gradients
from implicit_reasoning.model.wirings import forward_at
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

CASES = ("untied, gelu_new", "tied", "no norm, relu", "trained", "trained, looped, tied")
PEERS = ("transformer_lens_2", "transformer_lens_4")
CAPTUM = "transformer_lens_2"  # captum is installed in this environment
ROWS = 6
KINDS = ("states", "parts", "projections", "neurons")
NODES = 16
IN_BLOCK = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern", "attn.hook_z"),
    *("attn.hook_result", "mlp.hook_pre", "mlp.hook_post"),
)


def sites_of(model, peer=CAPTUM):
    """Return the sites to compare; native models of TransformerLens 4 do not compute results."""
    without = "attn.hook_result" if peer == "transformer_lens_4" else None
    names = [name for name in IN_BLOCK if name != without]
    blocks = range(model.spec.depth)
    return ("hook_embed", *(f"blocks.{block}.{name}" for block in blocks for name in names))


def given_of(model, tokens):
    """Return clean prompts, corrupt prompts and two answers for each prompt."""
    rng = np.random.default_rng(0)
    # Prompts differ at any number of positions, including the first and the last.
    rows = rng.permutation(len(tokens))[: ROWS + 1]
    answers = rng.integers(model.spec.d_vocab, size=(2, ROWS))
    return {"tokens": tokens[rows[:-1]], "others": tokens[rows[1:]], "answers": answers}


def ours_of(model, params, given):
    """Return the products at each site of `forward`, and the estimated effects by cell."""
    exact = Transformer(dataclasses.replace(model.spec, precision="highest"))
    answer, other = given["answers"]
    rows = np.arange(ROWS)

    def metric(logits):
        return logits[rows, -1, answer] - logits[rows, -1, other]

    @jax.jit
    def compute(params, tokens, others):
        run = functools.partial(exact.forward, params, tokens)
        found = site_gradients(run, metric, sites_of(exact))
        _, donor = exact.forward(params, others, sites=sites_of(exact))
        products = {
            site: (donor[site] - found.values[site]) * gradient
            for site, gradient in found.gradients.items()
        }
        sites = cell_sites(exact, KINDS)
        _, donor = forward_at(exact, params, others, sites=sites)
        donors = {site: value[None] for site, value in donor.items()}
        effects = estimated_effects(exact, params, tokens, metric, donors, KINDS, NODES)
        return products, {kind: values[:, 0] for kind, values in effects.items()}

    tokens, others = (jnp.asarray(given[name]) for name in ("tokens", "others"))
    return jax.device_get(compute(params, tokens, others))


@pytest.fixture(scope="session")
def given(made):
    return {case: given_of(model, tokens) for case, (model, _, tokens) in made.items()}


@pytest.fixture(scope="session")
def ours(made, given):
    """Return `ours(case)`: the products by site, and the effects by kind of cells."""

    @functools.cache
    def compute(case):
        model, params, _ = made[case]
        return ours_of(model, params, given[case])

    return compute


@pytest.fixture(scope="session")
def theirs(made, given, tmp_path_factory):
    """Return `theirs(peer, case, name)`: the arrays of one file of the peer, by site."""

    @functools.cache
    def visit(peer):
        folder = tmp_path_factory.mktemp(f"attributions_{peer}")
        for case in CASES:
            model, params, _ = made[case]
            (folder / case).mkdir()
            save_weights(folder / case / "ours.safetensors", model, params)
            for name, values in given[case].items():
                np.save(folder / case / f"{name}.npy", values)
            files = {"sites": sites_of(model, peer), "nodes": nodes_of(model)}
            for name, content in files.items():
                (folder / case / f"{name}.json").write_text(json.dumps(content))
        run_in(peer, "attributions", folder, peer)
        return folder

    def load(peer, case, name):
        with np.load(visit(peer) / case / f"{name}.npz") as file:
            return dict(file)

    return load


def nodes_of(model):
    """Return the number of quadrature nodes of each site that a cell patches."""
    states = state_sites(model)
    inside = [site for n in range(model.spec.depth) for site in block_sites(n, KINDS)[1:]]
    return {**dict.fromkeys(states, NODES), **dict.fromkeys(inside, NODES // 4)}


def cells_of(model, products):
    """Return the products of sites in the order of cells, [*cell, example]."""

    def summed(site):
        return np.moveaxis(products[site].sum(-1), 0, -1).swapaxes(0, -2)  # [*head, pos, example]

    blocks = [f"blocks.{block}." for block in range(model.spec.depth)]
    return {
        "states": np.stack([summed(site) for site in state_sites(model)]),
        "parts": np.stack(
            [
                [
                    summed(f"{block}hook_attn_out"),
                    summed(f"{block}hook_mlp_out"),
                    *summed(f"{block}attn.hook_z"),
                ]
                for block in blocks
            ]
        ),
        "projections": np.stack(
            [[summed(f"{block}attn.hook_{name}") for name in "qkv"] for block in blocks]
        ),
        "neurons": np.stack(
            [products[f"{block}mlp.hook_post"].transpose(2, 1, 0) for block in blocks]
        ),
    }


def agree(ours, theirs, what):
    """Compare with a tolerance of 1e-4, and of a hundredth of the largest effect if that is less.

    Values without norms reach 60, where 1e-4 is only a few rounding errors of float32.
    """
    largest = np.abs(theirs).max()
    assert largest > 0, what
    tolerance = min(1e-4, largest / 100)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_attribution_patching_at_every_site_is_theirs(made, ours, theirs, peer, case):
    products, _ = ours(case)
    found = theirs(peer, case, "attributions")
    assert found.keys() == set(sites_of(made[case][0], peer))
    for site, product in found.items():
        agree(products[site], product, f"{peer}, {case}: {site}")


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_attribution_patching_of_every_cell_is_theirs(made, ours, theirs, peer, case):
    effects = ours(case)[1]
    cells = cells_of(made[case][0], theirs(peer, case, "attributions"))
    for kind in KINDS:
        own = effects[kind][ESTIMATES.index("AtP")]
        agree(own, cells[kind], f"{peer}, {case}: {kind}")


@pytest.mark.parametrize("case", CASES)
def test_integrated_gradients_are_those_of_captum(made, ours, theirs, case):
    effects = ours(case)[1]
    cells = cells_of(made[case][0], theirs(CAPTUM, case, "integrated"))
    for kind in KINDS:
        own = effects[kind][ESTIMATES.index("integrated gradients")]
        agree(own, cells[kind], f"{case}: {kind}")
