"""HookedTransformer's state dict in a `.npz` or `.safetensors`, a JSON config beside it.

The keys and layouts are those of an *unfolded* HookedTransformer, and the config has the words of
HookedTransformerConfig, so that TransformerLens and what is built on it can load a file written
here, and the other way round. TransformerLens 4 has no HookedTransformer any more: it converts
these keys (`transformer_lens.utilities.tl_checkpoint_conversion`; tests/peers shows how), and what
it saves itself is read here too.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model.interchange import bridge
from implicit_reasoning.model.interchange.arrays import checked, read_arrays, write_arrays
from implicit_reasoning.model.interchange.flat import (
    check_config,
    check_fit,
    flatten_params,
    on_device,
    shapes,
    unroll,
)
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer

# Buffers of HookedTransformer that are no parameters.
_BUFFERS = re.compile(r"(attn\.(mask|IGNORE|rotary_sin|rotary_cos))$")
_NUMBERS = ("n_layers", "d_model", "n_ctx", "n_heads", "d_mlp", "d_vocab")
_OPTIONAL = {"act_fn": str, "normalization_type": str | None, "eps": float, "d_head": int}


def save_weights(path: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write the parameters of one model to `path`, and its config to `path` with `.json`.

    Args:
      path: ends in `.npz` or `.safetensors`.
      model: whose parameters they are. HookedTransformer neither ties nor loops: a tied model is
        written with its unembedding spelt out, a looped one with its blocks repeated.
      params: float32.
    """
    path = checked(path)
    model, params = unroll(model, params)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten_params(params).items()}
    if model.spec.tied:
        arrays["unembed.W_U"] = arrays["embed.W_E"].T
    arrays.setdefault("unembed.b_U", np.zeros(model.spec.d_vocab, np.float32))
    write_arrays(path, arrays)
    write_json(path.with_suffix(".json"), hooked_config(model.spec))


def load_weights(path: str | os.PathLike[str]) -> tuple[Transformer, Params]:
    """Read what `save_weights`, or an exporter of TransformerLens's state dicts, wrote.

    The keys are HookedTransformer's, or those of a native bridge of TransformerLens 4.

    Buffers are dropped; missing biases are zero. Where `unembed.W_U` is missing, or the embedding
    transposed, the model is tied; where `unembed.b_U` is missing or all zero it has no logit bias.

    Raises:
      InputError: a file is missing or cut short, a key is missing, unknown or of another shape, or
        the config asks for something this transformer is not.
    """
    path = checked(path)
    where = path.with_suffix(".json")
    config = read_json(where)
    check_config(config, where, numbers=_NUMBERS)
    flat = {name: a for name, a in read_arrays(path).items() if not _BUFFERS.search(name)}
    if bridge.is_bridge(flat):
        flat = bridge.hooked_state(flat, config["n_heads"])
    if "unembed.b_U" in flat and not np.any(flat["unembed.b_U"]):
        del flat["unembed.b_U"]
    if "unembed.W_U" in flat and np.array_equal(flat["unembed.W_U"].T, flat.get("embed.W_E", ())):
        del flat["unembed.W_U"]
    tied, unembed_bias = "unembed.W_U" not in flat, "unembed.b_U" in flat
    spec = spec_of(config, tied=tied, unembed_bias=unembed_bias, where=str(where))
    model = Transformer(spec)
    wanted = flatten_params(shapes(model))
    for name, like in wanted.items():
        if name not in flat and name.rpartition(".")[2].startswith("b"):
            flat[name] = np.zeros(like.shape, np.float32)
    check_fit(flat, wanted, path)
    return model, on_device({name: flat[name] for name in wanted})


def hooked_config(spec: Spec) -> dict[str, Any]:
    """The spec, of a model without loops, in HookedTransformerConfig's words."""
    return {
        "n_layers": spec.n_layers,
        "d_model": spec.d_model,
        "n_ctx": spec.n_ctx,
        "d_head": spec.d_head,
        "n_heads": spec.n_heads,
        "d_mlp": spec.d_mlp,
        "d_vocab": spec.d_vocab,
        "d_vocab_out": spec.d_vocab,
        "act_fn": spec.act_fn,
        "normalization_type": "LN" if spec.normalization == "LN" else None,
        "positional_embedding_type": "standard",
        "attention_dir": "causal",
        "eps": spec.eps,
    }


def spec_of(config: Any, *, tied: bool, unembed_bias: bool, where: str = "the config") -> Spec:
    """The spec that a HookedTransformerConfig's JSON describes."""
    check_config(config, where, numbers=_NUMBERS, optional=_OPTIONAL)
    fixed = {
        "positional_embedding_type": "standard",
        "attention_dir": "causal",
        "d_vocab_out": config["d_vocab"],
        "gated_mlp": False,
        "attn_only": False,
    }
    # HookedTransformerConfig writes -1 for "follows from the others".
    stated = {name: value for name, value in config.items() if value != -1}
    check_config(stated, where, fixed=fixed)
    own = config["d_model"] / max(config["n_heads"], 1)
    head_width = stated.get("d_head", own)
    normalization = config.get("normalization_type", "LN")
    if normalization not in ("LN", None):
        raise InputError(
            f"{where} describes a model that is not supported: normalization_type = "
            f"{normalization!r} (only 'LN' and null are)"
        )
    return Spec(
        **{name: config[name] for name in _NUMBERS},
        head_width=0 if head_width == own else head_width,
        act_fn=config.get("act_fn", ""),
        normalization=normalization or "none",
        eps=config.get("eps", 1e-5),
        tied=tied,
        unembed_bias=unembed_bias,
    )
