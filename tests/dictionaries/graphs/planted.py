"""Planted models with exact transcoders: features are the neurons, or skip the bridge."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.subject import InMemory
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.config import apply_overrides
from implicit_reasoning.dictionaries.architectures import CrossLayer, Transcoder
from implicit_reasoning.dictionaries.defaults import get_config
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts
from implicit_reasoning.dictionaries.replacement import mlp_sites
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.model.planted.draft import Draft
from implicit_reasoning.model.planted.weights import build

DEPTH = 4
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec"), ("W_in", "b_in", "W_out", "b_out")


def neurons(model, params):
    """Return the transcoder whose features are the neurons, and its parameters for each layer."""
    spec = model.spec
    made = InferenceDictionary(Transcoder(spec.d_model, spec.d_model, spec.d_mlp), "standard")
    mlps = [params["blocks"][str(layer)]["mlp"] for layer in range(spec.depth)]
    return made, [
        dict(zip(NAMES[0], (mlp[name] for name in NAMES[1]), strict=True)) for mlp in mlps
    ]


def neuron_set(subject, layers=None):
    """Return the neurons of MLPs of a planted model as a set of transcoders."""
    model, step = subject.model, subject.steps[-1]
    params = jax.tree.map(lambda x: x[0], subject.params([step]))
    layers = range(model.spec.depth) if layers is None else layers
    made, own = neurons(model, params)
    sites = mlp_sites(model)
    members = tuple(
        Member((step,), (sites.read[layer],), (sites.write[layer],), 1.0, 0) for layer in layers
    )
    stacked = {name: jnp.stack([own[layer][name] for layer in layers]) for name in NAMES[0]}
    return Dictionaries(made, stacked, members, named("transcoder", "neurons"))


def labeled(bridge, second, distinct=None, n_values=5):
    """Return prompts of two positions on which features are labeled, with these bridges."""
    rows = np.arange(len(bridge))
    everywhere = np.ones((len(bridge), 2), bool)
    distinct = everywhere if distinct is None else distinct
    tokens, known = np.zeros((len(bridge), 2), int), np.ones(2, bool)
    return LabelPrompts(rows, tokens, bridge, second, known, distinct, n_values)


def named(kind, name):
    return apply_overrides(get_config(kind), {"name": name})


class Relay:
    """A composer of a world in which the entity is the last token, with a feature per bridge.

    At the last position, block 0 moves the relations there and looks up the bridge. Block 1
    translates the code of the bridge into a second code, by one neuron per bridge. Block 2 looks up
    the second fact. Block 3 is empty. The positions of a draft have the names of another order, so
    `e1` is the position of r1, `r1` that of r2, and `r2` that of e1.
    """

    def __init__(self):
        self.dataset = small_world(
            n_entities=6, n_relations=10, out_degree=10, phi=7.0, order="r r e"
        )
        facts = self.dataset.world.facts
        head, relation, tail = facts.head, facts.relation, facts.tail
        draft = Draft(6, 10, DEPTH)
        self.bridge, self.second = draft.space(6), draft.space(6)
        self.first_r, self.second_r = draft.space(10), draft.space(10)
        draft.move(0, "e1", "r2", draft.relation, self.first_r, "r1")
        draft.move(0, "r1", "r2", draft.relation, self.second_r, "r2")
        keys = [draft.entity[head], self.first_r[relation]]
        draft.table(0, "r2", keys, [self.bridge[tail]])
        draft.table(1, "r2", [self.bridge], [self.second])
        keys = [self.second[head], self.second_r[relation]]
        draft.table(2, "r2", keys, [draft.output[tail]])
        self.draft = draft
        self.model, self.params = build(draft, None)
        self.subject = InMemory(self.model, self.dataset, [self.params])

    def skipping(self):
        """Return a cross-layer transcoder with one feature per chain, which skips the bridge.

        The features of layer 0 read e1, r1 and r2. They write the code of the bridge to layer 0,
        the second code to layer 1, and the answer to layer 2. No other feature is ever active.
        """
        draft, truth = self.draft, self.dataset.truth
        chains = np.flatnonzero(truth["fact2"] >= 0)
        e1, r1, e2, r2, e3 = np.unique(
            np.stack([truth[name][chains] for name in ("e1", "r1", "e2", "r2", "e3")]), axis=1
        )
        n, width = len(e1), self.model.spec.d_model
        feature = np.arange(n)
        encoder, bias = np.zeros((DEPTH, width, n)), np.zeros((DEPTH, n))
        for dims in (draft.entity[e1], self.first_r[r1], self.second_r[r2]):
            encoder[0, dims, feature] = 1
        bias[0] = -2.5
        decoder = np.zeros((DEPTH, n, DEPTH, width))
        for layer, dims in enumerate((self.bridge[e2], self.second[e2], draft.output[e3])):
            decoder[0, feature, layer, dims] = 2  # the activation is .5
        shape = DEPTH * width, DEPTH * width, DEPTH * n
        made = InferenceDictionary(CrossLayer(*shape, n_layers=DEPTH), "standard")
        params = {"W_enc": encoder, "b_enc": bias.reshape(-1), "W_dec": decoder}
        params["b_dec"] = np.zeros(DEPTH * width)
        sites = mlp_sites(self.model)
        member = Member((self.subject.steps[-1],), sites.read, sites.write, 1.0, 0)
        stacked = {name: jnp.asarray(x[None], jnp.float32) for name, x in params.items()}
        return Dictionaries(made, stacked, (member,), named("cross_layer", "skipping"))
