"""Import and export folders of circuit-tracer.

    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

A folder contains either a cross-layer transcoder or a set with one transcoder per layer. Two
packages read these folders. The original circuit-tracer, by decoderesearch (formerly
safety-research), is installed from GitHub. The PyPI package `circuit-tracer` (0.5.0) is a fork.
Both packages use the same arrays. The fork uses JumpReLU if the arrays include thresholds, and ReLU
otherwise. The original also reads the fields `activation` and `k` of `config.yaml`. This module
exports only ReLU and JumpReLU, and writes neither field. Both packages therefore read exported
folders in the same way.

The import rejects `activation: topk` and negative thresholds, because both can cause negative
activations. With `activation: topk`, the original keeps the k largest pre-activations even if these
are negative. With a negative threshold, circuit-tracer's JumpReLU returns negative activations
between the threshold and 0.

Encoder matrices are transposed relative to SAELens and to this package. A cross-layer transcoder is
stored without the decoder weights to layers before the feature's layer, because these weights are
0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from implicit_reasoning.dictionaries.architectures import (
    Architecture,
    CrossLayer,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.exchange.checks import check_arrays
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.model import Params
from implicit_reasoning.model.exchange.arrays import read_arrays, write_arrays
from implicit_reasoning.model.exchange.fields import check_config
from implicit_reasoning.model.exchange.flat import check_fit
from implicit_reasoning.paths import local_path

_THRESHOLD = "activation_function.threshold"
_SET, _CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"

# Fields of config.yaml that do not affect computation: the model, and where the files are stored.
_HARMLESS = (
    *("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "scan"),
    *("repo_id", "revision", "subfolder", "dtype"),
)
_JUMPRELU = ("jumprelu", "jump_relu")


def save_transcoder_set(
    folder: str | os.PathLike[str],
    transcoders: Sequence[tuple[InferenceDictionary, Params]],
    *,
    read: str = "ln2.hook_normalized",
    write: str = "hook_mlp_out",
    model_name: str = "implicit_reasoning",
) -> None:
    """Save a set of transcoders with one transcoder per layer.

    Args:
      folder: path of the folder, which is created if missing.
      transcoders: pairs of a transcoder and its parameters, in layer order from layer 0.
      read: name within a block of the hook site that the transcoders read.
      write: name within a block of the hook site that the transcoders write.
      model_name: name of the model in the saved config.

    Raises:
      InputError: a dictionary is not a transcoder, has an activation function other than ReLU and
        JumpReLU, or has a negative threshold.
    """
    folder = local_path(folder)
    layers: list[dict[str, np.ndarray]] = []
    for finished, params in transcoders:
        if type(finished.architecture) not in (Transcoder, SkipTranscoder):
            raise InputError(
                f"the architecture of layer {len(layers)} is "
                f"{type(finished.architecture).__name__}; it must be Transcoder or SkipTranscoder"
            )
        _check_architecture(finished)
        plain = {name: np.asarray(value, np.float32) for name, value in params.items()}
        plain["W_enc"] = plain["W_enc"].T
        if "threshold" in plain:
            _check_threshold(plain["threshold"], folder)
            plain[_THRESHOLD] = plain.pop("threshold")
        layers.append(plain)
    folder.mkdir(parents=True, exist_ok=True)
    for number, arrays in enumerate(layers):
        write_arrays(folder / f"layer_{number}.safetensors", arrays)
    _write_config(folder, _SET, model_name, read, write)


def load_transcoder_set(
    folder: str | os.PathLike[str], *, n_layers: int | None = None
) -> list[tuple[InferenceDictionary, Params]]:
    """Load a set of transcoders with their parameters, in layer order.

    Args:
      folder: path of a folder with the files `config.yaml` and `layer_<number>.safetensors`.
      n_layers: required number of layers. By default, any number is accepted.

    Raises:
      InputError: the folder does not contain a set of transcoders; a layer or an array is missing;
        an array is unknown or has a wrong shape; layers have different widths; a threshold is
        negative; or a field of the config is not supported.
    """
    folder = local_path(folder)
    activation = _read_config(folder, _SET)
    found = [
        _transcoder(folder / name, activation) for name in _by_layer(folder, "layer", n_layers)
    ]
    widths = [
        (finished.architecture.d_in, finished.architecture.d_out, finished.architecture.d_sae)
        for finished, _ in found
    ]
    for layer, width in enumerate(widths):
        if width != widths[0]:
            raise InputError(
                f"{folder}: (d_in, d_out, d_sae) is {width} in layer_{layer} and {widths[0]} in "
                "layer_0; all layers must have the same widths"
            )
    return found


def save_cross_layer(
    folder: str | os.PathLike[str],
    finished: InferenceDictionary,
    params: Params,
    *,
    read: str = "ln2.hook_normalized",
    write: str = "hook_mlp_out",
    model_name: str = "implicit_reasoning",
) -> None:
    """Save a cross-layer transcoder as a circuit-tracer folder.

    Args:
      folder: path of the folder, which is created if missing.
      finished: the cross-layer transcoder.
      params: the parameters of the cross-layer transcoder.
      read: name within a block of the hook site that the features of the block read.
      write: name within a block of the hook site that the features write.
      model_name: name of the model in the saved config.

    Raises:
      InputError: the dictionary is not a cross-layer transcoder, has an activation function other
        than ReLU and JumpReLU, or has a negative threshold.
    """
    folder, architecture = local_path(folder), finished.architecture
    if not isinstance(architecture, CrossLayer):
        raise InputError(
            f"the architecture is {type(architecture).__name__}; it must be CrossLayer"
        )
    _check_architecture(finished)
    n = architecture.n_layers
    plain = {name: np.asarray(value, np.float32) for name, value in params.items()}
    by_layer = {
        name: plain[name].reshape(n, -1)
        for name in ("b_enc", "b_dec", "threshold")
        if name in plain
    }
    if "threshold" in plain:
        _check_threshold(plain["threshold"], folder)
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(n):
        encoder = {f"{name}_{layer}": value[layer] for name, value in by_layer.items()}
        encoder[f"W_enc_{layer}"] = plain["W_enc"][layer].T
        decoder = {f"W_dec_{layer}": plain["W_dec"][layer, :, layer:]}
        write_arrays(folder / f"W_enc_{layer}.safetensors", encoder)
        write_arrays(folder / f"W_dec_{layer}.safetensors", decoder)
    _write_config(folder, _CROSS_LAYER, model_name, read, write)


def load_cross_layer(
    folder: str | os.PathLike[str], *, n_layers: int | None = None
) -> tuple[InferenceDictionary, Params]:
    """Load a cross-layer transcoder from a circuit-tracer folder.

    Args:
      folder: path of a folder with the files `config.yaml`, `W_enc_<layer>.safetensors` and
        `W_dec_<layer>.safetensors`.
      n_layers: required number of layers. By default, any number is accepted.

    Returns:
      The cross-layer transcoder and its parameters.

    Raises:
      InputError: the folder does not contain a cross-layer transcoder; a layer or an array is
        missing; an array is unknown or has a wrong shape; a threshold is negative; or a field of
        the config is not supported.
    """
    folder = local_path(folder)
    activation = _read_config(folder, _CROSS_LAYER)
    names = _by_layer(folder, "W_enc", n_layers)
    n = len(names)
    _by_layer(folder, "W_dec", n)
    encoders = [read_arrays(folder / name) for name in names]
    jumprelu = any(name.startswith("threshold_") for name in encoders[0])
    _check_activation(activation, jumprelu, folder)
    d_sae, width = _two(encoders[0], "W_enc_0", folder / names[0])
    per_layer = {"W_enc": (d_sae, width), "b_enc": (d_sae,), "b_dec": (width,)}
    per_layer |= {"threshold": (d_sae,)} if jumprelu else {}
    for layer, part in enumerate(encoders):
        _check(part, {f"{k}_{layer}": v for k, v in per_layer.items()}, folder / names[layer])
        if jumprelu:
            _check_threshold(part[f"threshold_{layer}"], folder / names[layer])
    decoder = np.zeros((n, d_sae, n, width), np.float32)
    for layer in range(n):
        path = folder / f"W_dec_{layer}.safetensors"
        part = read_arrays(path)
        _check(part, {f"W_dec_{layer}": (d_sae, n - layer, width)}, path)
        decoder[layer, :, layer:] = part[f"W_dec_{layer}"]
    stacked = {
        name: np.stack([part[f"{name}_{layer}"] for layer, part in enumerate(encoders)])
        for name in per_layer
    }
    params: Params = {name: jnp.asarray(value.reshape(-1)) for name, value in stacked.items()}
    params["W_enc"] = jnp.asarray(stacked["W_enc"].transpose(0, 2, 1))
    params["W_dec"] = jnp.asarray(decoder)
    architecture = CrossLayer(n * width, n * width, n * d_sae, n_layers=n)
    return InferenceDictionary(architecture, "jumprelu" if jumprelu else "standard"), params


def _transcoder(path: Path, activation: str | None) -> tuple[InferenceDictionary, Params]:
    arrays = read_arrays(path)
    d_sae, d_in = _two(arrays, "W_enc", path)
    d_out = _two(arrays, "W_dec", path)[1]
    arrays["W_enc"] = arrays["W_enc"].T
    jumprelu = _THRESHOLD in arrays
    _check_activation(activation, jumprelu, path)
    if jumprelu:
        threshold = arrays.pop(_THRESHOLD)
        if threshold.size == 1:  # circuit-tracer allows one threshold for all features
            threshold = np.full(d_sae, threshold.item(), np.float32)
        _check_threshold(threshold, path)
        arrays["threshold"] = threshold
    make: type[Architecture] = SkipTranscoder if "W_skip" in arrays else Transcoder
    finished = InferenceDictionary(make(d_in, d_out, d_sae), "jumprelu" if jumprelu else "standard")
    check_arrays(arrays, finished, path)
    return finished, {name: jnp.asarray(value) for name, value in arrays.items()}


def _by_layer(folder: Path, stem: str, n_layers: int | None) -> list[str]:
    """Return the file names of all layers; layers must be numbered from 0 without gaps."""
    there = {path.name for path in folder.glob(f"{stem}_*.safetensors")}
    count = max(len(there), 1) if n_layers is None else n_layers
    wanted = [f"{stem}_{layer}.safetensors" for layer in range(count)]
    missing = [name for name in wanted if name not in there]
    strange = sorted(there - set(wanted))
    if missing or strange:
        said = [f"missing files: {', '.join(missing)}"] if missing else []
        said += [f"unexpected files: {', '.join(strange)}"] if strange else []
        raise InputError(
            f"{folder} must contain one file {stem}_<number>.safetensors per layer, with numbers "
            f"from 0 to {count - 1}; {'; '.join(said)}"
        )
    return wanted


def _two(arrays: Mapping[str, np.ndarray], name: str, path: Path) -> tuple[int, int]:
    """Return the shape of the matrix `name`; raise an `InputError` if there is no such matrix."""
    if name not in arrays or arrays[name].ndim != 2 or 0 in arrays[name].shape:
        shape = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
        raise InputError(
            f"{path} does not contain a transcoder: {name} {shape}; {name} must be a matrix"
        )
    rows, columns = arrays[name].shape
    return rows, columns


def _check(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    check_fit(arrays, wanted, path, "the other layers of the cross-layer transcoder")


def _check_threshold(threshold: np.ndarray, path: Path) -> None:
    if np.any(threshold < 0):
        raise InputError(
            f"{path}: there are negative thresholds; all thresholds must be at least 0, because "
            "circuit-tracer's JumpReLU returns negative activations for a negative threshold"
        )


def _check_activation(activation: str | None, jumprelu: bool, where: Path) -> None:
    """Check that the activation function in the config, if any, agrees with the arrays."""
    if activation is not None and jumprelu != (activation in _JUMPRELU):
        raise InputError(
            f"{where} contains {'thresholds' if jumprelu else 'no thresholds'}, but activation is "
            f"{activation!r} in config.yaml; "
            f"{'remove the thresholds' if jumprelu else 'add thresholds'} or change activation"
        )


def _check_architecture(finished: InferenceDictionary) -> None:
    if finished.saelens_architecture not in ("standard", "jumprelu"):
        raise InputError(
            f"circuit-tracer 0.5 does not support {finished.saelens_architecture} transcoders; "
            "export standard (ReLU) or jumprelu transcoders (also from batch_topk or matryoshka)"
        )


def _read_config(folder: Path, kind: str) -> str | None:
    """Check the config of a folder; return the activation function in the config, if any."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    found = config.get("model_kind") if isinstance(config, dict) else None
    if found != kind:
        raise InputError(f"{path}: model_kind is {found!r}; it must be {kind!r}")
    check_config(
        config,
        path,
        what="set of transcoders",
        optional={"activation": str | None},
        harmless=_HARMLESS,
        only={"activation": (None, "relu", *_JUMPRELU), "k": (None,), "transcoders": (None, [])},
    )
    activation: str | None = config.get("activation")
    return activation


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
