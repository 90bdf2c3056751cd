"""Weights in and out: HookedTransformer's keys in a `.npz` or `.safetensors`, a JSON config beside.

The keys and layouts are those of an *unfolded* HookedTransformer state dict, and the config has the
words of HookedTransformerConfig, so that TransformerLens and what is built on it can load a file
written here, and the other way round. Neither format runs code when it is read.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, read_json, write_json
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer

# Buffers of HookedTransformer that are no parameters.
_BUFFERS = re.compile(r"(attn\.(mask|IGNORE|rotary_sin|rotary_cos))$")
_REQUIRED = ("n_layers", "d_model", "n_ctx", "n_heads", "d_mlp", "d_vocab", "act_fn")


def flatten_params(params: Params) -> dict[str, Any]:
    """`{"blocks.0.attn.W_Q": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def unflatten_params(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten_params`."""
    params: Params = {}
    for name, leaf in flat.items():
        *groups, last = name.split(".")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = leaf
    return params


def save_weights(path: str | os.PathLike[str], model: Transformer, params: Params) -> None:
    """Write the parameters of one model to `path`, and its config to `path` with `.json`.

    Args:
      path: ends in `.npz` or `.safetensors`.
      model: whose parameters they are. A tied one is written with its unembedding spelt out, for
        HookedTransformer does not tie. A looped one is written as it is stored, with an `n_loops`
        in its config that other packages do not know.
      params: float32.
    """
    path = _checked(path)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten_params(params).items()}
    if model.spec.tied:
        arrays["unembed.W_U"] = np.ascontiguousarray(arrays["embed.W_E"].T)
    arrays.setdefault("unembed.b_U", np.zeros(model.spec.d_vocab, np.float32))
    with atomic_write(path, "wb") as file:
        if path.suffix == ".npz":
            np.savez(file, allow_pickle=False, **arrays)
        else:
            file.write(save(arrays))
    write_json(path.with_suffix(".json"), hooked_config(model.spec))


def load_weights(path: str | os.PathLike[str]) -> tuple[Transformer, Params]:
    """Read what `save_weights`, or an exporter of HookedTransformer state dicts, wrote.

    Buffers are dropped; missing biases are zero. Where `unembed.W_U` is missing, or the embedding
    transposed, the model is tied; where `unembed.b_U` is missing or all zero it has no logit bias.

    Raises:
      InputError: a file is missing or cut short, a key is missing, unknown or of another shape, or
        the config asks for something this transformer is not.
    """
    path = _checked(path)
    flat = {name: a for name, a in _read(path).items() if not _BUFFERS.search(name)}
    if "unembed.b_U" in flat and not np.any(flat["unembed.b_U"]):
        del flat["unembed.b_U"]
    if "unembed.W_U" in flat and np.array_equal(flat["unembed.W_U"].T, flat.get("embed.W_E", ())):
        del flat["unembed.W_U"]
    spec = spec_of(
        read_json(path.with_suffix(".json")),
        tied="unembed.W_U" not in flat,
        unembed_bias="unembed.b_U" in flat,
        where=str(path.with_suffix(".json")),
    )
    model = Transformer(spec)
    wanted = flatten_params(jax.eval_shape(model.init, jax.random.key(0)))
    for name, shape in wanted.items():
        if name not in flat and name.rpartition(".")[2].startswith("b"):
            flat[name] = np.zeros(shape.shape, np.float32)
    faults = [f"{name} is missing" for name in wanted if name not in flat]
    faults += [f"{name} is not a parameter of it" for name in flat if name not in wanted]
    faults += [
        f"{name} has shape {flat[name].shape}, not {shape.shape}"
        for name, shape in wanted.items()
        if name in flat and flat[name].shape != shape.shape
    ]
    if faults:
        raise InputError(f"{path} does not fit the model of its config: {'; '.join(faults)}")
    return model, unflatten_params({name: jnp.asarray(flat[name], jnp.float32) for name in wanted})


def hooked_config(spec: Spec) -> dict[str, Any]:
    """The spec in HookedTransformerConfig's words; `n_loops`, which it lacks, only if it loops."""
    loops = {"n_loops": spec.n_loops} if spec.n_loops > 1 else {}
    return loops | {
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
    if not isinstance(config, dict) or any(name not in config for name in _REQUIRED):
        raise InputError(f"{where} is not a model config: it needs {', '.join(_REQUIRED)}")
    fixed = {
        "positional_embedding_type": "standard",
        "attention_dir": "causal",
        "d_head": config["d_model"] // max(config["n_heads"], 1),
        "d_vocab_out": config["d_vocab"],
        "gated_mlp": False,
        "attn_only": False,
    }
    other = [
        f"{name} = {config[name]!r} (only {value!r} is)"
        for name, value in fixed.items()
        if config.get(name, value) not in (value, -1)
    ]
    normalization = config.get("normalization_type", "LN")
    if normalization not in ("LN", None):
        other.append(f"normalization_type = {normalization!r} (only 'LN' and null are)")
    if other:
        raise InputError(f"{where} describes a model that is not supported: {'; '.join(other)}")
    return Spec(
        **{name: config[name] for name in _REQUIRED},
        n_loops=config.get("n_loops", 1),
        normalization=normalization or "none",
        eps=config.get("eps", 1e-5),
        tied=tied,
        unembed_bias=unembed_bias,
    )


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"{path} ends in {path.suffix!r}; weights are .npz or .safetensors")
    return path


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (SafetensorError, OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole weights file: {error}") from None
