"""Check the names and shapes of the arrays of an imported dictionary."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.architectures import SkipTranscoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.model.exchange.flat import check_fit


def shapes(finished: InferenceDictionary) -> dict[str, tuple[int, ...]]:
    """Return the expected shapes of a dictionary's arrays, keyed by name.

    The dictionary must be an autoencoder or a transcoder. The result does not contain the parameter
    `k` of `topk`.
    """
    architecture = finished.architecture
    d_in, d_out, d_sae = architecture.d_in, architecture.d_out, architecture.d_sae
    found: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
    }
    biases = (
        ("b_gate", "b_mag", "r_mag") if finished.saelens_architecture == "gated" else ("b_enc",)
    )
    found |= dict.fromkeys(biases, (d_sae,))
    if finished.saelens_architecture == "jumprelu":
        found["threshold"] = (d_sae,)
    if isinstance(architecture, SkipTranscoder):
        found["W_skip"] = (d_out, d_in)
    return found


def check_arrays(
    arrays: Mapping[str, np.ndarray], finished: InferenceDictionary, where: str | os.PathLike[str]
) -> None:
    """Raise an `InputError` if arrays are missing, unknown or have a wrong shape.

    The message lists all such arrays.

    Args:
      arrays: arrays from a file, after conversion to this package's names and layouts.
      finished: the dictionary whose parameters the arrays should be.
      where: path of the file, which the error message states.
    """
    architecture = finished.architecture
    wanted = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes(finished).items()
    }
    what = (
        f"a {finished.saelens_architecture} {type(architecture).__name__.lower()} of d_in "
        f"{architecture.d_in}, d_out {architecture.d_out} and d_sae {architecture.d_sae}"
    )
    check_fit(arrays, wanted, where, what)
