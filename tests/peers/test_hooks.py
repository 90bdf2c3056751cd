"""The value at every hook agrees with three generations of TransformerLens."""

import dataclasses

import jax
import numpy as np
import pytest

from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange.arrays import read_arrays
from tests.peers.cases import PAIRS

pytestmark = pytest.mark.peers

# Hooks have the names of TransformerLens 2. Later generations moved two of them, and their values
# are converted here:
# - `hook_normalized` has the value before weight and bias of the norm, not after them;
NORMALIZED_BEFORE_WEIGHT = ("sae_lens", "transformer_lens_4")
# - the native bridge has only attention's pattern, and shows it at the scores as well.
PATTERN_AS_SCORES = ("transformer_lens_4",)


def moved_back(peer, hook, value, weights):
    """Return the value at a hook of a peer as `(this package's name, its value)`."""
    if hook.endswith("hook_normalized") and peer in NORMALIZED_BEFORE_WEIGHT:
        norm = hook.removesuffix("hook_normalized")
        return hook, value * weights[norm + "w"] + weights[norm + "b"]
    if hook.endswith("hook_attn_scores") and peer in PATTERN_AS_SCORES:
        return hook.replace("attn_scores", "pattern"), value
    return hook, value


@pytest.mark.parametrize(("peer", "case"), [pair for pair in PAIRS if pair[0] != "huggingface"])
def test_every_hook_has_the_value_that_it_has_there(made, exchanged, peer, case):
    model, params, tokens = made[case]
    folder = exchanged(peer) / case
    weights = read_arrays(folder / "ours.safetensors")
    with np.load(folder / "hooks.npz") as file:
        shared = {site: file[site] for site in model.sites if site in file}
    if peer == "transformer_lens_4":  # its native bridge has most hooks
        assert len(shared) > len(model.sites) / 2
    else:
        assert list(shared) == list(model.sites)
    exact = Transformer(dataclasses.replace(model.spec, precision="highest"))
    _, ours = jax.jit(lambda p: exact.forward(p, tokens, sites=tuple(model.sites)))(params)
    for hook, value in shared.items():
        site, there = moved_back(peer, hook, value, weights)
        np.testing.assert_allclose(ours[site], there, rtol=1e-4, atol=1e-4, err_msg=hook)


@pytest.mark.parametrize("peer", NORMALIZED_BEFORE_WEIGHT)
def test_a_norm_that_is_not_moved_back_is_found_out(made, exchanged, peer):
    """Otherwise the comparison above could not fail, and the list of moved hooks could become
    outdated.
    """
    case = "untied, gelu_new"
    model, params, tokens = made[case]
    with np.load(exchanged(peer) / case / "hooks.npz") as file:
        there = file["ln_final.hook_normalized"]
    _, ours = model.forward(params, tokens, sites=("ln_final.hook_normalized",))
    assert np.abs(ours["ln_final.hook_normalized"] - there).max() > 0.1
