"""Dictionaries of parameters at random, in which a swapped pair shows."""

import jax
import jax.numpy as jnp

from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.kinds import Autoencoder


def at_random(kind, variant, seed=0, batch=6):
    """A dictionary, parameters, a batch of inputs and targets, and nobody dead."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (batch, kind.d_in))
    y = x if isinstance(kind, Autoencoder) else jax.random.normal(keys[1], (batch, kind.d_out))
    dictionary = Dictionary(kind, variant)
    params = dictionary.init(keys[2], x, y)
    names = sorted(params)
    for name, key in zip(names, jax.random.split(keys[3], len(names)), strict=True):
        params[name] = params[name] + 0.3 * jax.random.normal(key, params[name].shape)
    if "threshold" in params:
        params["threshold"] = jnp.abs(params["threshold"])
    return dictionary, params, x, y, jnp.zeros(kind.d_sae, bool)
