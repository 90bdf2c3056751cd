"""circuit-tracer's folders: a set of transcoders, one a layer, or a cross-layer transcoder.

    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

Format: circuit-tracer 0.5.0, which knows ReLU and JumpReLU. Its encoders are transposed against
SAELens's and ours, and of a cross-layer decoder it keeps only layers that are written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.kinds import CrossLayer, Kind, SkipTranscoder, Transcoder
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.model import Params
from implicit_reasoning.model.interchange.arrays import read_arrays, write_arrays

_THRESHOLD = "activation_function.threshold"
_SET, _CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"


def save_transcoder_set(
    folder: str | os.PathLike[str],
    transcoders: Sequence[tuple[Finished, Params]],
    *,
    read: str = "ln2.hook_normalized",
    write: str = "hook_mlp_out",
    model_name: str = "implicit_reasoning",
) -> None:
    """Write one transcoder for each layer, from the first on.

    Args:
      folder: made if need be.
      transcoders: of all layers, in order.
      read: the site in a block that they read, without its block.
      write: the site that they write.
      model_name: for the config.

    Raises:
      InputError: one of them is no transcoder of ReLU or JumpReLU.
    """
    folder = Path(folder)
    layers = []
    for finished, params in transcoders:
        if type(finished.kind) not in (Transcoder, SkipTranscoder):
            raise InputError(f"a {type(finished.kind).__name__} is no transcoder of one layer")
        _check_architecture(finished)
        plain = {name: np.asarray(value, np.float32) for name, value in params.items()}
        plain["W_enc"] = plain["W_enc"].T
        if "threshold" in plain:
            plain[_THRESHOLD] = plain.pop("threshold")
        layers.append(plain)
    folder.mkdir(parents=True, exist_ok=True)
    for number, arrays in enumerate(layers):
        write_arrays(folder / f"layer_{number}.safetensors", arrays)
    _write_config(folder, _SET, model_name, read, write)


def load_transcoder_set(folder: str | os.PathLike[str]) -> list[tuple[Finished, Params]]:
    """Read a set of transcoders, by layer; an `InputError` where the folder has none."""
    folder = Path(folder)
    _check_kind(folder, _SET)
    paths = sorted(folder.glob("layer_*.safetensors"), key=lambda path: int(path.stem[6:]))
    return [_transcoder(read_arrays(path)) for path in paths]


def save_cross_layer(
    folder: str | os.PathLike[str],
    finished: Finished,
    params: Params,
    *,
    read: str = "ln2.hook_normalized",
    write: str = "hook_mlp_out",
    model_name: str = "implicit_reasoning",
) -> None:
    """Write a cross-layer transcoder; arguments are those of `save_transcoder_set`.

    Raises:
      InputError: it is none, or not of ReLU or JumpReLU.
    """
    folder, kind = Path(folder), finished.kind
    if not isinstance(kind, CrossLayer):
        raise InputError(f"a {type(kind).__name__} is no cross-layer transcoder")
    _check_architecture(finished)
    n = kind.n_layers
    plain = {name: np.asarray(value, np.float32) for name, value in params.items()}
    by_layer = {
        name: plain[name].reshape(n, -1)
        for name in ("b_enc", "b_dec", "threshold")
        if name in plain
    }
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(n):
        encoder = {f"{name}_{layer}": value[layer] for name, value in by_layer.items()}
        encoder[f"W_enc_{layer}"] = plain["W_enc"][layer].T
        decoder = {f"W_dec_{layer}": plain["W_dec"][layer, :, layer:]}
        write_arrays(folder / f"W_enc_{layer}.safetensors", encoder)
        write_arrays(folder / f"W_dec_{layer}.safetensors", decoder)
    _write_config(folder, _CROSS_LAYER, model_name, read, write)


def load_cross_layer(folder: str | os.PathLike[str]) -> tuple[Finished, Params]:
    """Read a cross-layer transcoder; an `InputError` where the folder has none."""
    folder = Path(folder)
    _check_kind(folder, _CROSS_LAYER)
    n = len(list(folder.glob("W_enc_*.safetensors")))
    encoders = [read_arrays(folder / f"W_enc_{layer}.safetensors") for layer in range(n)]
    params: Params = {
        "W_enc": jnp.stack([part[f"W_enc_{layer}"].T for layer, part in enumerate(encoders)])
    }
    for name in ("b_enc", "b_dec", "threshold"):
        if f"{name}_0" in encoders[0]:
            parts = [part[f"{name}_{layer}"] for layer, part in enumerate(encoders)]
            params[name] = jnp.asarray(np.concatenate(parts))
    decoder = np.zeros((*_features(params), n, params["W_enc"].shape[1]), np.float32)
    for layer in range(n):
        part = read_arrays(folder / f"W_dec_{layer}.safetensors")
        decoder[layer, :, layer:] = part[f"W_dec_{layer}"]
    params["W_dec"] = jnp.asarray(decoder)
    width, d_sae = n * params["W_enc"].shape[1], n * params["W_enc"].shape[2]
    kind = CrossLayer(width, width, d_sae, n_layers=n)
    return Finished(kind, "jumprelu" if "threshold" in params else "standard"), params


def _features(params: Params) -> tuple[int, int]:
    """Layers, and features of each."""
    layers, _, features = params["W_enc"].shape
    return layers, features


def _transcoder(arrays: dict[str, np.ndarray]) -> tuple[Finished, Params]:
    if _THRESHOLD in arrays:
        arrays["threshold"] = arrays.pop(_THRESHOLD)
    arrays["W_enc"] = arrays["W_enc"].T
    params = {name: jnp.asarray(value) for name, value in arrays.items()}
    d_in, d_sae = params["W_enc"].shape
    make: type[Kind] = SkipTranscoder if "W_skip" in params else Transcoder
    kind = make(d_in, params["W_dec"].shape[1], d_sae)
    return Finished(kind, "jumprelu" if "threshold" in params else "standard"), params


def _check_architecture(finished: Finished) -> None:
    if finished.architecture not in ("standard", "jumprelu"):
        raise InputError(
            f"circuit-tracer 0.5 has no transcoders of {finished.architecture}: it reads ReLU "
            "(standard) and jumprelu, to which batch_topk and matryoshka come out as well"
        )


def _check_kind(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from None
    found = config.get("model_kind") if isinstance(config, dict) else None
    if found != kind:
        raise InputError(f"{folder} holds a {found}, not a {kind}")
    return dict(config)


def _write_config(folder: Path, kind: str, model_name: str, read: str, write: str) -> None:
    config = {
        "model_name": model_name,
        "model_kind": kind,
        "feature_input_hook": read,
        "feature_output_hook": write,
        "scan": model_name,
    }
    with atomic_write(folder / "config.yaml") as file:
        yaml.safe_dump(config, file, sort_keys=False)
