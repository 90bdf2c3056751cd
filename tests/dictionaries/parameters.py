"""Dictionaries with random parameters, so that exchanging two parameters changes the result."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import Dictionary


def at_random(architecture, activation_fn, seed=0, batch=6):
    """Return a dictionary, its parameters, inputs, targets, and a mask without dead features.

    All are drawn by numpy, so nothing is compiled for them.
    """
    random = np.random.default_rng(seed)

    def draw(shape, size=1.0):
        return jnp.asarray(size * random.standard_normal(shape), jnp.float32)

    x = draw((batch, architecture.d_in))
    y = x if isinstance(architecture, Autoencoder) else draw((batch, architecture.d_out))
    dictionary = Dictionary(architecture, activation_fn)
    shapes = jax.eval_shape(dictionary.init, jax.random.key(0), x, y)
    params = {
        name: draw(shape.shape, 0.5 if name == "W_enc" else 0.3)
        for name, shape in sorted(shapes.items())
    }
    if "threshold" in params:
        params["threshold"] = jnp.asarray(np.abs(params["threshold"]))
    return dictionary, params, x, y, jnp.asarray(np.zeros(architecture.d_sae, bool))
