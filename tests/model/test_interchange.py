"""Weights in files: round trips, the peers' quirks, and faults in one sentence each."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.interchange import (
    flatten_params,
    load_weights,
    save_weights,
    unflatten_params,
)

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=4, d_mlp=32)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "change",
    [{}, {"tied": True}, {"normalization": "none", "act_fn": "relu"}, {"n_loops": 2}],
    ids=str,
)
def test_what_is_saved_loads_equal(tmp_path, suffix, change):
    model = Transformer(dataclasses.replace(SPEC, **change))
    params = model.init(jax.random.key(0))
    save_weights(tmp_path / f"w{suffix}", model, params)
    again, loaded = load_weights(tmp_path / f"w{suffix}")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.json", f"w{suffix}"]


def test_buffers_are_dropped_and_missing_biases_are_zero(tmp_path):
    model = Transformer(SPEC)
    params = model.init(jax.random.key(0))
    save_weights(tmp_path / "w.npz", model, params)
    flat = {k: np.asarray(v) for k, v in flatten_params(params).items() if "b_O" not in k}
    flat |= {"blocks.0.attn.mask": np.ones((4, 4), bool), "blocks.0.attn.IGNORE": np.float32(-1)}
    np.savez(tmp_path / "w.npz", **flat, **{"unembed.b_U": np.zeros(23)})
    again, loaded = load_weights(tmp_path / "w.npz")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_logit_bias_is_kept(tmp_path):
    model = Transformer(dataclasses.replace(SPEC, unembed_bias=True))
    params = model.init(jax.random.key(0))
    params["unembed"]["b_U"] = jnp.arange(23.0)
    save_weights(tmp_path / "w.npz", model, params)
    again, loaded = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(loaded["unembed"]["b_U"], np.arange(23))
    assert again.spec.unembed_bias


def test_files_are_complete_for_those_who_do_not_tie_and_have_a_bias(tmp_path):
    """HookedTransformer fills what is missing with random weights, and only warns."""
    model = Transformer(dataclasses.replace(SPEC, tied=True))
    params = model.init(jax.random.key(0))
    save_weights(tmp_path / "w.npz", model, params)
    with np.load(tmp_path / "w.npz") as file:
        np.testing.assert_array_equal(file["unembed.W_U"], params["embed"]["W_E"].T)
        assert not file["unembed.b_U"].any()
    assert {"n_loops", "tied"}.isdisjoint(json.loads((tmp_path / "w.json").read_text()))


def test_flat_names_are_an_inverse_pair():
    params = Transformer(SPEC).init(jax.random.key(0))
    assert jax.tree.structure(unflatten_params(flatten_params(params))) == jax.tree.structure(
        params
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: (d / "w.npz").write_bytes((d / "w.npz").read_bytes()[:2000]),
            "not a whole weights",
        ),
        (lambda d: (d / "w.json").write_text("{"), "not complete, valid JSON"),
        (lambda d: (d / "w.json").unlink(), "w.json does not exist"),
        (lambda d: (d / "w.npz").unlink(), "w.npz does not exist"),
        (lambda d: _config(d, d_mlp=33), r"W_in has shape \(16, 32\), not \(16, 33\)"),
        (lambda d: _config(d, n_layers=3), "blocks.2.attn.W_K is missing"),
        (lambda d: _config(d, n_layers=1), "blocks.1.attn.W_K is not a parameter"),
        (lambda d: _config(d, normalization_type="RMS"), "normalization_type = 'RMS'"),
        (lambda d: _config(d, positional_embedding_type="rotary"), "positional_embedding_type"),
    ],
)
def test_faults_are_one_sentence(tmp_path, damage, message):
    model = Transformer(SPEC)
    save_weights(tmp_path / "w.npz", model, model.init(jax.random.key(0)))
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "w.npz")


def _config(folder, **change):
    path = folder / "w.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
