"""Decompositions of the residual stream and logit attributions agree with TransformerLens 2 and 4.

TransformerLens's attributions leave out the weight of the final norm, and say so: they are right
where norms are folded. This package's models are not folded, and attributions include the weight.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.components.direct_logit_attribution import (
    component_names,
    direct_parts,
    written_sites,
)
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.hooks import Hooked
from implicit_reasoning.model.wirings import forward_at
from tests.peers.cases import CASES
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

PEERS = ("transformer_lens_2", "transformer_lens_4")
ROWS = 6


@pytest.fixture(scope="session")
def stacked(made, exchanged, tmp_path_factory):
    """Return `stacked(peer)`: the folder of cases after the peer has stacked their terms."""
    folders = {}

    def visit(peer):
        if peer not in folders:
            folders[peer] = folder = tmp_path_factory.mktemp(f"stacked_{peer}")
            for case, (_, _, tokens) in made.items():
                (folder / case).mkdir()
                for name in ("ours.safetensors", "ours.json"):
                    shutil.copy(exchanged("transformer_lens_2") / case / name, folder / case)
                np.save(folder / case / "tokens.npy", tokens[:ROWS])
            run_in(peer, "stacks", folder, peer)
        return folders[peer]

    return visit


@pytest.fixture(scope="session")
def ours(made):
    """Return `ours(case)`: the same stacks of this package, computed in one program."""
    found = {}

    def compute(case):
        if case not in found:
            model, params, tokens = made[case]
            found[case] = stacks_of(model, params, tokens[:ROWS])
        return found[case]

    return compute


def stacks_of(model, params, tokens):
    exact, labels = Transformer(dataclasses.replace(model.spec, precision="highest")), {}

    @jax.jit
    def stack(params):
        hooked = Hooked(exact, params)
        cache = hooked.run_with_cache(tokens)[1]
        named = {
            "accumulated": cache.accumulated_resid(
                1, incl_mid=True, mlp_input=True, return_labels=True
            ),
            "lens": cache.accumulated_resid(apply_ln=True, return_labels=True),
            "decomposed": cache.decompose_resid(return_labels=True),
            "of MLPs": cache.decompose_resid(1, True, "mlp", return_labels=True),
            "heads": cache.stack_head_results(hooked.cfg.depth, return_labels=True),
            "heads and rest": cache.stack_head_results(1, True, True, pos_slice=-1),
            "neurons": cache.stack_neuron_results(1, (1, 3), [5, 0], True, incl_remainder=True),
            "all": cache.get_full_resid_decomposition(1, mlp_input=True, return_labels=True),
            "unexpanded": cache.get_full_resid_decomposition(
                expand_neurons=False, return_labels=True
            ),
        }
        labels.update({name: label for name, (_, label) in named.items()})
        found = {name: value for name, (value, _) in named.items()}
        norm = cache.apply_ln_to_stack(cache.decompose_resid(1, True), 1, mlp_input=True)
        weight = hooked.norm_weight(1, mlp_input=True)
        found["norm without weight"] = norm / weight[None, None, None]
        answer, other, terms = tokens[:, 0], tokens[:, 1], cache.decompose_resid()
        found["folded, gap"] = cache.logit_attrs(terms, answer, other)
        found["folded, of positions"] = cache.logit_attrs(terms, tokens)
        last = cache.get_full_resid_decomposition(pos_slice=-1)
        found["folded, last"] = cache.logit_attrs(last, answer, pos_slice=-1)
        heads = cache.stack_head_results(-1, apply_ln=True, pos_slice=-1)
        found["folded, heads"] = heads @ hooked.W_U
        direct = direct_terms(exact, params, tokens, answer, other)
        found["folded, constant"] = direct.pop("constant")
        found["folded, direct"] = jax.numpy.stack(list(direct.values()))
        labels["folded, direct"] = list(direct)
        return found | {"OV": hooked.OV.AB, "QK": hooked.QK.AB}

    return jax.device_get(stack(params)), labels


def direct_terms(model, params, tokens, answer, other):
    """Return what `direct_logit_attribution` says, summed as in TransformerLens's stack."""
    _, values = forward_at(model, params, tokens, sites=written_sites(model))
    pair = (jax.numpy.asarray(tokens) for tokens in (answer, other))
    parts = direct_parts(model, params, values, *pair)
    part = dict(zip(component_names(model), parts, strict=True))
    blocks, heads = range(model.spec.depth), range(model.spec.n_heads)
    return {
        **{f"L{block}H{head}": part[f"a{block}.h{head}"] for block in blocks for head in heads},
        **{f"{block}_mlp_out": part[f"m{block}"] + part[f"m{block}.bias"] for block in blocks},
        "embed": part["embed"],
        "pos_embed": part["pos_embed"],
        "bias": sum(part[f"a{block}.bias"] for block in blocks),
        "constant": part["final norm bias"] + part["unembedding bias"],
    }


def agree(ours, theirs, case, peer):
    for name, stack in ours.items():
        # Without norms states reach 60, where 1e-4 is only a few rounding errors of float32.
        np.testing.assert_allclose(
            stack, theirs[name], rtol=2e-6, atol=1e-4, err_msg=f"{peer}, {case}: {name}"
        )


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_every_stack_and_its_labels_are_theirs(stacked, ours, peer, case):
    found, labels = ours(case)
    with np.load(stacked(peer) / case / "stacks.npz") as file:
        theirs = dict(file)
    for name, own in labels.items():
        assert own == theirs[f"{name} labels"].tolist(), name
    assert {name for name in theirs if not name.endswith("labels")} == found.keys()
    agree(found, theirs, case, peer)


def test_attributions_without_the_weight_of_the_norm_are_found_out(made, stacked, ours):
    """Otherwise the comparison of attributions could not fail."""
    case = "trained"
    model, params, tokens = made[case]
    wrong = dict(params) | {"ln_final": params["ln_final"] | {"w": np.ones(model.spec.d_model)}}
    found, _ = stacks_of(model, wrong, tokens[:ROWS])
    with np.load(stacked(PEERS[0]) / case / "stacks.npz") as file:
        for name in ("folded, gap", "folded, direct"):
            assert np.abs(found[name] - file[name]).max() > 0.01, name
