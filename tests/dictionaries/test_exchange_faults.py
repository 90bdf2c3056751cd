"""Folders of other packages that were once misread are now translated or refused.

The expected values are computed here by numpy, from the definitions in the packages.
"""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from implicit_reasoning.dictionaries.architectures import Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.exchange import (
    load_cross_layer,
    load_gemma_scope,
    load_saelens,
    load_transcoder_set,
    save_transcoder_set,
)
from implicit_reasoning.errors import InputError

D, F, ROWS = 6, 10, 7
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(ROWS, D)).astype(np.float32)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def plain(d_out=D):
    return {
        "W_enc": normal(D, F),
        "b_enc": normal(F),
        "W_dec": normal(F, d_out),
        "b_dec": normal(d_out),
    }


def relu(x):
    return np.maximum(x, 0)


def topk(x, k):
    """SAELens's TopK: the k largest values, then ReLU."""
    least = np.sort(x, axis=-1)[:, -k][:, None]
    return relu(np.where(x >= least, x, 0))


def old(**fields):
    """Return a config as SAELens 3 to 5 write it."""
    return {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "model_name": "gpt2-small",
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_layer": 1,
        "hook_head_index": None,
        "prepend_bos": True,
        "dataset_path": "a/b",
        "dataset_trust_remote_code": True,
        "normalize_activations": "none",
        "dtype": "torch.float32",
        "device": "cuda",
        "sae_lens_training_version": "4.0.0",
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "seqpos_slice": [None],
        **fields,
    }


def new(architecture="standard", **fields):
    """Return a config as SAELens 6 writes it."""
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_pre"},
        **fields,
    }


def write_sae(folder, config, arrays):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(arrays, folder / "sae_weights.safetensors")
    return folder


# SAELens: translated configs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        old(activation_fn_str="topk", activation_fn_kwargs={"k": 4}),  # the case that was reported
        old(architecture="topk", activation_fn_str="topk", activation_fn_kwargs={"k": 4}),
        {
            **{k: v for k, v in old().items() if k not in ("activation_fn_str", "architecture")},
            "activation_fn": "topk",  # the oldest name of the field
            "activation_fn_kwargs": {"k": 4},
        },
        new("topk", k=4),
    ],
    ids=["version 3", "version 5", "oldest", "version 6"],
)
def test_topk_of_every_version(tmp_path, config):
    arrays = plain()
    whole, params, about = load_saelens(write_sae(tmp_path, config, arrays))
    acts = np.asarray(whole.encode(params, jnp.asarray(X)))
    expected = topk((X - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"], 4)
    np.testing.assert_allclose(acts, expected, atol=1e-5)
    assert (acts > 0).sum(-1).max() == 4 and about["hook_name"] == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_finetuning_factors_are_part_of_the_decoder(tmp_path, name):
    arrays = plain() | {name: 1 + np.abs(normal(F))}
    whole, params, _ = load_saelens(
        write_sae(tmp_path, old(finetuning_scaling_factor=True), arrays)
    )
    acts = relu((X - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"])
    expected = (acts * arrays[name]) @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(whole(params, jnp.asarray(X)), expected, atol=1e-5)


def test_an_old_encoder_that_reads_its_input_as_it_is(tmp_path):
    arrays = plain() | {"threshold": np.abs(normal(F)), "scaling_factor": np.ones(F, np.float32)}
    config = old(
        architecture="jumprelu", apply_b_dec_to_input=False, hook_point="blocks.1.hook_resid_pre"
    )
    whole, params, _ = load_saelens(write_sae(tmp_path, config, arrays))
    pre = X @ arrays["W_enc"] + arrays["b_enc"]
    expected = (relu(pre) * (pre > arrays["threshold"])) @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(whole(params, jnp.asarray(X)), expected, atol=1e-5)


def test_bfloat16_and_a_config_of_training(tmp_path):
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in plain().items()}
    config = old(dtype="bfloat16", l1_coefficient=2.0, noise_scale=0.1, use_ghost_grads=True)
    config |= {"normalize_activations": False, "lp_norm": 1.0, "jumprelu_bandwidth": 0.05}
    whole, params, _ = load_saelens(write_sae(tmp_path, config, arrays))
    wide = {name: a.astype(np.float32) for name, a in arrays.items()}
    acts = relu((X - wide["b_dec"]) @ wide["W_enc"] + wide["b_enc"])
    np.testing.assert_allclose(
        whole(params, jnp.asarray(X)), acts @ wide["W_dec"] + wide["b_dec"], atol=1e-5
    )


# SAELens: refused configs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (old(activation_fn_str="tanh-relu"), "activation_fn_str = 'tanh-relu'"),
        (old(architecture="gated", activation_fn_str="topk"), "activation_fn_str = 'topk'"),
        (old(architecture="jumprelu", activation_fn_str="tanh-relu"), "activation_fn_str"),
        (old(architecture="topk", activation_fn_kwargs={"k": 4}), "activation_fn_str = 'relu'"),
        (old(activation_fn_str="topk"), "must give one whole number"),
        (
            old(activation_fn_str="topk", activation_fn_kwargs={"k": F + 1}),
            "must give one whole number",
        ),
        (
            old(activation_fn_str="topk", activation_fn_kwargs={"k": 4, "postact_fn": "x"}),
            "postact",
        ),
        (old(activation_fn_kwargs={"negative_slope": 0.1}), "negative_slope"),
        (old(activation_fn="topk"), "gives activation_fn twice"),
        (new("topk", k=4, activation_fn_kwargs={"k": 5}), "must give one whole number"),
        (new("topk", k=0), "must give one whole number"),
        (new("topk", k=True), "k = True"),
        (new("topk", k=4.5), "k = 4.5"),
        (new("topk"), "must give one whole number"),
        (new("standard", k=4), "k is 4 and architecture is 'standard'"),
        (new("batchtopk"), "architecture = 'batchtopk' is not supported"),
        (new("matching_pursuit", residual_threshold=0.1), "residual_threshold"),
        (new(rescale_acts_by_decoder_norm=True), "rescale_acts_by_decoder_norm"),
        (new(normalize_activations="covariance_whitening"), "normalize_activations"),
        (old(normalize_activations=True), "normalize_activations = True"),
        (new(reshape_activations="hook_z"), "reshape_activations = 'hook_z'"),
        (old(hook_name="blocks.0.attn.hook_z"), "hook_name = 'blocks.0.attn.hook_z'"),
        (new(apply_b_dec_to_input="false"), "apply_b_dec_to_input = 'false'"),
        (new(of_a_later_version=0.5), "of_a_later_version = 0.5"),
        (new("transcoder"), "d_out is missing; d_out of a transcoder"),
        (new(d_out=4), "d_out is 4"),
        (old(finetuning_scaling_factor=True), "array of scaling factors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configs_of_saelens_that_are_refused_by_name(tmp_path, config, said):
    with pytest.raises(InputError, match=said):
        load_saelens(write_sae(tmp_path, config, plain()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"W_enc": normal(F, D)}, r"W_enc has shape \(10, 6\), not \(6, 10\)"),  # transposed
        ({"b_enc": normal(1)}, r"b_enc has shape \(1,\)"),
        ({"threshold": np.abs(normal(F))}, "threshold is not a parameter"),
        ({"log_threshold": normal(F)}, "log_threshold is not a parameter"),
        ({"b_enc": None}, "b_enc is missing"),
        ({"W_skip": normal(D, D)}, "W_skip is not a parameter"),
        ({"b_enc": np.ones(F, np.int8)}, "b_enc has type int8"),
        ({"scaling_factor": 2 + np.abs(normal(F))}, "but finetuning_scaling_factor is false"),
        ({"scaling_factor": np.ones(3, np.float32)}, r"scaling_factor has shape \(3,\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_of_saelens_that_do_not_fit(tmp_path, change, said):
    arrays = {name: a for name, a in (plain() | change).items() if a is not None}
    with pytest.raises(InputError, match=said):
        load_saelens(write_sae(tmp_path, new(), arrays))


# circuit-tracer -----------------------------------------------------------------------------------


def write_set(folder, layers=(0, 1, 2), config=(), change=None):
    """Write a set in the layout of circuit-tracer; `change(layer, arrays)` damages it."""
    folder.mkdir(exist_ok=True)
    for layer in layers:
        arrays = plain()
        arrays["W_enc"] = np.ascontiguousarray(arrays["W_enc"].T)
        if change:
            change(layer, arrays)
        save_file(arrays, folder / f"layer_{layer}.safetensors")
    write_yaml(folder, "transcoder_set", config)
    return folder


def write_clt(folder, n=3, config=(), change=None):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        encoder = {f"W_enc_{i}": normal(F, D), f"b_enc_{i}": normal(F), f"b_dec_{i}": normal(D)}
        encoder[f"threshold_{i}"] = np.abs(normal(F))
        decoder = {f"W_dec_{i}": normal(F, n - i, D)}
        if change:
            change(i, encoder, decoder)
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        save_file(decoder, folder / f"W_dec_{i}.safetensors")
    write_yaml(folder, "cross_layer_transcoder", config)
    return folder


def write_yaml(folder, kind, config):
    fields = {
        "model_name": "tiny",
        "model_kind": kind,
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
        "scan": "tiny",
        **dict(config),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(fields))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"activation": "topk", "k": 4},
            "activation = 'topk'.* k = 4",
        ),  # the case that was reported
        ({"activation": "gelu"}, "activation = 'gelu'"),
        ({"activation": "jumprelu"}, "no thresholds, but activation is 'jumprelu'"),
        ({"activation": ["relu"]}, "activation"),
        ({"k": 4}, "k = 4"),
        ({"transcoders": ["hf://a/b/c.safetensors"]}, "transcoders"),
        ({"d_skip": 3}, "d_skip = 3"),
    ],
    ids=str,
)
def test_configs_of_circuit_tracer_that_are_refused_by_name(tmp_path, config, said):
    with pytest.raises(InputError, match=said):
        load_transcoder_set(write_set(tmp_path, config=config))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_set_computes_what_circuit_tracer_does(tmp_path, activation):
    folder = write_set(tmp_path, config={"activation": activation, "revision": "main"})
    found = load_transcoder_set(folder, n_layers=3)
    for layer, (whole, params) in enumerate(found):
        a = load_file(folder / f"layer_{layer}.safetensors")
        expected = relu(X @ a["W_enc"].T + a["b_enc"]) @ a["W_dec"] + a["b_dec"]
        np.testing.assert_allclose(whole(params, jnp.asarray(X)), expected, atol=1e-5)


def test_one_threshold_for_all_features(tmp_path):
    name = "activation_function.threshold"
    folder = write_set(
        tmp_path,
        config={"activation": "jump_relu"},
        change=lambda _, a: a.update({name: np.array([0.5], np.float32)}),
    )
    whole, params = load_transcoder_set(folder)[0]
    a = load_file(folder / "layer_0.safetensors")
    pre = X @ a["W_enc"].T + a["b_enc"]
    expected = (pre * (pre > 0.5)) @ a["W_dec"] + a["b_dec"]
    np.testing.assert_allclose(whole(params, jnp.asarray(X)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "n_layers", "said"),
    [
        ((0, 2), None, r"missing files: layer_1\.safetensors; unexpected files: layer_2\.safet"),
        ((1, 2), None, r"missing files: layer_0"),
        ((0, 1, 3), None, r"missing files: layer_2"),
        ((0, 1), 3, r"missing files: layer_2"),
        ((0, 1, 2), 2, r"unexpected files: layer_2\.safetensors"),
        ((), None, r"missing files: layer_0"),
        ((0, "01"), None, r"unexpected files: layer_01\.safetensors"),
        ((0, "first"), None, r"unexpected files: layer_first\.safetensors"),
        ((0, -1), None, r"unexpected files: layer_-1\.safetensors"),
    ],
    ids=str,
)
def test_layers_that_are_missing_or_misnumbered(tmp_path, layers, n_layers, said):
    with pytest.raises(InputError, match=said):
        load_transcoder_set(write_set(tmp_path, layers), n_layers=n_layers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, a: a.update(W_dec=normal(F + i, D)), r"layer_1.*W_dec has shape \(11, 6\)"),
        (lambda i, a: a.update(W_dec=normal(F, D + i), b_dec=normal(D + i)), "in layer_1 and"),
        (lambda i, a: a.update(log_thresholds=normal(F)), "log_thresholds is not a parameter"),
        (lambda i, a: a.update(k=np.array(4)), "k has type int64"),
        (lambda i, a: a.pop("b_dec"), "b_dec is missing"),
        (lambda i, a: a.update(W_enc=normal(F)), r"W_enc has shape \(10,\)"),
        (lambda i, a: a.update(W_skip=normal(D)), r"W_skip has shape \(6,\)"),
        (
            lambda i, a: a.update({"activation_function.threshold": -np.ones(F, np.float32)}),
            "negative thresholds",
        ),
    ],
    ids=range(8),
)
def test_arrays_of_a_set_that_do_not_fit(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        load_transcoder_set(write_set(tmp_path, change=change))


def test_a_cross_layer_transcoder_computes_what_circuit_tracer_does(tmp_path):
    folder = write_clt(tmp_path)
    whole, params = load_cross_layer(folder, n_layers=3)
    x, out = [normal(ROWS, D) for _ in range(3)], [np.zeros((ROWS, D)) for _ in range(3)]
    for i in range(3):
        a = load_file(folder / f"W_enc_{i}.safetensors")
        pre = x[i] @ a[f"W_enc_{i}"].T + a[f"b_enc_{i}"]
        acts = pre * (pre > a[f"threshold_{i}"])
        decoder = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        out[i] += a[f"b_dec_{i}"]
        for later in range(i, 3):
            out[later] += acts @ decoder[:, later - i]
    ours = whole(params, jnp.asarray(np.concatenate(x, axis=1)))
    np.testing.assert_allclose(ours, np.concatenate(out, axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # Earlier code looked only at the first layer and lost the thresholds of the others.
        (lambda i, e, d: i or e.pop("threshold_0"), "threshold_1 is not a parameter"),
        (lambda i, e, d: i != 1 or e.pop("threshold_1"), "threshold_1 is missing"),
        (lambda i, e, d: e.pop(f"b_dec_{i}"), "b_dec_0 is missing"),
        (
            lambda i, e, d: d.update({f"W_dec_{i}": normal(F, 3, D)}),
            r"W_dec_1 has shape \(10, 3, 6",
        ),
        (lambda i, e, d: e.update({f"b_enc_{i}": normal(F + i)}), r"b_enc_1 has shape \(11,\)"),
        (lambda i, e, d: e.update({f"W_skip_{i}": normal(D, D)}), "W_skip_0 is not a parameter"),
    ],
    ids=range(6),
)
def test_arrays_of_a_cross_layer_transcoder_that_do_not_fit(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        load_cross_layer(write_clt(tmp_path, change=change))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("W_enc_2", r"unexpected files: W_dec_2\.safetensors"),
        ("W_dec_2", r"missing files: W_dec_2"),
        ("W_enc_1", r"missing files: W_enc_1"),
    ],
)
def test_layers_of_a_cross_layer_transcoder_that_are_missing(tmp_path, gone, said):
    folder = write_clt(tmp_path)
    (folder / f"{gone}.safetensors").unlink()
    with pytest.raises(InputError, match=said):
        load_cross_layer(folder)


def test_a_cross_layer_transcoder_of_topk(tmp_path):
    with pytest.raises(InputError, match="activation = 'topk'"):
        load_cross_layer(write_clt(tmp_path, config={"activation": "topk", "k": 4}))


def test_a_negative_threshold_is_not_written_either(tmp_path):
    params = {name: jnp.asarray(a) for name, a in plain().items()}
    whole = InferenceDictionary(Transcoder(D, D, F), "jumprelu")
    with pytest.raises(InputError, match="negative thresholds"):
        save_transcoder_set(tmp_path / "there", [(whole, params | {"threshold": -jnp.ones(F)})])
    assert not (tmp_path / "there").exists()


# Gemma Scope --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": np.ones(1, np.float32)}, r"threshold has shape \(1,\), not \(10,\)"),
        ({"W_enc": normal(F, D)}, "shape"),
        ({"W_dec": normal(F)}, r"W_dec has shape \(10,\); W_enc and W_dec must"),
        ({"b_enc": np.ones(F, np.int16)}, "b_enc has type int16"),
    ],
)
def test_arrays_of_gemma_scope_that_do_not_fit(tmp_path, change, said):
    np.savez(tmp_path / "params.npz", **(plain() | {"threshold": np.ones(F)} | change))
    with pytest.raises(InputError, match=said):
        load_gemma_scope(tmp_path / "params.npz", transcoder=True)
