"""Import and export SAELens directories.

    from sae_lens import SAE
    sae = SAE.load_from_disk("folder")

A directory contains the files `cfg.json`, `sae_weights.safetensors` and `sparsity.safetensors`.
Exported dictionaries read unscaled activations, and their decoder rows have norm 1. As in SAELens,
BatchTopK and Matryoshka are exported as `jumprelu`. This module writes the format of SAELens 6 and
reads the formats of SAELens 3 to 6.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from implicit_reasoning.dictionaries.architectures import (
    Architecture,
    Autoencoder,
    Crosscoder,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.exchange.checks import check_arrays
from implicit_reasoning.dictionaries.exchange.saelens_fields import (
    AUTOENCODERS,
    TRANSCODERS,
    read_config,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model import Params
from implicit_reasoning.model.exchange.arrays import read_arrays, write_arrays
from implicit_reasoning.paths import local_path

VERSION = "6.54.12"
"""The version that is written to exported configs. SAELens 6.0 and later read this format."""


def save_saelens(
    folder: str | os.PathLike[str],
    finished: InferenceDictionary,
    params: Params,
    *,
    read: str,
    write: str,
    about: Mapping[str, Any] | None = None,
    density: Float[np.ndarray, " d_sae"] | None = None,
) -> None:
    """Save one dictionary as a SAELens directory.

    Args:
      folder: path of the directory, which is created if missing.
      finished: the dictionary, which must be an autoencoder or a transcoder.
      params: the dictionary's parameters.
      read: name of the hook site that the dictionary reads.
      write: name of the hook site that the dictionary writes.
      about: additional metadata for the config, such as `model_name`.
      density: [d_sae], the share of states on which each feature is active. The saved values are
        log10 of these shares.

    Raises:
      InputError: SAELens does not support the dictionary's architecture.
    """
    folder, architecture = local_path(folder), finished.architecture
    transcoder = not isinstance(architecture, Autoencoder)
    config: dict[str, Any] = {
        "architecture": _architecture(finished),
        "d_in": architecture.d_in,
        "d_sae": architecture.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "hook_name": read,
            "hook_head_index": None,
            "prepend_bos": False,
            **(about or {}),
        },
    }
    if transcoder:
        config["d_out"] = architecture.d_out
        config["metadata"]["hook_name_out"] = write
    arrays = {name: np.asarray(value, np.float32) for name, value in params.items()}
    if finished.saelens_architecture == "topk":
        config |= {"k": int(params["k"]), "rescale_acts_by_decoder_norm": False}
        del arrays["k"]
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "sae_weights.safetensors", arrays)
    if density is not None:
        rate = np.log10(np.maximum(np.asarray(density, np.float32), 1e-10))
        write_arrays(folder / "sparsity.safetensors", {"sparsity": rate})
    write_json(folder / "cfg.json", config)


def load_saelens(
    folder: str | os.PathLike[str],
) -> tuple[InferenceDictionary, Params, dict[str, Any]]:
    """Load a dictionary from a directory of SAELens 3, 4, 5 or 6.

    Autoencoders of this package subtract `b_dec` from the input of the encoder. If
    `apply_b_dec_to_input` is false, the function therefore adds `b_dec @ W_enc` to the encoder
    bias, which keeps activations the same. If `rescale_acts_by_decoder_norm` is true, the decoder
    norms are folded into the weights. If `finetuning_scaling_factor` is true, the scaling factors
    are folded into the weights.

    Returns:
      `(finished, params, metadata)`: the dictionary, its parameters, and the metadata in the
      config. Configs of versions 3 to 5 have no metadata. For these versions, `metadata` contains
      the fields about the origin of the dictionary.

    Raises:
      InputError: a file is missing or damaged; an array is missing or unknown, or has a wrong
        shape; or a field of the config is unknown or has an unsupported value.
    """
    folder = local_path(folder)
    path = folder / "sae_weights.safetensors"
    config, metadata = read_config(read_json(folder / "cfg.json"), folder / "cfg.json")
    finished = _finished(config)
    arrays = read_arrays(path)
    factors = _pop_factors(arrays, config["finetuning_scaling_factor"], config["d_sae"], path)
    check_arrays(arrays, finished, path)
    params = {name: jnp.asarray(value) for name, value in arrays.items()}
    if factors is not None:
        params["W_dec"] = params["W_dec"] * jnp.asarray(factors)[:, None]
    if finished.saelens_architecture == "topk":
        if config["rescale_acts_by_decoder_norm"]:
            params = _with_norms_folded(params)
        params["k"] = jnp.int32(finished.max_k)
    if isinstance(finished.architecture, Autoencoder) and not config["apply_b_dec_to_input"]:
        params = with_shifted_bias(params)
    return finished, params, metadata


def _architecture(finished: InferenceDictionary) -> str:
    architecture, own = finished.architecture, finished.saelens_architecture
    if isinstance(architecture, Autoencoder) and not isinstance(architecture, Crosscoder):
        return own
    found = TRANSCODERS.get((own, isinstance(architecture, SkipTranscoder)))
    if type(architecture) not in (Transcoder, SkipTranscoder) or found is None:
        raise InputError(
            f"SAELens has no {own} {type(architecture).__name__.lower()}; supported dictionaries "
            f"are autoencoders ({', '.join(AUTOENCODERS)}) and transcoders (standard, jumprelu)"
        )
    return found


def _finished(config: Mapping[str, Any]) -> InferenceDictionary:
    name, d_in, d_sae = config["architecture"], config["d_in"], config["d_sae"]
    if name in AUTOENCODERS:
        return InferenceDictionary(
            Autoencoder(d_in, d_in, d_sae), name, config["k"] if name == "topk" else 0
        )
    ((architecture, skips),) = [known for known, theirs in TRANSCODERS.items() if theirs == name]
    make: type[Architecture] = SkipTranscoder if skips else Transcoder
    return InferenceDictionary(make(d_in, config["d_out"], d_sae), architecture)


def _pop_factors(
    arrays: dict[str, np.ndarray], used: bool, d_sae: int, where: Path
) -> Float[np.ndarray, " d_sae"] | None:
    """Remove and return the activation factors of older versions, or None if all are 1.

    The factors multiply activations before the decoder, so they can be folded into decoder rows.
    """
    names = [n for n in ("finetuning_scaling_factor", "scaling_factor") if n in arrays]
    if len(names) > 1 or (used and not names):
        raise InputError(
            f"{where} must contain exactly one array of scaling factors, named "
            f"finetuning_scaling_factor; it contains {' and '.join(names) or 'none'}"
        )
    if not names:
        return None
    factors = arrays.pop(names[0])
    if factors.shape != (d_sae,):
        raise InputError(
            f"{where}: {names[0]} has shape {factors.shape}; it must have shape {(d_sae,)}"
        )
    if np.all(factors == 1):
        return None
    if not used:
        raise InputError(
            f"{where} contains the array {names[0]}, but finetuning_scaling_factor is false in "
            "cfg.json; remove the array or set finetuning_scaling_factor to true"
        )
    return factors


def _with_norms_folded(params: Params) -> Params:
    """Normalize decoder rows to norm 1 and scale encoders by the norms.

    TopK with norm-weighted selection then equals plain TopK.
    """
    norms = jnp.linalg.norm(params["W_dec"], axis=1)
    return params | {
        "W_enc": params["W_enc"] * norms[None],
        "b_enc": params["b_enc"] * norms,
        "W_dec": params["W_dec"] / norms[:, None],
    }


def with_shifted_bias(params: Params) -> Params:
    """Adapt encoder biases to an encoder that subtracts `b_dec` from its input.

    The parameters must come from an encoder that reads the unchanged input. The function adds
    `b_dec @ W_enc` to the biases, which keeps activations the same.
    """
    shift = params["b_dec"] @ params["W_enc"]
    if "b_gate" not in params:
        return params | {"b_enc": params["b_enc"] + shift}
    magnitude = params["b_mag"] + shift * jnp.exp(params["r_mag"])
    return params | {"b_gate": params["b_gate"] + shift, "b_mag": magnitude}
