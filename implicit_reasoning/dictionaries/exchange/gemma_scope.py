"""Import JumpReLU autoencoders and transcoders from Gemma Scope's `params.npz`.

Autoencoders of this package subtract `b_dec` from the input of the encoder. Autoencoders of Gemma
Scope use the unchanged input. The import therefore adds `b_dec @ W_enc` to the `b_enc` of an
autoencoder, which keeps activations the same.

Source: Lieberum et al. 2024, "Gemma Scope".
"""

from __future__ import annotations

import os

import jax.numpy as jnp

from implicit_reasoning.dictionaries.architectures import Autoencoder, Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.exchange.checks import check_arrays
from implicit_reasoning.dictionaries.exchange.saelens import with_shifted_bias
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_npz
from implicit_reasoning.model import Params
from implicit_reasoning.model.exchange.arrays import as_float32

_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def load_gemma_scope(
    path: str | os.PathLike[str], *, transcoder: bool = False
) -> tuple[InferenceDictionary, Params]:
    """Load a dictionary from a Gemma Scope file `params.npz`.

    Args:
      path: path of the file `params.npz`.
      transcoder: whether the file contains a transcoder instead of an autoencoder. The file itself
        does not specify the type.

    Returns:
      The dictionary and its parameters.

    Raises:
      InputError: the file is missing or damaged, or its arrays have wrong names or shapes.
    """
    arrays = read_npz(path, "Gemma Scope file")
    if arrays.keys() != _NAMES:
        raise InputError(
            f"{path} is not a Gemma Scope file: it contains {', '.join(sorted(arrays))}; it must "
            f"contain {', '.join(sorted(_NAMES))}"
        )
    plain = {name: as_float32(array, name, path) for name, array in arrays.items()}
    if plain["W_enc"].ndim != 2 or plain["W_dec"].ndim != 2:
        raise InputError(
            f"{path} is not a Gemma Scope file: W_enc has shape {plain['W_enc'].shape} and W_dec "
            f"has shape {plain['W_dec'].shape}; W_enc and W_dec must be matrices"
        )
    (d_in, d_sae), d_out = plain["W_enc"].shape, plain["W_dec"].shape[1]
    architecture = (Transcoder if transcoder else Autoencoder)(d_in, d_out, d_sae)
    finished = InferenceDictionary(architecture, "jumprelu")
    check_arrays(plain, finished, path)
    params: Params = {name: jnp.asarray(value) for name, value in plain.items()}
    return finished, params if transcoder else with_shifted_bias(params)
