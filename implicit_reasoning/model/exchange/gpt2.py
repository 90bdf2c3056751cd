"""HuggingFace's GPT-2 format: a folder of `config.json` and weights, for `from_pretrained`.

HuggingFace's `Conv1D` stores weights as `[in, out]`, so matrices are not transposed. One matrix
contains the projections of queries, keys and values, concatenated along the output axis. Within
each of these three projections, the heads are concatenated.

Sources: transformers, models/gpt2; the modified copy in OSU-NLP-Group/GrokkedTransformer (fields
for loops and for models without norms).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.exchange.arrays import read_arrays, write_arrays
from implicit_reasoning.model.exchange.fields import check_config
from implicit_reasoning.model.exchange.flat import (
    check_fit,
    on_device,
    scale_queries,
    shapes,
    unroll,
)
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.paths import local_path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Possible names of the weight file of a checkpoint, in the order of preference."""

# Buffers of older checkpoints: the causal mask, and the score of masked positions.
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")

_NUMBERS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_OPTIONAL = {
    "n_inner": int | None,
    "activation_function": str,
    "layer_norm_epsilon": float,
    "tie_word_embeddings": bool,
    "scale_attn_weights": bool,
    "scale_attn_by_inverse_layer_idx": bool,
    "add_recurrence": bool,
    "no_ln": bool,
}

# Fields that do not change the logits if the other fields have the values in `_ONLY`.
_HARMLESS = (
    # Training: dropout, initialization, losses.
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range", "gradient_checkpointing"),
    *("problem_type", "ignore_index"),
    # Precision and speed.
    *(
        "reorder_and_upcast_attn",
        "torch_dtype",
        "dtype",
        "use_bfloat16",
        "use_cache",
        "torchscript",
    ),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("chunk_size_feed_forward", "output_past"),
    # Outputs other than the logits, and output heads for other tasks.
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout"),
    *("summary_proj_to_labels", "num_labels", "id2label", "label2id", "finetuning_task"),
    *("task_specific_params", "is_decoder", "n_ctx", "_num_labels", "n_special"),
    "predict_special_tokens",
    # Origin of the model, and its tokenizer.
    *("architectures", "_name_or_path", "name_or_path", "transformers_version", "tokenizer_class"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "prefix"),
    # Text generation.
    *("do_sample", "early_stopping", "max_length", "min_length", "max_new_tokens", "num_beams"),
    *("num_beam_groups", "num_return_sequences", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "diversity_penalty"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "remove_invalid_values", "output_scores", "generation_config"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
    # This is an option of `re_embed`. `_ONLY` requires that `re_embed` is off.
    "re_embed_temp",
)

# The supported values of fields that change the architecture. A field that is absent from a config
# has a supported value by default.
_ONLY = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    # Architectures that exist in GrokkedTransformer only.
    "re_embed": (False,),
    "no_mlp": (False,),
    "share_mlp": (False,),
    "add_memory": (False,),
}

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
"""The names of activation functions in this package, by their other names in HuggingFace."""

# HuggingFace's parameter names, by the names of this package. The parameters of attention are not
# listed, because their layouts differ too.
_NORM = {"w": "weight", "b": "bias"}
_MLP = {
    "W_in": "mlp.c_fc.weight",
    "b_in": "mlp.c_fc.bias",
    "W_out": "mlp.c_proj.weight",
    "b_out": "mlp.c_proj.bias",
}


def save_gpt2(folder: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write a folder that `GPT2LMHeadModel.from_pretrained` can read.

    The blocks of a looped model are written once for each pass.

    Args:
      folder: the folder to write; a missing folder is created. `config.json` is written last, so
        the weights are complete if `config.json` exists.
      model: the model of the parameters.
      params: the parameters, float32.

    Raises:
      InputError: HuggingFace's GPT-2 cannot represent the model. The model has blocks other than
        `gpt2`, no norms, a logit bias that is not zero, or `n_heads * d_head != d_model`.
    """
    require_gpt2(model.spec, "HuggingFace's GPT-2")
    if model.spec.n_heads * model.spec.d_head != model.spec.d_model:
        raise InputError(
            f"the model has {model.spec.n_heads} heads of width {model.spec.d_head} and d_model = "
            f"{model.spec.d_model}; in HuggingFace's GPT-2, the widths of the heads must add up to "
            "d_model"
        )
    if model.spec.normalization == "none":
        raise InputError("model.normalization is 'none'; HuggingFace's GPT-2 supports only 'LN'")
    if model.spec.unembed_bias and np.any(np.asarray(params["unembed"]["b_U"])):
        raise InputError("unembed.b_U is not zero; HuggingFace's GPT-2 has no logit bias")
    model, params = unroll(model, params)
    folder = local_path(folder)
    write_arrays(folder / WEIGHT_FILES[0], gpt2_state(params))
    write_json(folder / "config.json", gpt2_config(model.spec))


def load_gpt2(folder: str | os.PathLike[str]) -> tuple[Transformer, Params]:
    """Read a checkpoint folder of HuggingFace's GPT-2 or of GrokkedTransformer's modified copy.

    GrokkedTransformer's `--add_recurrence` (the blocks run twice, `n_loops` is 2) and `--no_ln` are
    supported. If the config ties the embeddings, a copy of the embeddings under `lm_head` is
    ignored. A config can divide attention scores by a number d other than sqrt(d_head)
    (`scale_attn_weights`, `scale_attn_by_inverse_layer_idx`). In this case, `W_Q` and `b_Q` are
    multiplied by sqrt(d_head) / d, so that the scores remain equal.

    Returns:
      The model and its parameters, on the device.

    Raises:
      InputError: a file is missing or truncated; an array is missing or unknown, or its shape is
        wrong; the config ties the embeddings, but `lm_head` differs from the embeddings; or the
        config contains an unknown field or an unsupported value.
    """
    folder = local_path(folder)
    config = read_json(folder / "config.json")
    spec = gpt2_spec(config, where=str(folder / "config.json"))
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise InputError(
            f"{folder} contains no weights; it must contain {' or '.join(WEIGHT_FILES)}"
        )
    flat = read_arrays(path, skip=_BUFFERS)
    if "wte.weight" in flat:  # saved from GPT2Model, which has no language-model head
        flat = {f"transformer.{name}": array for name, array in flat.items()}
    model = Transformer(spec)
    if spec.tied and "lm_head.weight" in flat:
        head = flat.pop("lm_head.weight")
        if not np.array_equal(head, flat.get("transformer.wte.weight", ())):
            raise InputError(
                f"{path}: lm_head.weight differs from the embeddings wte.weight, but they must be "
                "equal, because tie_word_embeddings is true in the config"
            )
    check_fit(flat, jax.eval_shape(gpt2_state, shapes(model)), path)
    state = hooked_state(flat, spec)
    own = math.sqrt(spec.d_head)
    for layer in range(spec.n_layers):
        scale = own if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            scale *= layer + 1
        scale_queries(state, layer, own / scale)
    return model, on_device(state)


def gpt2_state(params: Params) -> dict[str, Any]:
    """Convert the parameters of a model without loops to HuggingFace's names and layouts."""
    state = {
        "transformer.wte.weight": params["embed"]["W_E"],
        "transformer.wpe.weight": params["pos_embed"]["W_pos"],
        **_renamed(params.get("ln_final", {}), _NORM, "transformer.ln_f."),
    }
    if "W_U" in params.get("unembed", {}):
        state["lm_head.weight"] = params["unembed"]["W_U"].T
    for layer, block in params["blocks"].items():
        prefix, attn = f"transformer.h.{layer}.", block["attn"]
        state |= {
            # [head, d_model, d_head] -> [d_model, head * d_head], for Q, K and V side by side
            f"{prefix}attn.c_attn.weight": jnp.concatenate(
                [_heads_last(attn[name]) for name in ("W_Q", "W_K", "W_V")], axis=1
            ),
            f"{prefix}attn.c_attn.bias": jnp.concatenate(
                [attn[name].reshape(-1) for name in ("b_Q", "b_K", "b_V")]
            ),
            f"{prefix}attn.c_proj.weight": attn["W_O"].reshape(-1, attn["W_O"].shape[-1]),
            f"{prefix}attn.c_proj.bias": attn["b_O"],
            **_renamed(block.get("ln1", {}), _NORM, f"{prefix}ln_1."),
            **_renamed(block.get("ln2", {}), _NORM, f"{prefix}ln_2."),
            **_renamed(block["mlp"], _MLP, prefix),
        }
    return state


def hooked_state(state: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """Convert a state dict with HuggingFace's names to parameters by dotted name."""
    flat = {
        "embed.W_E": state["transformer.wte.weight"],
        "pos_embed.W_pos": state["transformer.wpe.weight"],
        **_named_back(state, _NORM, "ln_final.", "transformer.ln_f."),
    }
    if not spec.tied:
        flat["unembed.W_U"] = state["lm_head.weight"].T
    heads = (spec.n_heads, spec.d_head)
    for layer in range(spec.n_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        weights = np.split(state[f"{theirs}attn.c_attn.weight"], 3, axis=1)
        biases = np.split(state[f"{theirs}attn.c_attn.bias"], 3)
        for name, weight, bias in zip("QKV", weights, biases, strict=True):
            flat[f"{ours}attn.W_{name}"] = weight.reshape(-1, *heads).transpose(1, 0, 2)
            flat[f"{ours}attn.b_{name}"] = bias.reshape(heads)
        flat |= {
            f"{ours}attn.W_O": state[f"{theirs}attn.c_proj.weight"].reshape(*heads, -1),
            f"{ours}attn.b_O": state[f"{theirs}attn.c_proj.bias"],
            **_named_back(state, _NORM, f"{ours}ln1.", f"{theirs}ln_1."),
            **_named_back(state, _NORM, f"{ours}ln2.", f"{theirs}ln_2."),
            **_named_back(state, _MLP, f"{ours}mlp.", theirs),
        }
    return flat


def gpt2_config(spec: Spec) -> dict[str, Any]:
    """Convert the spec of a model without loops to the fields of HuggingFace's GPT2Config."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": spec.d_vocab,
        "n_positions": spec.n_ctx,
        "n_embd": spec.d_model,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_inner": spec.d_mlp,
        "activation_function": spec.act_fn,
        "layer_norm_epsilon": spec.eps,
        "tie_word_embeddings": spec.tied,
        "initializer_range": spec.init_std,
        # The vocabularies of this package do not have GPT-2's default end-of-text token.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def gpt2_spec(config: Any, *, where: str = "the config") -> Spec:
    """Convert the JSON content of a GPT2Config to a `Spec`.

    The fields that GrokkedTransformer adds to GPT2Config are supported.

    Raises:
      InputError: the config describes a model that is not supported.
    """
    check_config(
        config, where, numbers=_NUMBERS, optional=_OPTIONAL, harmless=_HARMLESS, only=_ONLY
    )
    eps = config.get("layer_norm_epsilon", 1e-5)
    act_fn = config.get("activation_function", "gelu_new")
    if not 0 <= eps < math.inf:
        raise InputError(f"{where}: layer_norm_epsilon is {eps}; it must be finite and at least 0")
    return Spec(
        d_vocab=config["vocab_size"],
        n_ctx=config["n_positions"],
        n_layers=config["n_layer"],
        d_model=config["n_embd"],
        n_heads=config["n_head"],
        d_mlp=config.get("n_inner") or 4 * config["n_embd"],
        n_loops=2 if config.get("add_recurrence") else 1,
        act_fn=_ACTIVATIONS.get(act_fn, act_fn),
        normalization="none" if config.get("no_ln") else "LN",
        tied=config.get("tie_word_embeddings", True),
        eps=eps,
    )


def _heads_last(weight: Any) -> Any:
    return weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)


def _renamed(group: Mapping[str, Any], names: Mapping[str, str], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{names[name]}": leaf for name, leaf in group.items()}


def _named_back(
    state: Mapping[str, Any], names: Mapping[str, str], ours: str, theirs: str
) -> dict[str, Any]:
    return {
        f"{ours}{name}": state[f"{theirs}{other}"]
        for name, other in names.items()
        if f"{theirs}{other}" in state  # a model without norms has no norm parameters
    }
