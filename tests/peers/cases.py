"""The models that every peer reads, with inputs."""

import dataclasses

import jax
import numpy as np

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.training import train
from tests.model.exchange.models import filled, tokens_for
from tests.training.tiny import tiny

SPEC = Spec(d_vocab=37, n_ctx=7, n_layers=2, d_model=24, n_heads=3, d_mlp=40)

# Random parameters. Every bias and norm is drawn as well, so that exchanging two changes the
# logits.
RANDOM: dict[str, dict] = {
    "untied, gelu_new": {},
    "tied": {"tied": True},
    "relu": {"act_fn": "relu"},
    "another eps": {"eps": 1e-2},
    "looped, tied": {"n_loops": 3, "tied": True},
    "no norm, relu": {"normalization": "none", "act_fn": "relu"},
    "logit bias": {"unembed_bias": True},
}
NOT_GPT2 = ("no norm, relu", "logit bias")
"""Models that HuggingFace's GPT-2 cannot express; the default tests check that they are refused."""

TRAINED = {
    "trained": {},
    "trained, looped, tied": {"model__n_loops": 2, "model__tied": True},
}

SCRIPTS = {
    "huggingface": "huggingface",
    "transformer_lens_2": "hooked_transformer",
    "sae_lens": "hooked_transformer",  # with TransformerLens 3
    "transformer_lens_4": "transformer_bridge",
}
CASES = [*RANDOM, *TRAINED]
PAIRS = [
    (peer, case)
    for peer in SCRIPTS
    for case in CASES
    if not (peer == "huggingface" and case in NOT_GPT2)
]


def models(folder):
    """Return `{case: (model, params, tokens)}`; runs of trained models are under `folder`."""
    made = {}
    for name, change in RANDOM.items():
        model = Transformer(dataclasses.replace(SPEC, **change))
        made[name] = model, filled(model), tokens_for(model.spec, rows=9)
    for name, change in TRAINED.items():
        wider = {"model__d_model": 32, "model__d_mlp": 128}
        run = train(tiny(steps=200, checkpoints__every=200, **wider, **change), folder / name)
        params = jax.tree.map(lambda leaf: leaf[0], run.params([200]))
        # Training is long enough that the model has really changed.
        assert run.metrics[-1]["accuracy/id_triples"] > run.metrics[0]["accuracy/id_triples"] + 0.3
        made[name] = run.model, params, np.unique(run.dataset.tokens, axis=0)
    return made
