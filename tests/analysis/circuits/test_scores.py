"""Estimates of edge scores agree with exact patching where they must, and with each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import scores
from implicit_reasoning.model import Edit, Spec, Transformer, set_to
from implicit_reasoning.model.gradients import site_gradients
from implicit_reasoning.model.graph import EdgeGraph, forward_edges, receiver_sites, sender_sites
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled, tokens_for

SPEC = Spec(d_vocab=13, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=12)
MODEL, GRAPH = Transformer(SPEC), EdgeGraph(SPEC, 3)
CLEAN = tokens_for(SPEC, rows=2)
CORRUPT = (CLEAN + 3) % SPEC.d_vocab
SMALL = 1e-3
SLOW = "EAP-IG activations"  # it has a gradient for each group of senders


def metric(logits):
    return logits[:, 4] - 2 * logits[:, 7]


@functools.cache
def params():
    return jax.tree.map(lambda x: 2 * x, filled(MODEL))


@functools.cache
def found():
    """Return all scores, and the metric of both runs, from one program."""

    def run(params):
        runs = scores.two_runs(MODEL, params, CLEAN, CORRUPT)
        arguments = MODEL, params, GRAPH, runs, metric
        fine = {"EAP-IG inputs": {"nodes": 64}}
        of = {
            name: estimate(*arguments, **fine.get(name, {}))
            for name, estimate in scores.ESTIMATES.items()
            if name != SLOW
        }

        def patched(share):
            near = runs._replace(other=runs.own + share * runs.change)
            return scores.exact(MODEL, params, GRAPH, near, metric)

        exact, near = jax.lax.map(patched, jnp.array([1, SMALL]))
        at_clean, half = (
            scores.mask_gradients(*arguments, points=np.full(1, share)) for share in (0.0, 0.5)
        )
        difference = [
            metric(forward_at(MODEL, params, tokens)[0][:, 0]) for tokens in (CLEAN, CORRUPT)
        ]
        return of | {
            "exact": exact,
            "together": scores.exact(*arguments, by_position=False),
            "near": near,
            "at clean": at_clean,
            "half": half,
            "other": runs.other,
            "difference": difference[1] - difference[0],
        }

    return jax.device_get(jax.jit(run)(params()))


@functools.cache
def slow_estimate():
    def run(params):
        runs = scores.two_runs(MODEL, params, CLEAN, CORRUPT)
        return scores.ESTIMATES[SLOW](MODEL, params, GRAPH, runs, metric)

    return jax.device_get(jax.jit(run)(params()))


def test_eap_is_the_slope_of_exact_scores():
    slope, eap = found()["near"] / SMALL, found()["EAP"]
    assert np.abs(eap).max() > 1
    np.testing.assert_allclose(eap, slope, atol=0.05 * np.abs(slope).max())
    assert np.abs(eap - found()["exact"]).max() > 0.1 * np.abs(eap).max()


def test_eap_is_the_gradient_of_the_mask_in_the_clean_run():
    eap = found()["EAP"]
    np.testing.assert_allclose(eap, found()["at clean"], atol=1e-4 * np.abs(eap).max())
    assert np.abs(eap - found()["mask gradients"]).max() > 0.05 * np.abs(eap).max()


def test_mask_gradients_agree_with_differences():
    """All masks are at one half, and the mask of one edge changes."""
    edges = ["input->a0.h1<v>", "m0->a1.h0<k>", "a1.h1->m1", "m0->logits"]
    index, pos, step = [GRAPH.index(edge) for edge in edges], SPEC.n_ctx - 1, 0.02
    live = np.full((2 * len(edges), len(GRAPH.edges), SPEC.n_ctx), 0.5, np.float32)
    for number, edge in enumerate(index):
        live[2 * number : 2 * number + 2, edge, pos] += -step, step

    @jax.jit
    def metrics(params):
        def of_mask(mask):
            arguments = params, CLEAN, GRAPH, mask, jnp.asarray(found()["other"])
            return metric(forward_edges(MODEL, *arguments)[0][:, 0])

        return jax.lax.map(of_mask, live)

    less, more = np.asarray(metrics(params())).reshape(len(edges), 2, -1).transpose(1, 0, 2)
    wanted = (less - more) / (2 * step)  # the score is for a change towards the other run
    assert np.abs(wanted).max() > 0.05
    np.testing.assert_allclose(found()["half"][index, pos], wanted, atol=1e-3)


def test_integrated_gradients_of_the_embeddings_are_complete():
    """The edges that leave the embeddings carry the whole difference between the two runs."""
    whole = found()["EAP-IG inputs"][GRAPH.sender == 0].sum((0, 1))
    assert np.abs(found()["difference"]).min() > 0.3
    np.testing.assert_allclose(whole, found()["difference"], rtol=2e-3)


@pytest.mark.slow
def test_activations_move_one_group_at_a_time():
    """A loop over groups and nodes, with plain edits, gives the same averages."""
    runs = scores.two_runs(MODEL, params(), CLEAN, CORRUPT)
    sites, nodes = sender_sites(MODEL), 2
    run = functools.partial(forward_at, MODEL, params(), CLEAN)
    _, clean = run(sites=sites)
    _, corrupt = forward_at(MODEL, params(), CORRUPT, sites=sites)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(site, value):
        edits = {site: Edit(set_to, value)}
        return site_gradients(
            run, lambda logits: metric(logits[:, 0]), receiver_sites(MODEL), before=edits
        ).gradients

    mean = {site: 0.0 for site in receiver_sites(MODEL)}
    for site in sites:
        for root in np.polynomial.legendre.leggauss(nodes)[0]:
            point = clean[site] + np.float32((root + 1) / 2) * (corrupt[site] - clean[site])
            here = gradients(site, point)
            mean = {name: mean[name] + here[name] / (nodes * len(sites)) for name in mean}
    wanted = scores.edge_products(MODEL, GRAPH, runs.change, mean)
    arguments = MODEL, params(), GRAPH, runs, metric
    got = jax.jit(lambda: scores.eap_ig_activations(*arguments, nodes=nodes))()
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == SLOW else ())
        for name in ("exact", *scores.ESTIMATES)
    ],
)
def test_edges_that_are_not_alive_have_no_score(name):
    """RelP holds attention patterns constant, so it gives queries and keys no score."""
    values = slow_estimate() if name == SLOW else found()[name]
    assert (values[~GRAPH.alive] == 0).all()
    pattern = np.array([edge.receiver.endswith(("<q>", "<k>")) for edge in GRAPH.edges])
    scored = GRAPH.alive & ~pattern[:, None] if name == "RelP" else GRAPH.alive
    assert (values[scored] != 0).all()
    assert name != "RelP" or (values[pattern] == 0).all()


def test_into_the_logits_positions_make_no_difference():
    """These edges have one position, so patching it or all positions is the same run."""
    last = [edge.receiver == "logits" for edge in GRAPH.edges]
    np.testing.assert_allclose(found()["exact"][last, -1], found()["together"][last, 0], atol=1e-5)
    assert np.abs(found()["exact"].sum(1) - found()["together"][:, 0]).max() > 0.01


def test_relevance_is_exact_where_the_model_is_linear():
    """Without norms, edges into the logits act linearly, so all estimates equal exact patching."""
    spec = Spec(**{**vars(SPEC), "normalization": "none", "n_layers": 1})
    model, graph = Transformer(spec), EdgeGraph(spec, 3)

    def run(params):
        runs = scores.two_runs(model, params, CLEAN, CORRUPT)
        arguments = model, params, graph, runs, metric
        return scores.exact(*arguments), scores.relp(*arguments), scores.eap(*arguments)

    exact, relp, eap = jax.jit(run)(filled(model))
    last = np.array([edge.receiver == "logits" for edge in graph.edges])
    for estimate in (relp, eap):
        np.testing.assert_allclose(estimate[last], exact[last], atol=1e-4)
        assert jnp.abs(estimate - exact)[~last].max() > 1e-3
