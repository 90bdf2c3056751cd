"""Planted models on a small world, as subjects that instruments can be run on."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.claims import Claim, Mechanism, describe
from implicit_reasoning.model.planted import MECHANISMS, Knowledge
from implicit_reasoning.worlds import build

WORLD = {
    "name": "composition",
    "world_seed": 0,
    "n_entities": 24,
    "n_relations": 6,
    "out_degree": 5,
    "ood_fraction": 0.1,
    "phi": 2.5,
    "hops": 2,
    "holdout": 0.2,
    "probes": 1000,
    "mixed_chains": True,
    "order": "e r r",
    "names": 0,
    "end_token": False,
}


@functools.cache
def dataset(**changes):
    return build(SimpleNamespace(**WORLD | changes))


def knowledge(data, every_chain=False):
    """All facts, and the chains that are trained on (or all that there are)."""
    facts, truth = data.world.facts, data.truth
    chains = np.flatnonzero(truth["fact2"] >= 0)
    chains = chains if every_chain else chains[chains < data.n_train]
    columns = [truth[name][chains] for name in ("e1", "r1", "e2", "r2", "answer")]
    return Knowledge(
        np.stack([facts.head, facts.relation, facts.tail]),
        np.stack(columns, axis=1),
        data.world.n_entities,
        data.world.n_relations,
    )


class Planted:
    """A planted model as a subject; `params` may be changed to break it."""

    def __init__(self, mechanism, data=None, seed=None, every_chain=False):
        self.dataset = dataset() if data is None else data
        made = MECHANISMS[mechanism](knowledge(self.dataset, every_chain), seed)
        self.model, self.weights, self.steps = made.model, made.params, (0,)
        self.mechanism = Mechanism(
            frozenset(Claim(*claim) for claim in made.true),
            frozenset(Claim(*claim) for claim in made.open),
        )

    def params(self, steps=None):
        count = len(self.steps if steps is None else steps)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), self.weights)

    def words(self, claims):
        """Claims in words, by whether they are true of the model."""
        return describe(claims, self.mechanism)
