"""Subjects that need no training: a tiny world, and random weights as checkpoints."""

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import build
from tests.model.exchange.models import initial
from tests.training.tiny import tiny

DATASET = build(tiny().task)


def random_checkpoints(count=3, **spec):
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_mlp": 16, "init_std": 0.5} | spec
    model = Transformer(Spec(d_vocab=DATASET.n_vocab, n_ctx=DATASET.n_ctx, **sizes))
    return InMemory(model, DATASET, [initial(model, seed) for seed in range(count)])
