"""Replacement models with random weights, for tests of attribution graphs."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.architectures import CrossLayer, SkipTranscoder, Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.replacement import Replacement, mlp_sites
from implicit_reasoning.model import Transformer


def drawn(kind, spec, n_features):
    """Return a random model, transcoders of a kind with random weights, and their parameters."""
    model = Transformer(spec)
    params = jax.jit(model.init)(jax.random.key(1))
    random = np.random.default_rng(0)

    def weights(*shape):
        return jnp.asarray(random.normal(size=shape) / 8, jnp.float32)

    depth, width = spec.n_layers, spec.d_model
    if kind == "cross_layer":
        shape = depth * width, depth * width, depth * n_features
        made = [InferenceDictionary(CrossLayer(*shape, n_layers=depth), "standard")]
        own = [
            {
                "W_enc": weights(depth, width, n_features),
                "b_enc": weights(depth * n_features),
                "W_dec": weights(depth, n_features, depth, width),
                "b_dec": weights(depth * width),
            }
        ]
    else:
        architecture = {"transcoder": Transcoder, "skip": SkipTranscoder}[kind]
        made = [InferenceDictionary(architecture(width, width, n_features), "standard")] * depth
        own = [
            {
                "W_enc": weights(width, n_features),
                "b_enc": weights(n_features),
                "W_dec": weights(n_features, width),
                "b_dec": weights(width),
                **({"W_skip": weights(width, width)} if kind == "skip" else {}),
            }
            for _ in range(depth)
        ]
    return model, params, Replacement(tuple(made), mlp_sites(model)), own
