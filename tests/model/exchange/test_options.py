"""Fields of other packages' configs are translated such that logits agree, or refused by name."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import load_gpt2, load_weights, save_gpt2, save_weights
from tests.model.exchange.models import SPEC, filled, tokens_for
from tests.model.exchange.numpy_gpt2 import gpt2
from tests.model.exchange.numpy_hooked import hooked
from tests.model.exchange.test_bridge import native

TOKENS = tokens_for(SPEC)


@pytest.fixture(scope="module")
def ours():
    """Return logits of the test model, by one program for all tests."""
    return jax.jit(lambda params: Transformer(SPEC).forward(params, TOKENS)[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Save one model in both formats; tests restore the files."""
    folder, model = tmp_path_factory.mktemp("files"), Transformer(SPEC)
    params = filled(model)
    save_weights(folder / "w.npz", model, params)
    save_gpt2(folder / "gpt2", model, params)
    np.savez(folder / "native.npz", **native(params))
    (folder / "native.json").write_text((folder / "w.json").read_text())
    return folder


def with_fields(path, fields):
    """Set fields of a config; return the config and a function that restores it."""
    before = path.read_text()
    config = json.loads(before) | fields
    path.write_text(json.dumps(config))
    return config, lambda: path.write_text(before)


SCALES = [
    {"use_attn_scale": False},
    {"attn_scale": 1.0},
    {"attn_scale": 8.0},
    {"attn_scale": math.sqrt(SPEC.d_head)},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_by_inverse_layer_idx": True, "attn_scale": 3.0},
    {"scale_attn_by_inverse_layer_idx": True, "use_attn_scale": False, "attn_scale": 3.0},
]


@pytest.mark.parametrize("fields", SCALES, ids=str)
def test_what_scores_are_divided_by_is_folded_into_the_queries(files, ours, fields):
    config, undo = with_fields(files / "w.json", fields)
    try:
        model, params = load_weights(files / "w.npz")
    finally:
        undo()
    assert model.spec == SPEC
    with np.load(files / "w.npz") as state:
        theirs = hooked(state, config, TOKENS)
        usual = hooked(state, json.loads((files / "w.json").read_text()), TOKENS)
    np.testing.assert_allclose(ours(params), theirs, rtol=0, atol=1e-4)
    assert (np.abs(usual - theirs).max() > 1e-3) == (fields != {"attn_scale": 2.0})  # logits change


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_what_gpt2_divides_scores_by_is_folded_as_well(files, ours, fields):
    state = load_file(files / "gpt2" / "model.safetensors")
    config, undo = with_fields(files / "gpt2" / "config.json", fields)
    try:
        _, params = load_gpt2(files / "gpt2")
    finally:
        undo()
    theirs = gpt2(state, config, TOKENS)
    usual = gpt2(state, json.loads((files / "gpt2" / "config.json").read_text()), TOKENS)
    np.testing.assert_allclose(ours(params), theirs, rtol=0, atol=1e-4)
    assert np.abs(usual - theirs).max() > 1e-3  # logits change


@pytest.mark.parametrize(
    "fields",
    [
        {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local"]},
        {"use_qk_norm": True},
        {"attn_scores_soft_cap": 50.0},
        {"output_logits_soft_cap": 30.0},
        {"parallel_attn_mlp": True},
        {"n_key_value_heads": 2},
        {"post_embedding_ln": True},
        {"use_normalization_before_and_after": True},
        {"final_rms": True},
        {"num_experts": 4, "experts_per_token": 2},
        {"use_logn_attn": True},
        {"clip_qkv": 8.0},
        {"original_architecture": "Olmo2ForCausalLM"},
        {"load_in_4bit": True},
        {"per_layer_head_dim": [4, 8]},
        {"d_vocab_out": 7},
        {"attention_dir": "bidirectional"},
        {"attn_scale": 0.0},
        {"attn_scale": -3.0},
        {"attn_scale": float("nan")},
        {"attn_scale": "8"},
        {"use_attn_scale": 0},
        {"eps": float("nan")},
        {"n_layers": True},
        {"of_a_later_version": 1},
        {"of_a_later_version": "yes"},
    ],
    ids=str,
)
def test_fields_of_hooked_transformer_that_are_refused_by_name(files, fields):
    _, undo = with_fields(files / "w.json", fields)
    try:
        with pytest.raises(InputError, match=next(iter(fields))):
            load_weights(files / "w.npz")
    finally:
        undo()


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"bits": 8}},
        {"pruned_heads": {"0": [1]}},
        {"is_encoder_decoder": True},
        {"rope_theta": 10000.0},
        {"layer_norm_epsilon": float("inf")},
        {"scale_attn_weights": "no"},
        {"n_embd": True},
        {"num_key_value_heads": 1},
    ],
    ids=str,
)
def test_fields_of_gpt2_that_are_refused_by_name(files, fields):
    _, undo = with_fields(files / "gpt2" / "config.json", fields)
    try:
        with pytest.raises(InputError, match=next(iter(fields))):
            load_gpt2(files / "gpt2")
    finally:
        undo()


def test_a_whole_config_of_hooked_transformer_is_accepted(files):
    """TransformerLens 2, 3 and 4 write these fields for a supported model, including defaults."""
    fields = {
        "use_attn_result": True,
        "use_split_qkv_input": True,
        "device": "cuda",
        "dtype": "torch.float32",
        "model_name": "custom",
        "attn_scale": 2.0,
        "window_size": None,
        "attn_types": None,
        "rotary_base": 10000,
        "rotary_dim": None,
        "seed": 3,
        "n_params": 1234,
        "initializer_range": 0.2,
        "init_mode": "gpt2",
        "default_prepend_bos": True,
        "tokenizer_prepends_bos": True,
        "attn_scores_soft_cap": -1.0,
        "output_logits_soft_cap": -1.0,
        "NTK_by_parts_factor": 8.0,
        "yarn_truncate": True,
        "num_experts": None,
        "architecture": "TransformerLensNative",
        "split_attention_weights": False,
        "is_multimodal": False,
        "of_a_later_version": False,
        "also_later": None,
    }
    _, undo = with_fields(files / "w.json", fields)
    try:
        assert load_weights(files / "w.npz")[0].spec == SPEC
    finally:
        undo()


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_fast"])
def test_other_names_of_the_same_activation(files, name):
    _, undo = with_fields(files / "w.json", {"act_fn": name})
    try:
        assert load_weights(files / "w.npz")[0].spec.act_fn == "gelu_new"
    finally:
        undo()


def test_a_native_bridge_divides_by_attn_scale_and_ignores_the_rest(files, ours):
    path = files / "native.json"
    config, undo = with_fields(path, {"attn_scale": 5.0})
    try:
        _, params = load_weights(files / "native.npz")
    finally:
        undo()
    with np.load(files / "w.npz") as state:
        theirs = hooked(state, config, TOKENS)
    np.testing.assert_allclose(ours(params), theirs, rtol=0, atol=1e-4)
    for fields in ({"use_attn_scale": False}, {"scale_attn_by_inverse_layer_idx": True}):
        _, undo = with_fields(path, fields)
        try:
            with pytest.raises(InputError, match=f"{next(iter(fields))} = .* native model"):
                load_weights(files / "native.npz")
        finally:
            undo()


def test_a_bias_that_only_some_blocks_lack_is_missing(files, tmp_path):
    with np.load(files / "w.npz") as file:
        arrays = {name: a for name, a in file.items() if name != "blocks.1.attn.b_Q"}
    np.savez(tmp_path / "w.npz", **arrays)
    (tmp_path / "w.json").write_text((files / "w.json").read_text())
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.b_Q is missing"):
        load_weights(tmp_path / "w.npz")


def test_names_of_two_generations_in_one_file(files, tmp_path):
    with np.load(files / "native.npz") as file:
        arrays = dict(file)
    (tmp_path / "w.json").write_text((files / "w.json").read_text())
    arrays["blocks.0.mlp.W_in"] = arrays.pop("blocks.0.mlp.in.weight").T
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(InputError, match=r"contains names of .*blocks\.0\.mlp\.W_in"):
        load_weights(tmp_path / "w.npz")
