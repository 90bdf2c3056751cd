"""HuggingFace's GPT-2 without torch: exact round trips, and logits equal to a GPT-2 in numpy."""

import dataclasses
import json

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import load_gpt2, save_gpt2, unroll
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
from tests.model.exchange.numpy_gpt2 import gpt2


def read(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **changes):
    """Change fields of the config; None removes a field."""
    config = {
        k: v for k, v in (read(folder) | changes).items() if k not in changes or v is not None
    }
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    model = Transformer(dataclasses.replace(SPEC, tied=True))
    save_gpt2(tmp_path / "gpt2", model, filled(model))
    return tmp_path / "gpt2"


def check_logits(folder, spec, seed):
    """GPT-2 in numpy computes the same logits from the file."""
    model = Transformer(spec)
    params, tokens = filled(model, seed), tokens_for(spec)
    save_gpt2(folder, model, params)
    state, config = load_file(folder / "model.safetensors"), read(folder)
    np.testing.assert_allclose(
        logits_of(model, params, tokens), gpt2(state, config, tokens), rtol=0, atol=1e-4
    )


# Each is a separate program. Together they cover all fields of specs, because the property test is
# slow.
COVERING = {
    "plain": {},
    "tied, other sizes": {"tied": True, "n_heads": 2, "d_mlp": 7, "d_vocab": 9, "n_layers": 1},
    "looped, relu, eps": {"n_loops": 2, "act_fn": "relu", "eps": 1e-2, "n_ctx": 3},
}


@pytest.mark.parametrize("changes", COVERING.values(), ids=COVERING)
def test_what_is_saved_is_gpt2(tmp_path, changes):
    check_logits(tmp_path, dataclasses.replace(SPEC, **changes), seed=1)


@pytest.mark.slow
@hypothesis.settings(max_examples=25)
@hypothesis.given(spec=specs(head_width=st.just(0)), seed=st.integers(0, 9))
def test_whatever_is_saved_is_gpt2(tmp_path_factory, spec, seed):
    check_logits(tmp_path_factory.mktemp("gpt2"), spec, seed)


@hypothesis.settings(max_examples=100 if shared.THOROUGH else 5)
@hypothesis.given(spec=specs(head_width=st.just(0)), seed=st.integers(0, 9))
def test_what_is_saved_loads_equal(tmp_path_factory, spec, seed):
    folder = tmp_path_factory.mktemp("gpt2")
    model = Transformer(spec)
    params = filled(model, seed)
    save_gpt2(folder, model, params)
    again, loaded = load_gpt2(folder)
    unrolled, expected = unroll(model, params)
    # The file does not contain the scale of the initialization.
    assert dataclasses.replace(again.spec, init_std=spec.init_std) == unrolled.spec
    assert_equal(loaded, expected)


@pytest.mark.parametrize("change", [{"add_recurrence": True}, {"no_ln": True}], ids=str)
def test_the_wirings_of_grokked_transformer(folder, change):
    """`--add_recurrence` runs all blocks twice and `--no_ln` has no norms; only the config shows
    it.
    """
    edit(folder, **change)
    if "no_ln" in change:
        edit_weights(folder, lambda state: [state.pop(k) for k in list(state) if ".ln_" in k])
    model, params = load_gpt2(folder)
    assert (model.spec.depth, model.spec.n_layers) == (
        (4, 2) if "add_recurrence" in change else (2, 2)
    )
    tokens = tokens_for(model.spec)
    expected = gpt2(load_file(folder / "model.safetensors"), read(folder), tokens)
    assert_same_logits(logits_of(model, params, tokens), expected)


def test_what_older_versions_saved_loads_as_well(folder):
    """Older files have copied embeddings, attention masks, only the trunk, or no `n_inner`."""
    _, expected = load_gpt2(folder)

    def age(state):
        trunk = {name.removeprefix("transformer."): array for name, array in state.items()}
        state.clear()
        state |= trunk | {
            "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
            "h.0.attn.masked_bias": np.array(-1e4, np.float32),
        }

    edit_weights(
        folder, lambda state: state.update({"lm_head.weight": state["transformer.wte.weight"]})
    )
    assert_equal(load_gpt2(folder)[1], expected)
    edit_weights(folder, lambda state: state.pop("lm_head.weight"))
    edit_weights(folder, age)
    assert_equal(load_gpt2(folder)[1], expected)

    wide = Transformer(dataclasses.replace(SPEC, d_mlp=64))
    save_gpt2(folder, wide, filled(wide))
    edit(folder, n_inner=None)
    assert load_gpt2(folder)[0].spec.d_mlp == 4 * SPEC.d_model


def test_half_precision_is_read_as_float32(folder):
    edit_weights(folder, lambda s: s.update({k: v.astype(np.float16) for k, v in s.items()}))
    _, params = load_gpt2(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "none"}, "GPT-2 supports only 'LN'"),
        ({"head_width": 3}, "must add up to d_model"),
        ({"unembed_bias": True}, "no logit bias"),
    ],
)
def test_what_gpt2_is_not_is_refused(tmp_path, change, message):
    model = Transformer(dataclasses.replace(SPEC, **change))
    with pytest.raises(InputError, match=message):
        save_gpt2(tmp_path / "gpt2", model, filled(model))
    assert not list(tmp_path.iterdir())


def test_a_logit_bias_of_zero_is_none(tmp_path):
    model = Transformer(dataclasses.replace(SPEC, unembed_bias=True))
    params = filled(model)
    params["unembed"]["b_U"] = 0 * params["unembed"]["b_U"]
    save_gpt2(tmp_path, model, params)
    tokens = tokens_for(SPEC)
    assert_same_logits(logits_of(*load_gpt2(tmp_path), tokens), logits_of(model, params, tokens))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
        (lambda d: (d / "config.json").write_text('{"vocab'), "not complete, valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "not a model config, .* a JSON list"),
        (lambda d: edit(d, n_head=None), "missing or not integers: n_head"),
        (lambda d: edit(d, n_head="4"), "missing or not integers: n_head"),
        (lambda d: edit(d, n_head=3), "not a multiple of model.n_heads = 3"),
        (lambda d: edit(d, n_embd=20), r"wte.weight has shape \(23, 16\), not \(23, 20\)"),
        (lambda d: edit(d, n_layer=3), "transformer.h.2.attn.c_attn.weight is missing"),
        (lambda d: edit(d, n_layer=1), "h.1.ln_1.weight is not a parameter"),
        (lambda d: edit(d, no_ln=True), "ln_f.weight is not a parameter"),
        (lambda d: edit(d, tie_word_embeddings=False), "lm_head.weight is missing"),
        (lambda d: edit(d, activation_function="gelu"), "act_fn is 'gelu'"),
        (lambda d: edit(d, re_embed=True), "re_embed = True"),
        (lambda d: edit(d, share_mlp=True, no_mlp=True), "no_mlp = True .* share_mlp = True"),
        (lambda d: edit(d, model_type="llama"), "model_type = 'llama'"),
        (
            lambda d: (d / "model.safetensors").unlink(),
            "contain model.safetensors or pytorch_",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes(
                (d / "model.safetensors").read_bytes()[:-100]
            ),
            "not a complete weights file",
        ),
        (
            lambda d: edit_weights(
                d, lambda s: s.update({"lm_head.weight": s["transformer.wte.weight"] + 1})
            ),
            "differs from the embeddings",
        ),
    ],
)
def test_faults_are_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_gpt2(folder)


def test_pytorch_files_need_torch(folder, monkeypatch):
    """Without torch there is an error; with torch installed, tests/peers reads such a file."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # makes `import torch` fail
    with pytest.raises(InputError, match=r"torch is not installed; .* model.safetensors"):
        load_gpt2(folder)
