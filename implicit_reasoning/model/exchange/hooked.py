"""HookedTransformer's state dict as `.npz` or `.safetensors`, with a separate JSON config.

The keys and layouts are those of a HookedTransformer whose layer norms are *not* folded into the
weights. The config contains the fields of HookedTransformerConfig. TransformerLens, and packages
that use it, can therefore load the files that this module writes. This module can also load files
from these packages.

TransformerLens 4 no longer contains HookedTransformer, but it can convert files with these keys
(`transformer_lens.utilities.tl_checkpoint_conversion`). This module also reads the files that
TransformerLens 4 writes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.exchange import bridge
from implicit_reasoning.model.exchange.arrays import checked, read_arrays, write_arrays
from implicit_reasoning.model.exchange.fields import check_config
from implicit_reasoning.model.exchange.flat import (
    check_fit,
    flatten_params,
    on_device,
    scale_queries,
    shapes,
    unroll,
)
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer

# Arrays in a state dict of HookedTransformer that are buffers, not parameters.
_BUFFERS = re.compile(r"(attn\.(mask|IGNORE|rotary_sin|rotary_cos))$")
_NUMBERS = ("n_layers", "d_model", "n_ctx", "n_heads", "d_mlp", "d_vocab")
_OPTIONAL = {
    "act_fn": str,
    "normalization_type": str | None,
    "eps": float,
    "d_head": int,
    "use_attn_scale": bool,
    "attn_scale": float | int | None,
    "scale_attn_by_inverse_layer_idx": bool,
}

# Fields that do not change the logits if the other fields have the values in `_ONLY`.
_HARMLESS = (
    # Which hooks are active, and the tokenizer.
    *("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"),
    *("use_hook_tokens", "tokenizer_name", "tokenizer_prepends_bos", "tokenizer_appends_eos"),
    *("default_prepend_bos", "default_padding_side", "decoder_start_token_id"),
    # Origin, initialization and device of the model.
    *("model_name", "from_checkpoint", "checkpoint_index", "checkpoint_label_type"),
    *("checkpoint_value", "trust_remote_code", "init_mode", "init_weights", "initializer_range"),
    *("seed", "n_params", "device", "n_devices", "dtype", "attn_implementation"),
    # This field is not needed, because the arrays show whether W_U is the transposed W_E.
    "tie_word_embeddings",
    # Options of features that must be off: local attention, rotary embeddings, mixture of experts,
    # grouped-query attention.
    *("window_size", "attn_types", "rotary_dim", "rotary_base", "rotary_base_local"),
    *("rotary_adjacent_pairs", "rotary_scaling_factor", "rotary_interleaved_cos_sin"),
    *("use_NTK_by_parts_rope", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor"),
    *("NTK_by_parts_factor", "NTK_original_ctx_len", "use_yarn_rope", "yarn_factor"),
    *("yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_truncate"),
    *("yarn_global_attn_only", "yarn_original_max_position_embeddings", "train_seq_length"),
    *("use_dynamic_ntk_rope", "norm_topk_prob", "ungroup_grouped_query_attention"),
    *("qk_norm_after_rope", "rmsnorm_uses_offset"),
)

# The supported values of fields that change the architecture. A field that is absent from a config
# has a supported value by default.
_ONLY: dict[str, tuple[Any, ...]] = {
    "positional_embedding_type": ("standard",),
    "attention_dir": ("causal",),
    "gated_mlp": (False,),
    "attn_only": (False,),
    "parallel_attn_mlp": (False,),
    "use_local_attn": (False,),
    "use_qk_norm": (False,),
    "use_logn_attn": (False,),
    "use_attention_sinks": (False,),
    "use_normalization_before_and_after": (False,),
    "post_embedding_ln": (False,),
    "final_rms": (False,),
    "uses_rms_norm": (False,),
    "layer_norm_folding": (False,),
    "attn_scores_soft_cap": (-1.0, 0.0, None),
    "output_logits_soft_cap": (-1.0, 0.0, None),
    # All other architectures place some norms elsewhere, and no field above says so.
    "original_architecture": (None, "GPT2LMHeadModel", "neel"),
    "architecture": (None, "TransformerLensNative", "GPT2LMHeadModel"),
}

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
"""The names of activation functions in this package, by their other names in TransformerLens."""


def save_weights(path: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write the parameters of one model to `path`, and the config to `path` with suffix `.json`.

    HookedTransformer supports neither tied embeddings nor loops. For a tied model, an explicit
    unembedding is written. The blocks of a looped model are written once for each pass.

    Args:
      path: the file; its suffix is `.npz` or `.safetensors`.
      model: the model of the parameters.
      params: the parameters, float32.

    Raises:
      InputError: the blocks of the model are not `gpt2`, or the suffix is neither `.npz` nor
        `.safetensors`.
    """
    require_gpt2(model.spec, "HookedTransformer's format")
    path = checked(path)
    model, params = unroll(model, params)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten_params(params).items()}
    if model.spec.tied:
        arrays["unembed.W_U"] = arrays["embed.W_E"].T
    arrays.setdefault("unembed.b_U", np.zeros(model.spec.d_vocab, np.float32))
    write_arrays(path, arrays)
    write_json(path.with_suffix(".json"), hooked_config(model.spec))


def load_weights(path: str | os.PathLike[str]) -> tuple[Transformer, Params]:
    """Read a file that `save_weights` wrote, or a state dict exported from TransformerLens.

    The keys must be those of HookedTransformer or of TransformerLens 4's native
    `TransformerBridge`.

    Buffers are ignored. A bias that is missing in all blocks is set to zero. If `unembed.W_U` is
    missing or equals the transposed embedding, the loaded model has tied embeddings. If
    `unembed.b_U` is missing or zero, the loaded model has no logit bias. A config can divide
    attention scores by a number d other than sqrt(d_head) (`use_attn_scale`, `attn_scale`,
    `scale_attn_by_inverse_layer_idx`). In this case, `W_Q` and `b_Q` are multiplied by sqrt(d_head)
    / d, so that the scores remain equal.

    Returns:
      The model and its parameters, on the device.

    Raises:
      InputError: a file is missing or truncated; an array is missing or unknown, or its shape is
        wrong; or the config contains an unknown field or an unsupported value.
    """
    path = checked(path)
    where = path.with_suffix(".json")
    config = read_json(where)
    check_hooked(config, where)
    flat = read_arrays(path, skip=_BUFFERS)
    if bridge.is_bridge(flat):
        bridge.check_scale(config, where)
        flat = bridge.hooked_state(flat, config["n_heads"], path)
    if "unembed.b_U" in flat and not np.any(flat["unembed.b_U"]):
        del flat["unembed.b_U"]
    if "unembed.W_U" in flat and np.array_equal(flat["unembed.W_U"].T, flat.get("embed.W_E", ())):
        del flat["unembed.W_U"]
    tied, unembed_bias = "unembed.W_U" not in flat, "unembed.b_U" in flat
    spec = spec_of(config, tied=tied, unembed_bias=unembed_bias, where=str(where))
    model = Transformer(spec)
    wanted = flatten_params(shapes(model))
    present = {_in_any_block(name) for name in flat}
    for name, like in wanted.items():
        bias = name.rpartition(".")[2].startswith("b")
        if bias and name not in flat and _in_any_block(name) not in present:
            flat[name] = np.zeros(like.shape, np.float32)
    check_fit(flat, wanted, path)
    own = math.sqrt(spec.d_head)
    for layer in range(spec.n_layers):
        scale_queries(flat, layer, own / attention_scale(config, layer, spec.d_head))
    return model, on_device({name: flat[name] for name in wanted})


def attention_scale(config: Mapping[str, Any], layer: int, d_head: int) -> float:
    """Return the divisor of the attention scores of a block in HookedTransformer."""
    scale = config.get("attn_scale")
    if not config.get("use_attn_scale", True):
        scale = 1.0
    elif scale is None or scale == -1:  # -1 means the default in HookedTransformerConfig
        scale = math.sqrt(d_head)
    return scale * (layer + 1 if config.get("scale_attn_by_inverse_layer_idx") else 1)


def _in_any_block(name: str) -> str:
    """Return a parameter name without the index of its block."""
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)


def hooked_config(spec: Spec) -> dict[str, Any]:
    """Convert the spec of a model without loops to the fields of HookedTransformerConfig."""
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


def check_hooked(config: Any, where: str | os.PathLike[str]) -> None:
    """Check that this package supports all fields and values of a HookedTransformerConfig.

    Raises:
      InputError: the config is incomplete, or contains an unsupported field or value.
    """
    stated, only = config, dict(_ONLY)
    if isinstance(config, dict):
        # In HookedTransformerConfig, -1 means that the value is computed from other fields.
        stated = {name: value for name, value in config.items() if value != -1}
        only["d_vocab_out"] = (config.get("d_vocab"),)
        only["n_key_value_heads"] = (None, config.get("n_heads"))
    check_config(stated, where, numbers=_NUMBERS, optional=_OPTIONAL, harmless=_HARMLESS, only=only)
    scale, eps = stated.get("attn_scale"), stated.get("eps", 0.0)
    if scale is not None and not 0 < scale < math.inf:
        raise InputError(f"{where}: attn_scale is {scale}; it must be finite and greater than 0")
    if not 0 <= eps < math.inf:
        raise InputError(f"{where}: eps is {eps}; it must be finite and at least 0")
    normalization = config.get("normalization_type", "LN")
    if normalization not in ("LN", None):
        raise InputError(
            f"{where} describes a model that is not supported: normalization_type = "
            f"{normalization!r} (supported: 'LN' and null)"
        )


def spec_of(config: Any, *, tied: bool, unembed_bias: bool, where: str = "the config") -> Spec:
    """Convert the JSON content of a HookedTransformerConfig to a `Spec`.

    Raises:
      InputError: the config is incomplete, or contains an unsupported field or value.
    """
    check_hooked(config, where)
    own = config["d_model"] / max(config["n_heads"], 1)
    head_width = config.get("d_head", -1)
    act_fn = config.get("act_fn", "")
    return Spec(
        **{name: config[name] for name in _NUMBERS},
        head_width=0 if head_width in (own, -1) else head_width,
        act_fn=_ACTIVATIONS.get(act_fn, act_fn),
        normalization=config.get("normalization_type", "LN") or "none",
        eps=config.get("eps", 1e-5),
        tied=tied,
        unembed_bias=unembed_bias,
    )
