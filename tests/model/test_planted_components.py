"""Planted models name their heads, neurons and edges; each is ablated, and so are all others.

The forward pass here is written by hand in numpy as a sum over the outputs of nodes, so that any
edge can be cut. It shares no code with the model or with the code that finds the circuits.
"""

import functools

import jax
import numpy as np
import pytest

from implicit_reasoning.model.planted import MECHANISMS
from implicit_reasoning.model.planted.circuit import is_attention_pattern
from implicit_reasoning.model.planted.routes import DEPTH
from implicit_reasoning.model.units import Edge, Fact, Head, Neuron
from tests.model.planted_audit import knowledge, prompts, run

SMALL = dict(n_entities=9, n_relations=3, out_degree=2)
FORMS = ("superposed_composer", "layer_norm_composer", "gelu_composer")  # `gpt2_composer` has all
# The others, of which each has programs of its own, are slow.
QUICK = ("composer", "memoriser")
MODELS = [
    pytest.param(name, seed, marks=pytest.mark.slow if seed is None or name not in QUICK else ())
    for name in MECHANISMS
    for seed in (None, 3)
]


def made(name, seed):
    """Return a model and its chains; models that go by chains know half of them."""
    half = name.endswith("memoriser") or name == "cluster_composer"
    known = knowledge(**SMALL, share=0.5 if half else 1.0)
    return MECHANISMS[name](known, seed), known


def normalized(spec, x):
    if spec.normalization == "none":
        return x
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + spec.eps)


def active(spec, x):
    """gelu in the approximation of GPT-2, or the rectified linear unit."""
    if spec.act_fn == "relu":
        return np.maximum(x, 0)
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(planted, tokens, cut=frozenset()):
    """Return logits at r2, and outputs of heads and neurons, without the units in `cut`."""
    params, spec = by_hand(planted), planted.model.spec
    edges = {(edge.sender, edge.receiver) for edge in cut if isinstance(edge, Edge)}
    heads = {(head.layer, head.head) for head in cut if isinstance(head, Head)}
    neurons = {(neuron.layer, neuron.index) for neuron in cut if isinstance(neuron, Neuron)}
    wrote = {"input": params["embed"]["W_E"][tokens] + params["pos_embed"]["W_pos"][:3]}
    total = wrote["input"]

    def read(receiver):
        cut_off = sum(wrote[sender] for sender, to in edges if to == receiver)
        return normalized(spec, total - cut_off)

    outputs, on = {}, {}
    later = np.triu(np.full((3, 3), -np.inf), 1)
    for layer in range(DEPTH):
        block = params["blocks"][str(layer % spec.n_layers)]
        attn, mlp = block["attn"], block["mlp"]
        found = []
        for head in range(len(attn["W_Q"])):
            q, k, v = (read(f"a{layer}.h{head}<{p}>") @ attn[f"W_{p.upper()}"][head] for p in "qkv")
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + later
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out = scores / scores.sum(-1, keepdims=True) @ v @ attn["W_O"][head]
            found.append(out * ((layer, head) not in heads))
        for head, out in enumerate(found):
            outputs[Head(layer, head)] = wrote[f"a{layer}.h{head}"] = out
            total = total + out
        post = active(spec, read(f"m{layer}") @ mlp["W_in"] + mlp["b_in"])
        for where, neuron in neurons:
            post[..., neuron] *= where != layer
        on[layer] = post
        wrote[f"m{layer}"] = post @ mlp["W_out"]
        total = total + wrote[f"m{layer}"]
    return (read("logits") @ params["unembed"]["W_U"])[:, 2], outputs, on


def clusters(prefix, e2, r2):
    """The bridge of a prefix that shares an r2 with another prefix of it; else a prefix number."""
    found = -1 - prefix
    for one, bridge, last in zip(prefix, e2, r2, strict=True):
        if ((prefix != one) & (e2 == bridge) & (r2 == last)).any():
            found[prefix == one] = bridge
    return found


def all_units(planted):
    blocks = planted.params["blocks"]
    n_heads, d_mlp = (blocks["0"]["attn"]["W_Q"].shape[0], blocks["0"]["mlp"]["W_in"].shape[1])
    heads = {Head(layer, head) for layer in range(DEPTH) for head in range(n_heads)}
    neurons = {Neuron(layer, neuron) for layer in range(DEPTH) for neuron in range(d_mlp)}
    order = ["input"]
    edges = set()
    for layer in range(DEPTH):
        block = [f"a{layer}.h{head}" for head in range(n_heads)]
        edges |= {Edge(s, f"{head}<{p}>") for s in order for head in block for p in "qkv"}
        edges |= {Edge(s, f"m{layer}") for s in order + block}
        order += [*block, f"m{layer}"]
    return heads | neurons | edges | {Edge(sender, "logits") for sender in order}


def needed(planted, known, cut=frozenset()):
    """Return the units without which some chain is answered wrongly; `cut` units are always
    missing.

    An answer counts if its logit exceeds all others, because entity 0 is the default.
    """
    tokens, answer = prompts(known, known.chains), known.chains[:, -1]

    def answered(cut):
        logits = forward(planted, tokens, cut)[0]
        right = logits[np.arange(len(answer)), answer]
        return (np.sort(logits)[:, -2] < right - 1).all() and (logits.argmax(-1) == answer).all()

    assert answered(cut)
    return {unit for unit in all_units(planted) if not answered(cut | {unit})}


@functools.lru_cache(maxsize=1)
def by_hand(planted):
    """Return parameters in float64 numpy, so that nothing depends on rounding."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), planted.params)


@pytest.mark.parametrize(("name", "seed"), MODELS)
def test_the_circuit_is_what_cannot_be_ablated_and_all_else_can(name, seed):
    planted, known = made(name, seed)
    if name != "parallel":
        [route] = planted.routes
        found = needed(planted, known)
        if planted.model.spec.normalization == "LN":
            assert all(is_attention_pattern(unit) for unit in found ^ route.units)
            return
        assert found == route.units
        return
    # Either route is sufficient alone, so each is tested where the other cannot answer.
    assert needed(planted, known) == set()
    for route, other in (planted.routes, planted.routes[::-1]):
        last = {n for n in other.neurons if Edge(f"m{n.layer}", "logits") in other.edges}
        last -= route.neurons
        assert needed(planted, known, frozenset(last)) == route.units


@pytest.mark.parametrize(("name", "seed"), MODELS)
def test_every_head_that_moves_and_every_neuron_that_stores_is_named_and_no_other(name, seed):
    planted, known = made(name, seed)
    e1, r1, e2, r2, _ = known.chains.T
    _, outputs, acts = forward(planted, prompts(known, known.chains))
    for head, out in outputs.items():
        # At the target, the output of a head depends on the prompt. Elsewhere it is below 1e-12.
        moves = any(np.ptp(out[:, pos], 0).max() > 0.1 for pos in (1, 2))
        assert moves == (head in planted.moves), head
    prefix = e1 * known.n_relations + r1
    values = dict(e1=e1, r1=r1, e2=e2, prefix=prefix, cluster=clusters(prefix, e2, r2))
    for head, variable in planted.moves.items():
        # The code determines one variable: exactly the prompts that share its value share the code.
        out = next(out for out in outputs[head].swapaxes(0, 1)[:0:-1] if np.ptp(out, 0).max() > 0.1)
        same = np.abs(out[:, None] - out).max(-1) < 1e-6
        np.testing.assert_array_equal(same, np.equal.outer(*[values[variable]] * 2))
    facts = {Fact(*fact) for fact in known.facts[:2].T.tolist()}
    assert {fact for fact in planted.stores.values() if isinstance(fact, Fact)} == facts
    for neuron, stored in planted.stores.items():
        on = acts[neuron.layer][:, :, neuron.index] > 1e-6
        if isinstance(stored, Fact):
            first = (e1 == stored.e1) & (r1 == stored.r1)
            second = (e2 == stored.e1) & (r2 == stored.r1)
            never = np.zeros_like(first)
            wanted = [np.stack([never, first, never], 1), np.stack([never, never, second], 1)]
            if name == "shared_store":  # In the second loop, a neuron is active at both hops.
                wanted.append(np.stack([never, first, second], 1))
            if name == "cluster_composer" and on[:, 2].any():
                # Only prefixes with the code of the neuron activate it.
                assert not (on & ~wanted[1]).any()
                # If the code is that of one prefix, one chain activates it, and it is open whether
                # the neuron stores this chain.
                lone = (values["cluster"][on[:, 2]] < 0).all()
                rows = [tuple(map(int, chain)) for chain in np.stack([e1, r1, r2], 1)[on[:, 2]]]
                claims = {("stores", f"chain {row}", neuron) for row in rows}
                assert claims & planted.open == (claims if lone else set())
                assert len(rows) == 1 or not lone
                continue
        else:
            hit = (e1 == stored[0]) & (r1 == stored[1]) & (r2 == stored[2])
            wanted = [np.stack([0 * hit, 0 * hit, hit], 1)]
        assert any((on == one).all() for one in wanted), neuron


def test_the_pass_by_hand_is_that_of_the_model():
    planted, known = made("idle_copy", 3)
    tokens = prompts(known, known.chains)
    np.testing.assert_allclose(
        forward(planted, tokens)[0], run(planted, tokens)[0][:, 2], atol=1e-4
    )


def test_the_layers_of_a_looped_model_have_the_same_weights():
    planted, known = made("shared_store", 3)
    spec = planted.model.spec
    assert (spec.n_layers, spec.n_loops, spec.depth) == (2, 2, DEPTH)
    first, second = (
        {n.index for n in planted.stores if n.layer == layer} for layer in stored(planted)
    )
    assert first == second == set(range(len(known.facts.T)))


def stored(planted):
    return sorted({neuron.layer for neuron in planted.stores})


def test_claims_say_the_same():
    """A head that copies an unused code moves it, but is not part of the circuit of chains."""
    planted, _ = made("idle_copy", 3)
    [route] = planted.routes
    parts = {unit for kind, _, unit in planted.true if kind == "part"}
    assert parts == route.units
    [idle] = set(planted.moves) - route.heads
    assert ("moves", "e2", idle) in planted.true and ("part", "answer", idle) not in planted.open
    both, _ = made("parallel", 3)
    assert not {kind for kind, _, _ in both.true} & {"part"}
    assert {unit for kind, _, unit in both.open if kind == "part"} == (
        both.routes[0].units | both.routes[1].units
    )


def test_layer_norm_leaves_both_claims_about_every_query_and_key_edge_open():
    """An ablation decides which of these edges are needed, so neither claim can be false."""
    planted, _ = made("layer_norm_composer", 3)
    of_edges = {unit for unit in all_units(planted) if is_attention_pattern(unit)}
    for kind in ("part", "idle"):
        assert {unit for one, _, unit in planted.open if one == kind} == of_edges
        assert not of_edges & {unit for one, _, unit in planted.true if one == kind}


@pytest.mark.parametrize("seed", [None, 3, 4])
def test_the_circuit_of_a_memoriser_has_no_head_of_its_bridge(seed):
    """The head copies e1 to r1 in the last block for atomic prompts; chains do not need it."""
    planted, _ = made("memoriser", seed)
    [route] = planted.routes
    [bridge] = set(planted.moves) - route.heads
    assert bridge.layer == DEPTH - 1 and sorted(planted.moves.values()) == ["e1", "e1", "r1"]
