"""Attribution graphs are exact in the local replacement model, for every kind of transcoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.truth.known import planted_model, scored_world
from implicit_reasoning.dictionaries.architectures import Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.attribution import attribute, node_kinds
from implicit_reasoning.dictionaries.graphs.exchange import graph_json, save_graph
from implicit_reasoning.dictionaries.graphs.influence import (
    graph_scores,
    influence,
    prune,
    share_through,
    shares,
)
from implicit_reasoning.dictionaries.replacement import (
    Replacement,
    frozen_edits,
    local_run,
    mlp_sites,
    reconstruct,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.model import Edit, Spec, Transformer
from implicit_reasoning.model.edits import set_to
from tests.dictionaries.graphs.replacements import drawn

SPEC = Spec(
    d_vocab=13,
    n_ctx=4,
    n_layers=3,
    d_model=16,
    n_heads=2,
    d_mlp=32,
    act_fn="gelu_new",
    init_std=0.3,
)
TOKENS = jnp.array([[1, 5, 9, 2], [4, 4, 12, 0]])
N_FEATURES, PLACES = 8, 96


def graphs_of(model, params, replacement, own, tokens, **options):
    """Return the graphs of some prompts."""
    return jax.jit(
        lambda params, own, tokens: attribute(
            model, params, replacement, own, tokens, **{"max_features": PLACES} | options
        )
    )(params, own, tokens)


def _through_skip(value, hooks, args, read):
    written, skip = args
    return written + jnp.einsum("bpi,oi->bpo", hooks.read(read), skip)


def frozen_targets(arguments, written, embed):
    """Return the pre-activations and logits of a model whose MLPs write given vectors."""
    model, params, replacement, own, graph = arguments
    weights = replacement.weights(own)
    edits = dict(frozen_edits(model, params, TOKENS)) | {"hook_embed": Edit(set_to, embed)}
    for layer, (read, write) in enumerate(zip(*replacement.sites, strict=True)):
        edits[write] = Edit(_through_skip, (written[:, :, layer], weights.skip[layer]), read)
    logits, values = model.forward(params, TOKENS, edits=edits, sites=replacement.sites.read)
    inputs = jnp.stack([values[site] for site in replacement.sites.read], 2)
    pre = jnp.einsum("bpld,ldf->bplf", inputs, weights.encoder) + weights.bias[None, None]
    batch = np.arange(len(TOKENS))[:, None]
    of_features = pre[batch, graph.pos, graph.layer, graph.feature]
    centred = logits[:, -1] - logits[:, -1].mean(-1, keepdims=True)
    return jnp.concatenate([of_features, jnp.take_along_axis(centred, graph.token, 1)], 1)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("transcoder", marks=pytest.mark.slow),
        pytest.param("skip", marks=pytest.mark.slow),
        "cross_layer",
    ],
)
def made(request):
    """Return a replacement model of one kind, its run, its graph and what its MLPs write."""
    model, params, replacement, own = drawn(request.param, SPEC, N_FEATURES)
    graph = graphs_of(model, params, replacement, own, TOKENS)

    @jax.jit
    def run(params, own):
        local = local_run(model, params, replacement, own, TOKENS)
        weights = replacement.weights(own)
        written = jnp.einsum("bplf,lfod->bpod", local.acts, weights.decoder)
        written += weights.constant[None, None] + local.error
        embed = model.forward(params, TOKENS, sites=("hook_embed",))[1]["hook_embed"]
        return local, weights, written, embed

    arguments = model, params, replacement, own, graph
    return arguments, *run(params, own)


def rows_of(graph):
    """Return the adjacency without logit columns, by target, [batch, target, source]."""
    n_logits = graph.token.shape[1]
    last = graph.adjacency.shape[1] - n_logits
    return jnp.concatenate(
        [graph.adjacency[:, :PLACES, :last], graph.adjacency[:, last:, :last]], 1
    )


def counted(graph):
    """Return which targets count."""
    return np.asarray(jnp.concatenate([graph.counts, graph.probability > 0], 1))


def test_the_replacement_model_is_the_model(made):
    (model, params, replacement, *_), local, weights, _, _ = made
    sites = replacement.sites

    @jax.jit
    def both(params, weights, local):
        _, values = model.forward(params, TOKENS, sites=sites.write)
        outputs = jnp.stack([values[site] for site in sites.write], 2)
        return reconstruct(weights, local.acts, local.inputs) + local.error, outputs

    whole, outputs = both(params, weights, local)
    np.testing.assert_allclose(whole, outputs, atol=2e-6)
    assert float(abs(local.error).mean()) > 0.01


def test_incoming_edges_and_the_constant_sum_to_the_target(made):
    arguments, _, weights, written, embed = made
    graph = arguments[-1]
    shape = written.shape
    nothing = jnp.broadcast_to(weights.constant[None, None], shape)
    targets = jax.jit(partial(frozen_targets, arguments))
    constant = targets(nothing, jnp.zeros_like(embed))
    total = targets(written, embed)
    there = counted(graph)
    total, summed, wanted = (
        np.where(there, x, 0) for x in (total, rows_of(graph).sum(-1) + constant, graph.total)
    )
    np.testing.assert_allclose(total, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(summed, wanted, rtol=1e-5, atol=1e-4)
    assert abs(wanted).max() > 0.5 and (graph.n_active <= PLACES).all()


def test_doubling_a_feature_moves_every_target_as_its_edges_say(made):
    arguments, _, weights, written, embed = made
    graph = arguments[-1]
    targets = jax.jit(partial(frozen_targets, arguments))
    before = targets(written, embed)
    tried = 0
    for place in range(0, PLACES, 9):
        rows = weights.decoder[graph.layer[:, place], graph.feature[:, place]]
        more = graph.activation[:, place, None, None] * rows
        moved = written.at[np.arange(len(TOKENS)), graph.pos[:, place]].add(more)
        change = targets(moved, embed) - before
        there = counted(graph) & np.asarray(graph.counts[:, place, None])
        predicted = rows_of(graph)[:, :, place]
        change, predicted = (np.where(there, x, 0) for x in (change, predicted))
        np.testing.assert_allclose(change, predicted, rtol=1e-5, atol=1e-4)
        tried += np.count_nonzero(abs(predicted) > 1e-2)
    assert tried > 20


def test_too_many_active_features_are_counted_and_the_strongest_are_nodes(made):
    (model, params, replacement, own, graph), local, weights, _, _ = made
    few = graphs_of(model, params, replacement, own, TOKENS, max_features=3)
    assert (few.n_active == graph.n_active).all() and (few.n_active > 3).all()
    norms = jnp.sqrt((weights.decoder**2).sum((-2, -1)))
    strongest = jnp.sort((local.acts * norms[None, None]).reshape(2, -1), 1)[:, -3:]
    kept = few.activation * norms[few.layer, few.feature]
    np.testing.assert_allclose(jnp.sort(kept, 1), strongest, rtol=1e-6)


def planted_graphs(mechanism, n_rows):
    """Return rows of test_ii, and the graphs of a planted model whose neurons are the features."""
    dataset = scored_world(0)
    known = planted_model(mechanism, dataset, dataset.splits)
    model = known.subject.model
    params = jax.tree.map(lambda x: x[0], known.subject.params(known.subject.steps))
    spec = model.spec
    mlps = [params["blocks"][str(layer)]["mlp"] for layer in range(spec.depth)]
    own = [
        {"W_enc": w["W_in"], "b_enc": w["b_in"], "W_dec": w["W_out"], "b_dec": w["b_out"]}
        for w in mlps
    ]
    neurons = InferenceDictionary(Transcoder(spec.d_model, spec.d_model, spec.d_mlp), "standard")
    replacement = Replacement((neurons,) * spec.depth, mlp_sites(model))
    rows = dataset.rows("test_ii")[:n_rows]
    tokens = jnp.asarray(dataset.tokens[rows][:, :3])
    return dataset, rows, graphs_of(model, params, replacement, own, tokens), spec.depth


@pytest.mark.slow
@pytest.mark.parametrize(
    "mechanism", ["composer", pytest.param("memoriser", marks=pytest.mark.slow)]
)
def test_neurons_of_a_planted_model_are_exact_transcoders(mechanism, tmp_path):
    dataset, rows, graphs, depth = planted_graphs(mechanism, 4)
    for place, row in enumerate(rows):
        graph = jax.tree.map(lambda x, place=place: x[place], graphs)
        kinds = node_kinds(graph, 3, depth)
        normalized = shares(graph.adjacency)
        found = influence(normalized, kinds.weights)
        scores = graph_scores(normalized, found, kinds.weights, kinds.error, kinds.token)
        np.testing.assert_allclose(scores, 1, atol=1e-5)
        assert graph.token[0] == dataset.truth["answer"][row]
        kept = prune(graph.adjacency, kinds.weights, kinds.feature, kinds.always)
        used = [
            (int(graph.layer[f]), int(graph.pos[f])) for f in np.flatnonzero(kept.node[:PLACES])
        ]
        # e1 and r1 act through features at r1 in the composer only, where the bridge is.
        sources = kinds.token & (jnp.cumsum(kinds.token) <= 2)
        bridge = kinds.feature & (jnp.pad(graph.pos, (0, len(kinds.weights) - PLACES)) == 1)
        share = share_through(normalized, kinds.weights, sources, bridge)
        np.testing.assert_allclose(share, {"composer": 1, "memoriser": 0}[mechanism], atol=1e-5)
        # The composer looks the bridge up at r1, and then the answer at r2.
        assert used == {"composer": [(0, 1), (2, 2)], "memoriser": [(1, 2)]}[mechanism]
        check_file(tmp_path, graph, dataset, row, depth, used)


def check_file(folder, graph, dataset, row, depth, used):
    """Check the file of a graph, and that a second graph of a name replaces the first."""
    tokens = dataset.tokens[row][:3].tolist()
    names = [f"t{token}" for token in range(dataset.n_vocab)]
    label = {(int(graph.layer[0]), int(graph.feature[0])): "the first"}
    about = {"tokens": tokens, "names": names, "n_layers": depth}
    for _ in range(2):
        save_graph(folder, graph_json("a-chain", graph, **about, labels=label))
    assert [one["slug"] for one in read_json(folder / "graph-metadata.json")["graphs"]] == [
        "a-chain"
    ]
    made = read_json(folder / "a-chain.json")
    of_kind = {}
    for node in made["nodes"]:
        of_kind.setdefault(node["feature_type"], []).append(node)
    features = of_kind["cross layer transcoder"]
    assert [(int(node["layer"]), node["ctx_idx"]) for node in features] == used
    assert features[0]["clerp"] == "the first"
    assert [node["node_id"] for node in of_kind["embedding"]] == [
        f"E_{token}_{pos}" for pos, token in enumerate(tokens)
    ]
    [logit] = of_kind["logit"]
    assert logit["clerp"].startswith(f'Output "t{dataset.truth["answer"][row]}"')
    named = {node["node_id"] for node in made["nodes"]}
    assert made["links"] and all({e["source"], e["target"]} <= named for e in made["links"])
    assert made["metadata"]["prompt_tokens"] == [f"t{token}" for token in tokens]
    with pytest.raises(InputError, match="slug is 'a/b'"):
        graph_json("a/b", graph, **about)


def test_what_no_graph_can_be_made_of_is_refused():
    sites = mlp_sites(Transformer(SPEC))
    plain = InferenceDictionary(Transcoder(16, 16, 8), "standard")
    with pytest.raises(InputError, match="3 sites for 2 layers"):
        Replacement((plain,) * 2, sites)
    with pytest.raises(InputError, match="same number of features, got 8, 9"):
        Replacement((plain, plain, InferenceDictionary(Transcoder(16, 16, 9), "standard")), sites)
    with pytest.raises(InputError, match="gated transcoders have two"):
        Replacement((InferenceDictionary(Transcoder(16, 16, 8), "gated"),) * 3, sites)
