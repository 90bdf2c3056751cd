"""A small world, a model for it, and states that tests build directly."""

import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis import InMemory, Runner, measure
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.model import Spec, Transformer
from tests.model.exchange.models import initial

TASK = {
    "world_seed": 3,
    "n_entities": 16,
    "n_relations": 8,
    "out_degree": 8,
    "phi": 3.0,
    "probes": 200,
}


def make_dataset(task="composition", **other):
    return small_world(**{"name": task, **TASK, **other})


def make_model(dataset, **other):
    shape = {"n_layers": 2, "d_model": 48, "n_heads": 2, "d_mlp": 20, "init_std": 0.3, **other}
    return Transformer(Spec(d_vocab=dataset.n_vocab, n_ctx=len(dataset.positions), **shape))


def random_subject(model, dataset, n_checkpoints=1):
    """Return a model with random checkpoints."""
    return InMemory(model, dataset, [initial(model, seed) for seed in range(n_checkpoints)])


def run(instrument, dataset, model=None, n_checkpoints=1, states=None):
    """Return the result, and how often `measure` was traced.

    If `states` is given, checkpoints contain them beside their parameters; see
    `plant_in_parameters`.
    """
    subject = random_subject(model or make_model(dataset), dataset, n_checkpoints)
    if states is not None:
        checkpoints = [one | {"states": states} for one in subject.checkpoints]
        subject = InMemory(subject.model, dataset, checkpoints)
    runner = Runner(instrument, subject.model)
    return measure(instrument, subject, runner=runner, progress=False), runner.traces


def random_states(tokens, n_layers, width=48, seed=0):
    """Return states [layer, row, pos, width]; equal prefixes (tokens at layer 0) get equal ones."""
    random = np.random.default_rng(seed)
    states = np.empty((n_layers, *tokens.shape, width), np.float32)
    for layer in range(n_layers):
        for pos in range(tokens.shape[1]):
            seen = tokens[:, pos : pos + 1] if layer == 0 else tokens[:, : pos + 1]
            index = np.unique(seen, axis=0, return_inverse=True)[1].ravel()
            states[layer, :, pos] = random.normal(size=(index.max() + 1, width))[index]
    return states


def plant(monkeypatch, module, states):
    """Replace the model's states in the module of an instrument by these states."""
    monkeypatch.setattr(module, "residuals", lambda *_: jnp.asarray(states))


def plant_in_parameters(monkeypatch, module, instrument):
    """Replace the model's states by the states that `run` puts beside the parameters.

    All tests then share one program.
    """
    real = instrument.measure

    def measure(self, model, params, inputs, key):
        own = {name: value for name, value in params.items() if name != "states"}
        monkeypatch.setattr(module, "residuals", lambda *_: params["states"])
        return real(self, model, own, inputs, key)

    monkeypatch.setattr(instrument, "measure", measure)


def truth_of(dataset, tokens, name):
    """Return a truth column for some prompts."""
    chains = np.flatnonzero(dataset.truth["fact2"] >= 0)
    table = {tuple(dataset.tokens[row, : tokens.shape[1]]): row for row in chains}
    return dataset.truth[name][[table[tuple(prompt)] for prompt in tokens]]
