"""The terms of the residual stream, against numpy and against the forward pass.

One program for each model computes everything, because every small operation on its own would be
compiled.
"""

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.hooks import Cache, Hooked, get_act_name
from implicit_reasoning.model.weights import Weights
from tests.model.exchange.models import filled

SIZES = {"d_vocab": 11, "n_ctx": 4, "d_model": 8, "n_heads": 2, "d_mlp": 5, "init_std": 0.5}
SPECS = {
    "norms and a logit bias": Spec(**SIZES, n_layers=2, unembed_bias=True),
    "looped and tied": Spec(**SIZES, n_layers=1, n_loops=2, tied=True),
    "no norms": Spec(**SIZES, n_layers=2, normalization="none", act_fn="relu"),
}
TOKENS = np.arange(12).reshape(3, 4) % 11
DEPTH, HEADS, NEURONS = 2, 2, 5

INPUTS = [(0, False), (0, True), (1, False), (1, True), (2, False)]
SELECTIONS = [2, -1, (1, 3), slice(0, 4, 2), [3, 0], np.array([1])]
BY_PROMPT, BY_POSITION = np.array([3, 0, 10]), np.array([5, 1, 2, 9])
TARGETS = {
    "one": (4, np.full((3, 4), 4)),
    "of prompts": (BY_PROMPT, np.broadcast_to(BY_PROMPT[:, None], (3, 4))),
    "of positions": (BY_POSITION, np.broadcast_to(BY_POSITION, (3, 4))),
    "of one row": (BY_POSITION[None], np.broadcast_to(BY_POSITION, (3, 4))),
    "of all": (TOKENS, TOKENS),
}
TERMS = {
    "decompose_resid": {},
    "get_full_resid_decomposition": {},
    "get_full_resid_decomposition ": {"expand_neurons": False},
    "stack_neuron_results": {"incl_remainder": True},
}
PROJECTED = [{}, {"layer": 1, "mlp_input": True, "pos_slice": (1, 3)}]


def stacks(cache, hooked):
    """Return everything that the tests compare, as `{key: array}`, and the labels."""
    found, labels = {}, {}
    for layer, mlp_input in INPUTS:
        for name, options in TERMS.items():
            for apply_ln in (False, True):
                found["terms", name, layer, mlp_input, apply_ln] = getattr(cache, name.strip())(
                    layer=layer, mlp_input=mlp_input, apply_ln=apply_ln, **options
                ).sum(0)
        if not mlp_input:
            heads = cache.stack_head_results(layer, incl_remainder=True, apply_ln=True)
            found["terms", "heads", layer, False, True] = heads.sum(0)
    for name in ("stack_head_results", "stack_neuron_results", "get_full_resid_decomposition"):
        found[name], labels[name] = getattr(cache, name)(return_labels=True)
    found["lens"], labels["lens"] = cache.accumulated_resid(apply_ln=True, return_labels=True)
    found["accumulated"], labels["accumulated"] = cache.accumulated_resid(
        1, incl_mid=True, mlp_input=True, return_labels=True
    )
    stack, labels["all"] = cache.decompose_resid(return_labels=True)
    _, labels["mlp"] = cache.decompose_resid(1, mode="mlp", return_labels=True)
    _, labels["attn"] = cache.decompose_resid(
        1, True, "attn", incl_embeds=False, return_labels=True
    )
    found["patterns"] = cache.stack_activation("pattern")
    for name, (tokens, _) in TARGETS.items():
        found["attrs", name] = cache.logit_attrs(stack, tokens)
    wrong = np.array([7, 7, 7])
    found["wrong"] = cache.logit_attrs(stack, wrong)
    found["gap"] = cache.logit_attrs(stack, BY_PROMPT, wrong)
    last = cache.decompose_resid(pos_slice=-1)
    found["last"] = cache.logit_attrs(last, BY_PROMPT, pos_slice=-1)
    found["chosen"] = cache.logit_attrs(stack, BY_PROMPT[[2, 0]], batch_slice=[2, 0])
    for n, onto in enumerate((hooked.W_U[:, 3], hooked.W_U[:, :6])):
        for name in ("stack_neuron_results", "get_full_resid_decomposition"):
            for case, given in enumerate(PROJECTED):
                for apply_ln in (False, True):
                    stacked, given = getattr(cache, name), given | {"apply_ln": apply_ln}
                    found["projected", n, name, case, apply_ln] = (
                        stacked(**given, project_output_onto=onto),
                        stacked(**given) @ onto,
                    )
    for n, chosen in enumerate([None, *SELECTIONS]):
        for name in ("accumulated_resid", "decompose_resid", "stack_head_results"):
            found["positions", name, n - 1] = getattr(cache, name)(pos_slice=chosen, apply_ln=True)
        found["neurons", n - 1], labels["neurons", n - 1] = cache.stack_neuron_results(
            neuron_slice=chosen, return_labels=True
        )
    one = cache.apply_slice_to_batch_dim([1])
    assert one["z", 0].shape == (1, 4, HEADS, 4) and one.has_batch_dim
    assert one.remove_batch_dim() is one and not one.has_batch_dim
    for name, alone in (("removed", one), ("index", cache.apply_slice_to_batch_dim(1))):
        assert not alone.has_batch_dim
        found[name, "stack"] = alone.get_full_resid_decomposition(apply_ln=True)
        found[name, "attrs"] = alone.logit_attrs(alone.decompose_resid(), TOKENS[1])
    found["whole batch"] = cache.get_full_resid_decomposition(apply_ln=True)
    del cache._values["blocks.1.attn.hook_result"]
    found["heads from z"] = cache.stack_head_results()
    return found, labels


class Run:
    """A model with parameters, its logits and values, and what `stacks` found, as numpy arrays."""

    def __init__(self, spec):
        model, params, keys = Transformer(spec), filled(Transformer(spec)), []

        @jax.jit
        def everything(params):
            hooked = Hooked(model, params)
            logits, cache = hooked.run_with_cache(TOKENS)
            values = dict(cache)
            found, self.labels = stacks(cache, hooked)
            keys[:] = found
            return logits, values, list(found.values())

        self.spec, self.hooked = spec, Hooked(model, params)
        self.logits, self.values, found = jax.device_get(everything(params))
        self.params, self.found = jax.device_get(params), dict(zip(keys, found, strict=True))

    def block(self, layer):
        return self.params["blocks"][str(layer % self.spec.n_layers)]

    def value(self, name, layer):
        return self.values[get_act_name(name, layer)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "norms and a logit bias" else pytest.mark.slow)
        for name in SPECS
    ],
)
def run(request):
    return Run(SPECS[request.param])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_terms_add_up_to_the_stream_and_to_its_norm(run):
    for key, total in run.found.items():
        if key[0] != "terms":
            continue
        _, _, layer, mlp_input, apply_ln = key
        site, name = f"blocks.{layer}.ln{1 + mlp_input}", f"ln{1 + mlp_input}"
        if layer == DEPTH:
            whole, site, norm = run.value("resid_post", 1), "ln_final", run.params.get("ln_final")
        else:
            whole = run.value("resid_mid" if mlp_input else "resid_pre", layer)
            norm = run.block(layer).get(name)
        if apply_ln and run.spec.normalization == "LN":
            whole = run.values[f"{site}.hook_normalized"] - norm["b"]
        close(total, whole)


def test_every_term_against_its_definition(run):
    heads, names = run.found["stack_head_results"], run.labels["stack_head_results"]
    neurons = run.found["stack_neuron_results"]
    neuron_names = run.labels["stack_neuron_results"]
    assert names == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert neuron_names == [f"L{n}N{i}" for n in range(DEPTH) for i in range(NEURONS)]
    for layer in range(DEPTH):
        attn, mlp = run.block(layer)["attn"], run.block(layer)["mlp"]
        z, post = run.value("z", layer), run.value("post", layer)
        for head in range(HEADS):
            close(heads[names.index(f"L{layer}H{head}")], z[:, :, head] @ attn["W_O"][head])
        for i in range(NEURONS):
            expected = post[..., i, None] * mlp["W_out"][i]
            close(neurons[neuron_names.index(f"L{layer}N{i}")], expected)
    full = run.found["get_full_resid_decomposition"]
    assert run.labels["get_full_resid_decomposition"] == [
        *(names + neuron_names),
        *("embed", "pos_embed", "bias"),
    ]
    biases = [run.block(n)["attn"]["b_O"] + run.block(n)["mlp"]["b_out"] for n in range(DEPTH)]
    close(full[-1], np.broadcast_to(sum(biases), full[-1].shape))
    close(full[-2], run.value("pos_embed", None))
    close(run.found["heads from z"], heads)


def test_labels_are_those_of_transformerlens(run):
    blocks = ["0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    assert run.labels["all"] == ["embed", "pos_embed", *blocks]
    assert run.labels["mlp"] == ["embed", "pos_embed", "0_mlp_out"]
    assert run.labels["attn"] == ["0_attn_out", "1_attn_out"]
    assert run.labels["lens"] == ["0_pre", "1_pre", "final_post"]
    assert run.labels["accumulated"] == ["0_pre", "0_mid", "1_pre", "1_mid"]
    for part, (name, layer) in zip(
        run.found["accumulated"],
        [("resid_pre", 0), ("resid_mid", 0), ("resid_pre", 1), ("resid_mid", 1)],
        strict=True,
    ):
        close(part, run.value(name, layer))
    close(run.found["patterns"], np.stack([run.value("pattern", n) for n in range(DEPTH)]))


def test_logits_are_the_sum_of_attributions(run):
    found, params, offset = run.found, run.params, 0
    weight = params["embed"]["W_E"].T if run.spec.tied else params["unembed"]["W_U"]
    if run.spec.unembed_bias:
        offset = params["unembed"]["b_U"]
    bias = offset
    if run.spec.normalization == "LN":
        offset = offset + params["ln_final"]["b"] @ weight
    for name, (_, table) in TARGETS.items():
        expected = np.take_along_axis(run.logits - offset, table[..., None], -1)[..., 0]
        close(found["attrs", name].sum(0), expected)
    by_prompt = found["attrs", "of prompts"]
    close(found["gap"], by_prompt - found["wrong"])
    close(found["last"], by_prompt[..., -1])
    close(found["chosen"], by_prompt[:, [2, 0]])
    close(found["lens"][-1] @ weight + bias, run.logits)


def test_projections_are_products(run):
    for key, value in run.found.items():
        if key[0] == "projected":
            close(*value)


def test_selections_of_positions_and_neurons(run):
    every = run.found["neurons", -1].reshape(DEPTH, NEURONS, 3, 4, -1)
    for n, chosen in enumerate(SELECTIONS):
        index = slice(*chosen) if isinstance(chosen, tuple) else chosen
        for name in ("accumulated_resid", "decompose_resid", "stack_head_results"):
            close(run.found["positions", name, n], run.found["positions", name, -1][:, :, index])
        names = np.atleast_1d(np.arange(NEURONS)[index])
        assert run.labels["neurons", n] == [f"L{b}N{i}" for b in range(DEPTH) for i in names]
        close(run.found["neurons", n], every[:, names].reshape(-1, *every.shape[2:]))


def test_one_prompt_without_its_axis(run):
    for name in ("removed", "index"):
        close(run.found[name, "stack"], run.found["whole batch"][:, 1])
        close(run.found[name, "attrs"], run.found["attrs", "of all"][:, 1])


def test_wrong_arguments_are_named():
    model = Transformer(SPECS["norms and a logit bias"])
    values = {"hook_embed": jax.device_put(np.zeros((3, 4, 8), np.float32))}
    cache = Cache(values, Weights(model, filled(model)))
    with pytest.raises(InputError, match="layer is 2 with mlp_input; it must be from 0 to 1"):
        cache.decompose_resid(2, mlp_input=True)
    with pytest.raises(InputError, match="mode is 'heads'; it must be 'all'"):
        cache.decompose_resid(mode="heads")
    with pytest.raises(InputError, match="there are no terms"):
        cache.decompose_resid(0, incl_embeds=False)
    with pytest.raises(InputError, match="must have the same shape"):
        cache.logit_attrs(values["hook_embed"][None], 3, np.array([1, 2, 3]))
    with pytest.raises(InputError, match=r"token 11 .* does not exist"):
        cache.logit_attrs(values["hook_embed"][None], 11)
    with pytest.raises(InputError, match="the batch axis has size 3"):
        cache.remove_batch_dim()
    with pytest.raises(InputError, match="no batch axis"):
        cache.apply_slice_to_batch_dim(0).apply_slice_to_batch_dim(0)


def test_weights_have_the_names_and_layouts_of_transformerlens(run):
    hooked, spec = run.hooked, run.spec
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        expected = np.stack([run.block(n)["attn"][name] for n in range(DEPTH)])
        np.testing.assert_array_equal(getattr(hooked, name), expected)
    for name in ("W_in", "W_out", "b_in", "b_out"):
        expected = np.stack([run.block(n)["mlp"][name] for n in range(DEPTH)])
        np.testing.assert_array_equal(getattr(hooked, name), expected)
    close(hooked.OV[1, 0].AB, np.asarray(hooked.W_V)[1, 0] @ np.asarray(hooked.W_O)[1, 0])
    close(hooked.QK[0, 1].AB, np.asarray(hooked.W_Q)[0, 1] @ np.asarray(hooked.W_K)[0, 1].T)
    assert hooked.W_E_pos.shape == (spec.d_vocab + spec.n_ctx, spec.d_model)
    close(run.value("embed", None), np.asarray(hooked.W_E)[TOKENS])
