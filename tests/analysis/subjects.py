"""Something to measure without training it: a tiny world, and random weights as checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny

DATASET = build(tiny().task)


class Subject:
    """Random models as if they were the checkpoints of a run."""

    def __init__(self, n_checkpoints=3, dataset=DATASET, **spec):
        sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_mlp": 16, "init_std": 0.5} | spec
        self.dataset = dataset
        self.model = Transformer(Spec(d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx, **sizes))
        self.steps = tuple(10 * number for number in range(n_checkpoints))
        self._params = jax.vmap(self.model.init)(jax.random.split(jax.random.key(0), n_checkpoints))

    def params(self, steps=None):
        rows = np.array([self.steps.index(step) for step in steps or self.steps])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self._params)

    def one(self, step):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), self.params([step]))
