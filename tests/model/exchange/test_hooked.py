"""HookedTransformer's files: round trips, properties of other packages, and errors for faults."""

import dataclasses
import json
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import (
    flatten_params,
    load_weights,
    save_weights,
    unflatten_params,
    unroll,
)
from tests import shared
from tests.model.exchange.models import (
    SPEC,
    assert_equal,
    assert_same_logits,
    filled,
    logits_of,
    specs,
    tokens_for,
)


@hypothesis.settings(max_examples=25 if shared.THOROUGH else 10)
@hypothesis.given(
    spec=specs(normalization=st.sampled_from(["LN", "none"]), unembed_bias=st.booleans()),
    suffix=st.sampled_from([".npz", ".safetensors"]),
)
def test_what_is_saved_loads_equal(tmp_path_factory, spec, suffix):
    folder = tmp_path_factory.mktemp("hooked")
    model = Transformer(spec)
    params = filled(model)
    save_weights(folder / f"w{suffix}", model, params)
    again, loaded = load_weights(folder / f"w{suffix}")
    unrolled, expected = unroll(model, params)
    assert again == unrolled
    assert_equal(loaded, expected)
    assert sorted(p.name for p in folder.iterdir()) == ["w.json", f"w{suffix}"]


@pytest.mark.slow
def test_a_looped_model_is_written_out_for_those_who_do_not_loop(tmp_path):
    model = Transformer(dataclasses.replace(SPEC, n_loops=3))
    params, tokens = filled(model), tokens_for(SPEC)
    save_weights(tmp_path / "w.npz", model, params)
    again, loaded = load_weights(tmp_path / "w.npz")
    assert (again.spec.n_layers, again.spec.n_loops) == (6, 1)
    assert_same_logits(logits_of(again, loaded, tokens), logits_of(model, params, tokens), 1e-6)
    assert again.sites == model.sites  # layers were always numbered by unrolled depth


def test_a_model_compiled_by_hand_loads_and_runs(tmp_path):
    """A model without norms, with relu, and with one head narrower than the residual stream.

    It predicts the previous token.
    """
    n_tokens = n_ctx = 3
    token, place, said = np.split(np.eye(9, dtype=np.float32), 3)  # codes in the residual stream
    before = 100 * np.eye(3, k=-1, dtype=np.float32)  # a query at i attends to position i - 1
    arrays: dict[str, Any] = {
        "embed.W_E": token,
        "pos_embed.W_pos": place,
        "blocks.0.attn.W_Q": (place.T @ before)[None],
        "blocks.0.attn.W_K": place.T[None],
        "blocks.0.attn.W_V": token.T[None],
        "blocks.0.attn.W_O": said[None],
        "blocks.0.mlp.W_in": np.zeros((9, 2), np.float32),
        "blocks.0.mlp.W_out": np.zeros((2, 9), np.float32),
        "unembed.W_U": said.T,
    }
    config = {"n_layers": 1, "d_model": 9, "n_heads": 1, "d_head": 3, "d_mlp": 2, "n_ctx": n_ctx}
    config |= {"d_vocab": n_tokens, "act_fn": "relu", "normalization_type": None}
    np.savez(tmp_path / "compiled.npz", **arrays)
    (tmp_path / "compiled.json").write_text(json.dumps(config))
    model, params = load_weights(tmp_path / "compiled.npz")
    assert model.dims["d_head"] == 3
    tokens = np.array([[2, 0, 1], [1, 1, 2]])
    np.testing.assert_array_equal(logits_of(model, params, tokens)[:, 1:].argmax(-1), tokens[:, :2])


def test_buffers_are_dropped_and_missing_biases_are_zero(tmp_path):
    model = Transformer(SPEC)
    params = filled(model)
    for block in params["blocks"].values():
        block["attn"]["b_O"] = np.zeros(16, np.float32)
    save_weights(tmp_path / "w.npz", model, params)
    flat: dict[str, Any] = {
        k: np.asarray(v) for k, v in flatten_params(params).items() if "b_O" not in k
    }
    flat |= {"blocks.0.attn.mask": np.ones((4, 4), bool), "blocks.0.attn.IGNORE": np.float32(-1)}
    np.savez(tmp_path / "w.npz", **(flat | {"unembed.b_U": np.zeros(23)}))
    again, loaded = load_weights(tmp_path / "w.npz")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_logit_bias_is_kept(tmp_path):
    model = Transformer(dataclasses.replace(SPEC, unembed_bias=True))
    params = filled(model)
    params["unembed"]["b_U"] = np.arange(23, dtype="f4")
    save_weights(tmp_path / "w.npz", model, params)
    again, loaded = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(loaded["unembed"]["b_U"], np.arange(23))
    assert again.spec.unembed_bias


def test_files_are_complete_for_those_who_do_not_tie_and_have_a_bias(tmp_path):
    """HookedTransformer fills missing parameters with random weights and only warns."""
    model = Transformer(dataclasses.replace(SPEC, tied=True))
    params = filled(model)
    save_weights(tmp_path / "w.npz", model, params)
    with np.load(tmp_path / "w.npz") as file:
        np.testing.assert_array_equal(file["unembed.W_U"], params["embed"]["W_E"].T)
        assert not file["unembed.b_U"].any()
    assert {"n_loops", "tied"}.isdisjoint(json.loads((tmp_path / "w.json").read_text()))


def test_flat_names_are_an_inverse_pair():
    params = filled(Transformer(SPEC))
    assert jax.tree.structure(unflatten_params(flatten_params(params))) == jax.tree.structure(
        params
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: (d / "w.npz").write_bytes((d / "w.npz").read_bytes()[:2000]),
            "not a complete weights",
        ),
        (lambda d: (d / "w.json").write_text("{"), "not complete, valid JSON"),
        (lambda d: (d / "w.json").unlink(), "w.json does not exist"),
        (lambda d: (d / "w.npz").unlink(), "w.npz does not exist"),
        (lambda d: _config(d, d_mlp=33), r"W_in has shape \(16, 24\), not \(16, 33\)"),
        (lambda d: _config(d, n_layers=3), "blocks.2.attn.W_K is missing"),
        (lambda d: _config(d, n_layers=1), "blocks.1.attn.W_K is not a parameter"),
        (lambda d: _config(d, normalization_type="RMS"), "normalization_type = 'RMS'"),
        (lambda d: _config(d, n_layers=2.5), "missing or not integers: n_layers"),
        (lambda d: (d / "w.json").write_text("[]"), "not a model config, .* a JSON list"),
        (lambda d: _config(d, positional_embedding_type="rotary"), "positional_embedding_type"),
    ],
)
def test_faults_are_one_sentence(tmp_path, damage, message):
    model = Transformer(SPEC)
    save_weights(tmp_path / "w.npz", model, filled(model))
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "w.npz")


def _config(folder, **change):
    path = folder / "w.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
