"""Files for other tools are read back unchanged; what the formats cannot express is refused."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from implicit_reasoning.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from implicit_reasoning.dictionaries.architectures import (
    Autoencoder,
    Crosscoder,
    CrossLayer,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.dictionary import Dictionary, InferenceDictionary
from implicit_reasoning.dictionaries.exchange import (
    load_cross_layer,
    load_gemma_scope,
    load_saelens,
    load_transcoder_set,
    save_cross_layer,
    save_saelens,
    save_transcoder_set,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from tests.dictionaries.parameters import at_random

D, F = 6, 10
SITES: dict[str, Any] = {"read": "blocks.0.hook_resid_post", "write": "blocks.0.hook_resid_post"}


def finished(architecture, activation_fn, seed=0):
    dictionary, params, x, *_ = at_random(architecture, activation_fn, seed)
    return dictionary.for_inference(), finish(dictionary, params, np.float32(0.3), np.float32(3)), x


# There is one program for each architecture and shape.
finish = jax.jit(Dictionary.finish, static_argnums=0)
written = jax.jit(InferenceDictionary.__call__, static_argnums=0)
encoded = jax.jit(InferenceDictionary.encode, static_argnums=0)


@pytest.mark.parametrize(
    ("architecture", "activation_fn", "theirs"),
    [
        (Autoencoder(D, D, F), ReLU(), "standard"),
        (Autoencoder(D, D, F), Gated(), "gated"),
        (Autoencoder(D, D, F), TopK(max_k=3), "topk"),
        (Autoencoder(D, D, F), BatchTopK(), "jumprelu"),
        (Transcoder(D, 4, F), ReLU(), "transcoder"),
        (SkipTranscoder(D, 4, F), JumpReLU(), "jumprelu_skip_transcoder"),
    ],
)
def test_saelens_there_and_back(tmp_path, architecture, activation_fn, theirs):
    whole, params, x = finished(architecture, activation_fn)
    density = np.linspace(0, 1, F)
    save_saelens(tmp_path, whole, params, **SITES, about={"model_name": "tiny"}, density=density)
    config = read_json(tmp_path / "cfg.json")
    assert config["architecture"] == theirs and config["metadata"]["model_name"] == "tiny"
    opened, read, about = load_saelens(tmp_path)
    assert opened == whole and about["hook_name"] == SITES["read"]
    np.testing.assert_allclose(written(opened, read, x), written(whole, params, x), atol=1e-6)
    assert (tmp_path / "sparsity.safetensors").exists()


def test_an_encoder_that_does_not_subtract_the_bias_gives_the_same(tmp_path):
    for activation_fn in (ReLU(), Gated()):
        whole, params, x = finished(Autoencoder(D, D, F), activation_fn)
        save_saelens(tmp_path, whole, params, **SITES)
        config = read_json(tmp_path / "cfg.json")
        write_json(tmp_path / "cfg.json", config | {"apply_b_dec_to_input": False})
        opened, read, _ = load_saelens(tmp_path)
        # The other package computes x W_enc + b, where this package computes (x - b_dec) W_enc + b.
        unshifted = params | {"b_dec": np.zeros(D, "f4")}
        expected = encoded(whole, unshifted, x)
        np.testing.assert_allclose(encoded(opened, read, x), expected, atol=1e-5)


def test_topk_with_norms_of_its_own_chooses_by_what_is_written(tmp_path):
    """`rescale_acts_by_decoder_norm` selects as in training, before norms are folded in."""
    dictionary, params, x, *_ = at_random(Autoencoder(D, D, F), TopK(max_k=3))
    whole = dictionary.for_inference()
    save_saelens(tmp_path, whole, params | {"k": jnp.int32(3)}, **SITES)
    config = read_json(tmp_path / "cfg.json")
    write_json(tmp_path / "cfg.json", config | {"rescale_acts_by_decoder_norm": True})
    opened, read, _ = load_saelens(tmp_path)

    @jax.jit
    def trained(params, x):
        seen = dictionary.loss(params, x, x, jnp.float32(3), jnp.zeros(F, bool))[1]
        return dictionary.architecture.write(
            params, seen.encoded.acts
        ) + dictionary.architecture.base(params, x)

    np.testing.assert_allclose(written(opened, read, x), trained(params, x), atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "activation_fn", "said"),
    [
        (Transcoder(D, 4, F), TopK(max_k=3), "SAELens has no topk transcoder"),
        (Crosscoder(D, D, F, n_parts=2), ReLU(), "SAELens has no standard crosscoder"),
        (CrossLayer(D, D, F, n_layers=2), ReLU(), "SAELens has no standard crosslayer"),
    ],
)
def test_what_saelens_does_not_have(tmp_path, architecture, activation_fn, said):
    whole, params, _ = finished(architecture, activation_fn)
    with pytest.raises(InputError, match=said):
        save_saelens(tmp_path / "there", whole, params, **SITES)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        (
            {"architecture": "temporal"},
            "architecture = 'temporal' is not supported; it must be one of",
        ),
    ],
)
def test_what_cannot_be_read_of_saelens(tmp_path, change, said):
    whole, params, _ = finished(Autoencoder(D, D, F), ReLU())
    save_saelens(tmp_path, whole, params, **SITES)
    write_json(tmp_path / "cfg.json", read_json(tmp_path / "cfg.json") | change)
    with pytest.raises(InputError, match=said):
        load_saelens(tmp_path)


def test_a_config_without_sizes_is_no_config(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 3}))
    with pytest.raises(InputError, match="these fields are missing or not integers: d_sae"):
        load_saelens(tmp_path)


@pytest.mark.parametrize("make", [Transcoder, SkipTranscoder])
@pytest.mark.parametrize("activation_fn", [ReLU(), JumpReLU()], ids=["relu", "jumprelu"])
def test_sets_of_transcoders_there_and_back(tmp_path, make, activation_fn):
    parts = [finished(make(D, D, F), activation_fn, seed) for seed in range(3)]
    save_transcoder_set(tmp_path, [part[:2] for part in parts], model_name="tiny")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model_kind"] == "transcoder_set" and config["model_name"] == "tiny"
    opened = load_transcoder_set(tmp_path)
    assert len(opened) == 3
    for (whole, params, x), (theirs, read) in zip(parts, opened, strict=True):
        assert theirs == whole
        found, expected = written(theirs, read, x), written(whole, params, x)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="model_kind is 'transcoder_set'; it must be 'cross"):
        load_cross_layer(tmp_path)


@pytest.mark.parametrize("activation_fn", [ReLU(), JumpReLU()], ids=["relu", "jumprelu"])
def test_cross_layer_transcoders_there_and_back(tmp_path, activation_fn):
    architecture = CrossLayer(3 * D, 3 * D, 3 * F, n_layers=3)
    whole, params, x = finished(architecture, activation_fn)
    save_cross_layer(tmp_path, whole, params)
    opened, read = load_cross_layer(tmp_path)
    assert opened == whole
    np.testing.assert_allclose(written(opened, read, x), written(whole, params, x), atol=1e-5)


def test_what_circuit_tracer_does_not_have(tmp_path):
    top, other = (
        finished(Transcoder(D, D, F), TopK(max_k=3)),
        finished(Autoencoder(D, D, F), ReLU()),
    )
    with pytest.raises(InputError, match="does not support topk transcoders"):
        save_transcoder_set(tmp_path / "there", [top[:2]])
    with pytest.raises(InputError, match="architecture of layer 0 is Autoencoder; it must"):
        save_transcoder_set(tmp_path / "there", [other[:2]])
    with pytest.raises(InputError, match="is Autoencoder; it must be CrossLayer"):
        save_cross_layer(tmp_path / "there", *other[:2])
    assert not (tmp_path / "there").exists()
    with pytest.raises(InputError, match=r"config\.yaml does not exist"):
        load_transcoder_set(tmp_path)


def test_gemma_scope(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    arrays: dict[str, Any] = {
        name: random.normal(size=size).astype(np.float32) for name, size in shapes.items()
    }
    arrays["threshold"] = np.abs(arrays["threshold"])
    np.savez(tmp_path / "params.npz", **arrays)
    x = random.normal(size=(7, D)).astype(np.float32)
    # This is the computation of Gemma Scope's tutorial.
    pre = x @ arrays["W_enc"] + arrays["b_enc"]
    acts = (pre > arrays["threshold"]) * np.maximum(pre, 0)
    out = acts @ arrays["W_dec"] + arrays["b_dec"]
    for transcoder in (False, True):
        whole, params = load_gemma_scope(tmp_path / "params.npz", transcoder=transcoder)
        assert isinstance(whole, InferenceDictionary)
        np.testing.assert_allclose(encoded(whole, params, x), acts, atol=1e-5)
        np.testing.assert_allclose(written(whole, params, x), out, atol=1e-5)
    np.savez(tmp_path / "other.npz", W=arrays["W_enc"])
    with pytest.raises(
        InputError, match="not a Gemma Scope file: it contains W; it must contain W_dec"
    ):
        load_gemma_scope(tmp_path / "other.npz")
