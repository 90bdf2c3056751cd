"""A run in memory whose states code variables in slots, and a dictionary that reads the slots."""

from pathlib import Path

import jax
import numpy as np
import xarray as xr

from implicit_reasoning.dictionaries import measure
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.resolved import resolve
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.runs import Layout, Run
from tests.dictionaries.small import SITE, config

STEPS = (0, 10)


class Planted(Run):
    """A run in memory with the same parameters at every checkpoint."""

    def __init__(self, data, model, params):
        self.files = Layout(Path("nowhere"))
        self.__dict__ |= {"dataset": data, "model": model}
        self.own = params

    steps = STEPS

    def params(self, steps=None):
        steps = self.steps if steps is None else steps
        stacked = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * len(steps)), self.own)
        return jax.device_put(stacked)


def dimensions(width, threshold=0.0):
    """Return dictionaries whose features are the dimensions of the state; reversed at step 0."""
    eye = np.eye(width, dtype=np.float32)
    params = {
        "W_enc": np.stack([eye[:, ::-1], eye]),
        "W_dec": np.stack([eye[::-1], eye]),
        "b_enc": np.full((2, width), -threshold, np.float32),
        "b_dec": np.zeros((2, width), np.float32),
    }
    members = tuple(Member((step,), (SITE,), (SITE,), 2.0, 0) for step in STEPS)
    finished = InferenceDictionary(Autoencoder(width, width, width), "standard")
    return Dictionaries(finished, jax.device_put(params), members, config())


def measured_as(made, concepts=(), n_values=1, **more):
    """Return the smallest result that a page can be made from."""
    n, width = len(made), made.dictionary.architecture.d_sae
    members = {
        name: ("member", [getattr(member, name) for member in made.members])
        for name in ("step", "site", "sparsity", "seed")
    }
    numbers = ("l0", "explained_variance", "dead", "dense")
    variables = {name: ("member", np.full(n, 0.5)) for name in numbers}
    variables["density"] = ("member", "feature"), np.full((n, width), 0.1)
    coords = {**members, "what": ("member", ["trained"] * n)}
    if concepts:
        shape = n, len(concepts), n_values
        coords["concept"] = list(concepts)
        dims = "member", "concept", "value"
        variables["f1"] = dims, np.full(shape, 0.9)
        variables["best_feature"] = dims, np.zeros(shape, int)
        for name in ("f1_null", "average_precision_null"):
            variables[name] = (*dims[:2], "draw"), np.full((*shape[:2], 2), 0.05)
    return xr.Dataset(variables | more, coords)


def drawn(shapes, *leading):
    """Return random parameters of these shapes, which is faster than compiling an initialiser."""
    random = np.random.default_rng(0)
    return jax.device_put(
        jax.tree.map(
            lambda leaf: random.normal(size=(*leading, *leaf.shape)).astype(leaf.dtype), shapes
        )
    )


def untrained(run, asked):
    """Return the set of a configuration with random parameters; nothing is compiled."""
    plan = resolve(run, asked)
    dictionary = plan.recipe.dictionary
    x, y = (
        np.ones((4, width), "f4")
        for width in (dictionary.architecture.d_in, dictionary.architecture.d_out)
    )

    def whole(key, x, y, zero):
        return dictionary.finish(dictionary.init(key, x, y), zero, zero)

    shapes = jax.eval_shape(whole, jax.random.key(0), x, y, np.float32(0))
    params = drawn(shapes, len(plan.members))
    if "k" in params:
        params["k"] = jax.device_put(np.array([m.sparsity for m in plan.members], np.int32))
    return Dictionaries(dictionary.for_inference(), params, plan.members, asked)


def trace_only(monkeypatch, computed=lambda finished: False):
    """Trace the programs that measure dictionaries and return zeros, because compiling is slow.

    Args:
      monkeypatch: the fixture of pytest.
      computed: returns whether an `InferenceDictionary` is measured nevertheless.
    """
    real = measure._program

    def program(*args):
        compiled = real(*args)

        def run(params, items, sites, finished):
            if computed(finished):
                return compiled(params, items, sites, finished)
            shapes = compiled.eval_shape(params, items, sites, finished)
            return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

        return run

    monkeypatch.setattr(measure, "_program", program)


CONCEPTS = ["e1@r1", "e1@r2", "r1@r1", "r1@r2", "e2@r1", "e2@r2", "r2@r2", "answer@r2", "fact1@r2"]
