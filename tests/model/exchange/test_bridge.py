"""Files of TransformerLens 4, with names written out here; tests/peers uses the real package."""

import json

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import load_weights, save_weights
from tests.model.exchange.models import SPEC, assert_equal, filled


def linear(weight):
    """Convert to PyTorch's layout of a linear layer."""
    return np.asarray(weight).T


def native(params):
    """Undo HookedTransformer's layouts one by one, and concatenate heads in a loop."""
    state = {
        "embed.weight": params["embed"]["W_E"],
        "pos_embed.weight": params["pos_embed"]["W_pos"],
        "ln_final.weight": params["ln_final"]["w"],
        "ln_final.bias": params["ln_final"]["b"],
        "unembed.weight": linear(params["unembed"]["W_U"]),
        "unembed.bias": np.zeros(SPEC.d_vocab, np.float32),
    }
    for layer, block in params["blocks"].items():
        at, attn, mlp = f"blocks.{layer}.", block["attn"], block["mlp"]
        for x in "qkv":
            heads = attn[f"W_{x.upper()}"]
            state[f"{at}attn.{x}.weight"] = np.concatenate([linear(head) for head in heads])
            state[f"{at}attn.{x}.bias"] = np.concatenate(list(attn[f"b_{x.upper()}"]))
        state[f"{at}attn.o.weight"] = np.concatenate([linear(head) for head in attn["W_O"]], 1)
        state |= {
            f"{at}attn.o.bias": attn["b_O"],
            f"{at}mlp.in.weight": linear(mlp["W_in"]),
            f"{at}mlp.in.bias": mlp["b_in"],
            f"{at}mlp.out.weight": linear(mlp["W_out"]),
            f"{at}mlp.out.bias": mlp["b_out"],
        }
        for ln in ("ln1", "ln2"):
            state |= {f"{at}{ln}.weight": block[ln]["w"], f"{at}{ln}.bias": block[ln]["b"]}
    return state


@pytest.fixture
def saved(tmp_path):
    """Return a file with the native names, beside its config, and the parameters in it."""
    model = Transformer(SPEC)
    params = filled(model)
    save_weights(tmp_path / "w.npz", model, params)
    np.savez(tmp_path / "w.npz", **native(params))
    return tmp_path / "w.npz", params


def test_native_names_load_as_ours(saved):
    path, params = saved
    model, loaded = load_weights(path)
    assert model.spec == SPEC
    assert_equal(loaded, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.q.weight": np.ones((15, 16))}, r"W_Q has shape \(16, 15\), not \(4, 16"),
        ({"blocks.0.attn.q.weight": np.ones(3)}, r"W_Q has shape \(3,\), not \(4, 16, 4\)"),
        ({"blocks.0.attn.o.bias": np.ones(())}, r"b_O has shape \(\), not \(16,\)"),
        ({"blocks.0.mlp.gate.weight": np.ones((24, 16))}, "mlp.gate.weight is not a parameter"),
    ],
)
def test_what_does_not_fit_is_named(saved, change, message):
    path, params = saved
    np.savez(path, **{**native(params), **change})
    with pytest.raises(InputError, match=message):
        load_weights(path)


def test_heads_are_checked_against_the_config(saved):
    path, _ = saved
    config = path.with_suffix(".json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_heads": 0}))
    with pytest.raises(InputError, match=r"model\.n_heads is 0"):
        load_weights(path)
