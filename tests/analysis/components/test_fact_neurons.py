"""Both hops share neurons where a planted model has one store, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import describe
from implicit_reasoning.analysis.components import fact_neurons
from implicit_reasoning.analysis.components.agreement import spearman
from implicit_reasoning.analysis.components.fact_chains import choose_facts
from implicit_reasoning.analysis.components.fact_neurons import FactNeurons
from implicit_reasoning.analysis.components.neuron_importance import NeuronImportance
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.analysis.truth.known import small_world
from tests.analysis.planted_subject import planted_model

SMALL = {"n_entities": 28, "n_relations": 6, "out_degree": 6, "phi": 4.0}
MOST = 28  # facts


@pytest.fixture(scope="module")
def dataset():
    return small_world(**SMALL)


def test_each_chain_of_a_fact_begins_or_ends_with_it(dataset):
    chosen, truth = choose_facts(dataset, 20), dataset.truth
    assert len(chosen.facts) == 20 == len(np.unique(chosen.facts))
    assert chosen.there[:, :, :, 0].all()
    for hop, name in enumerate(("fact1", "fact2")):
        rows = chosen.rows[:, hop]
        np.testing.assert_array_equal(
            truth[name][rows], np.broadcast_to(chosen.facts[:, None, None], rows.shape)
        )
        bridges = np.broadcast_to(chosen.bridges[hop][:, None, None], rows.shape)
        np.testing.assert_array_equal(truth["e2"][rows], bridges)
        other = ("fact2", "fact1")[hop]
        for one, there in zip(rows, chosen.there[:, hop], strict=True):
            others = truth[other][one[there]]
            assert len(np.unique(others)) == len(others)
    # The facts have different bridges as far as possible.
    assert len(np.unique(chosen.bridges[0])) >= 15


def result_of(name, dataset):
    known = planted_model(name, dataset, dataset.splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fact_neurons, "_MAX_FACTS", MOST)
        result = measure(FactNeurons(), known.subject, progress=False)
    return result.isel(step=0, drop=True), known


@pytest.fixture(scope="module")
def composed(dataset):
    return result_of("composer", dataset)


@pytest.fixture(scope="module")
def looped(dataset):
    return result_of("shared_store", dataset)


@pytest.mark.slow
def test_one_neuron_carries_a_fact_and_both_hops_share_it_only_in_one_store(composed, looped):
    for (result, _), shared in ((composed, 0), (looped, 1)):
        of = result.isel(group=0)
        assert (of.usable == 1).all() and (of.found == 1).all()
        assert (of.needed == 1).all()
        assert (of.broken.sel(set="own", count=1) == 1).all()
        assert (of.broken.sel(set="of another fact", count=1) < 0.1).all()
        assert (of.broken.sel(set="random", count=1) < 0.1).all()
        assert (of.overlap == shared).all() and (of.null_overlap < 0.05).all()
        assert (of.overlap_by_count.sel(count=1) == shared).all()
        assert (of.chance_overlap < 0.02).all()


@pytest.mark.slow
def test_parts_are_named_and_nothing_else(composed, looped, dataset):
    for result, known in (composed, looped):
        claims = FactNeurons().claims(result)
        words = describe(claims, known.mechanism)
        assert words["false"] == [] and len(words["true"]) == len(claims) > 40


@pytest.mark.slow
def test_a_neuron_that_another_route_replaces_is_not_named(composed):
    """If ablated neurons break few answers, or those of all facts, there is no claim."""
    result, _ = composed
    rarely = result.assign(alone_low=result.alone_low * 0 + 0.5)
    assert FactNeurons().claims(rarely) == set()
    everywhere = result.assign(alone_elsewhere_high=result.alone_elsewhere_high * 0 + 0.5)
    assert FactNeurons().claims(everywhere) == set()


@pytest.mark.slow
def test_figures_are_drawn_with_their_nulls(composed):
    result = composed[0].expand_dims(step=[0])
    figures = FactNeurons().figures(result)
    assert [one.name for one in figures] == ["fact_neurons", "fact_neurons_overlap"]
    assert all("null" in one.caption for one in figures)


def test_spearman_is_that_of_scipy():
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    one, other = jnp.asarray(random.normal(size=(2, 3, 20)).round(1))  # rounded values have ties
    correlation = jax.jit(spearman)
    found = correlation(one, other)
    wanted = [spearmanr(*pair).statistic for pair in zip(one, other, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert float(correlation(one * 0, other)[0]) == 0


@pytest.mark.slow
def test_the_direct_estimate_finds_the_neurons_of_the_last_hop_only(dataset):
    """A composer looks up the last hop at the last position, and the first hop before it."""
    known = planted_model("composer", dataset, dataset.splits)
    result = measure(NeuronImportance(), known.subject, progress=False)
    of = result.isel(step=0)
    assert (of.correct == 1).all()
    first, last = (of.effect.sel(block=block, place="all positions") for block in (0, 2))
    assert float(first.max()) > 0.1 and float(last.max()) > 0.1
    # Block 0 is active at r1, so it has no effect through the last position.
    assert float(np.abs(of.effect.sel(block=0, place="last position")).max()) < 1e-3
    assert (
        of.top_share.sel(block=2, place="last position")
        > of.null_top_share.sel(block=2, place="last position")
    ).all()
    figures = NeuronImportance().figures(result)
    assert [one.name for one in figures] == ["neuron_importance", "neuron_agreement"]
