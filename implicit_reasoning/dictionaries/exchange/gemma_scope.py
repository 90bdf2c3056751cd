"""Gemma Scope's `params.npz`: JumpReLU autoencoders and transcoders, only read.

Source: Lieberum et al. 2024, "Gemma Scope". The encoder does not subtract `b_dec`; of an
autoencoder a bias makes up for ours doing so.
"""

from __future__ import annotations

import os

import jax.numpy as jnp

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.exchange.saelens import with_shifted_bias
from implicit_reasoning.dictionaries.kinds import Autoencoder, Transcoder
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_npz
from implicit_reasoning.model import Params

_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def load_gemma_scope(
    path: str | os.PathLike[str], *, transcoder: bool = False
) -> tuple[Finished, Params]:
    """Read a `params.npz`.

    Args:
      path: of the file.
      transcoder: whether it is one; the file does not say.

    Raises:
      InputError: it is missing, damaged, or has other arrays.
    """
    arrays = read_npz(path, "Gemma Scope file")
    if arrays.keys() != _NAMES:
        raise InputError(
            f"{path} is no Gemma Scope file: it has {', '.join(sorted(arrays))}, not "
            f"{', '.join(sorted(_NAMES))}"
        )
    params = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    (d_in, d_sae), d_out = params["W_enc"].shape, params["W_dec"].shape[1]
    if transcoder:
        return Finished(Transcoder(d_in, d_out, d_sae), "jumprelu"), params
    return Finished(Autoencoder(d_in, d_out, d_sae), "jumprelu"), with_shifted_bias(params)
