"""Small models with hand-written weights and a known mechanism, and their dataset."""

import jax
import numpy as np

from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.model import Spec, Transformer

_SHARP = 30.0  # scale of the attention logits


def dataset(**changes):
    """Return a small world of chains; half of the possible chains are training rows."""
    sizes = {"world_seed": 1, "n_entities": 40, "n_relations": 5, "ood_fraction": 0.25}
    return small_world(**{**sizes, "phi": 1.5, "probes": 100, **changes})


class _Drawing:
    """A two-block model of zero weights, whose residual has named slots of one-hot codes."""

    def __init__(self, data, slots, d_mlp):
        self.start, size = {}, 0
        for name, width in slots.items():
            self.start[name], size = size, size + width
        self.model = Transformer(
            Spec(
                d_vocab=data.n_vocab,
                n_ctx=data.n_ctx,
                n_layers=2,
                d_model=size,
                n_heads=1,
                d_mlp=d_mlp,
                act_fn="relu",
                normalization="none",
            )
        )
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)

    def block(self, layer):
        return self.params["blocks"][str(layer)]

    def embed(self, world):
        """Entities, relations and positions each have a code."""
        for entity in range(world.n_entities):
            self.params["embed"]["W_E"][entity, self.start["entity"] + entity] = 1
            self.params["unembed"]["W_U"][self.start["tail"] + entity, entity] = 10
        for relation in range(world.n_relations):
            token = world.n_entities + relation
            self.params["embed"]["W_E"][token, self.start["relation"] + relation] = 1
        for pos in range(len(self.params["pos_embed"]["W_pos"])):
            self.params["pos_embed"]["W_pos"][pos, self.start["pos"] + pos] = 1

    def look_back(self, layer, moves):
        """Add attention to the previous position, which copies slots: (from, to, width)."""
        attn, n_pos = self.block(layer)["attn"], len(self.params["pos_embed"]["W_pos"])
        d_head = attn["W_Q"].shape[2]
        for pos in range(n_pos):
            attn["W_Q"][0, self.start["pos"] + pos, max(pos - 1, 0)] = _SHARP * d_head**0.5
            attn["W_K"][0, self.start["pos"] + pos, pos] = 1
        for number in range(d_head):
            attn["W_O"][0, number, number] = 1
        for source, target, width in moves:
            for i in range(width):
                attn["W_V"][0, self.start[source] + i, self.start[target] + i] = 1

    def neuron(self, layer, number, reads, writes):
        """Add a neuron that writes codes if all of `reads` (two codes) are active."""
        mlp = self.block(layer)["mlp"]
        for slot, code in reads:
            mlp["W_in"][self.start[slot] + code, number] = 1
        mlp["b_in"][number] = 1 - len(reads)
        for slot, code in writes:
            mlp["W_out"][number, self.start[slot] + code] = 1


def composer(data):
    """Hop 1 in block 0 at r1 writes the bridge. Hop 2 in block 1 at r2 reads it."""
    world = data.world
    entities = world.n_entities
    slots = {"entity": entities, "relation": world.n_relations, "head": entities}
    slots |= {"tail": entities, "pos": data.n_ctx}
    made = _Drawing(data, slots, world.n_facts)
    made.embed(world)
    for layer, source in enumerate(("entity", "tail")):
        made.look_back(layer, [(source, "head", entities)])
        for fact, (head, relation, tail, _) in enumerate(zip(*world.facts, strict=True)):
            reads = [("head", head), ("relation", relation)]
            made.neuron(layer, fact, reads, [("tail", tail)])
    return made.model, jax.device_put(made.params)


def memoriser(data):
    """A model that looks up the chain from a code of its prefix.

    Block 0 writes a code of the prefix at r1, and a code of the bridge that nothing reads. Block 1
    looks up (prefix, r2), for training chains only.
    """
    world, truth = data.world, data.truth
    chains = np.flatnonzero(truth["fact2"][: data.n_train] >= 0)
    slots = {"entity": world.n_entities, "relation": world.n_relations, "head": world.n_entities}
    slots |= {"prefix": world.n_facts, "seen": world.n_facts, "pos": data.n_ctx}
    slots["tail"] = world.n_entities
    made = _Drawing(data, slots, max(world.n_facts, len(chains)))
    made.embed(world)
    made.look_back(0, [("entity", "head", world.n_entities)])
    for fact, (head, relation, tail, _) in enumerate(zip(*world.facts, strict=True)):
        reads = [("head", head), ("relation", relation)]
        made.neuron(0, fact, reads, [("prefix", fact), ("tail", tail)])
    made.look_back(1, [("prefix", "seen", world.n_facts)])
    for number, row in enumerate(chains):
        reads = [("seen", truth["fact1"][row]), ("relation", truth["r2"][row])]
        made.neuron(1, number, reads, [("tail", truth["answer"][row])])
    return made.model, jax.device_put(made.params)


def answers(model, params, tokens):
    return np.asarray(jax.jit(model.forward)(params, tokens)[0][:, -1].argmax(-1))
