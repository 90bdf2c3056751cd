"""Cross-query patching distinguishes a composer from a memoriser, and its pairs are correct."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.patching.cross_query_patching import CrossQueryPatching
from implicit_reasoning.analysis.patching.query_pairs import (
    BRIDGE,
    GROUPS,
    OOD,
    SAME,
    TRAINED,
    choose_pairs,
)
from implicit_reasoning.analysis.runner import Runner, measure
from tests.analysis.by_hand import answers, composer, dataset, memoriser


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def measured(data):
    """Return results of the composer, of the memoriser, and of random weights of their shapes."""
    found = {}
    for name, make in (("composer", composer), ("memoriser", memoriser)):
        model, params = make(data)
        checkpoints = [params, jax.jit(model.init)(jax.random.key(3))]
        result = measure(CrossQueryPatching(), InMemory(model, data, checkpoints), progress=False)
        found |= {name: result.isel(step=0), f"random {name}": result.isel(step=1)}
        found["both steps"] = result
    return found


def success(result, group, expected="true"):
    return result.fraction.sel(outcome="counterfactual", expected=expected, group=group)


def test_the_models_by_hand_do_what_they_should(data):
    chains = np.flatnonzero(data.truth["fact2"] >= 0)
    trained = chains < data.n_train
    right = {}
    for name, make in (("composer", composer), ("memoriser", memoriser)):
        model, params = make(data)
        right[name] = answers(model, params, data.tokens[chains]) == data.truth["answer"][chains]
    assert right["composer"].all() and right["memoriser"][trained].all()
    assert right["memoriser"][~trained].mean() < 0.3


@pytest.mark.slow
def test_a_composer_carries_the_bridge_in_a_grounded_code(measured):
    result = measured["composer"]
    assert CrossQueryPatching().claims(result) == {
        Claim("carried", "e2", 1, "r1"),
        Claim("factors", "e2"),
        Claim("grounded", "e2"),
    }
    for group in (BRIDGE, OOD, TRAINED):
        grid = success(result, group)
        assert grid.sel(layer=1, pos="r1") == 1
        # A state of any other place, patched alone, gives another answer or none.
        assert grid.sel(layer=0).max() < 0.3 and grid.sel(layer=2).max() < 0.3
    assert success(result, BRIDGE, "shuffled").max() < 0.3
    same = result.fraction.sel(outcome="clean answer", expected="true", group=SAME)
    assert same.sel(layer=1, pos="r1") == 1


@pytest.mark.slow
def test_graded_measures_are_those_of_the_same_answers(measured):
    result = measured["composer"]
    moved = result.sel(group=BRIDGE, layer=1, pos="r1")
    assert moved.logit_difference < 0 and moved.probability < 0.01 and moved.divergence > 5
    # Once r1 contains the bridge, a composer does not read the embedding at e1.
    kept = result.sel(group=BRIDGE, layer=1, pos="e1")
    np.testing.assert_allclose(kept.divergence, 0, atol=1e-5)
    assert kept.logit_difference > 0 and kept.probability > 0.99
    compared = result.logit_difference_n
    assert (compared.sel(group=SAME) == 0).all()  # there is no other answer to compare with
    assert (compared.sel(group=BRIDGE) == result.fraction_n.sel(group=BRIDGE).max()).all()


@pytest.mark.slow
def test_one_that_remembers_is_found_out(measured):
    result = measured["memoriser"]
    assert CrossQueryPatching().claims(result) == {Claim("memorised", "e2")}
    assert success(result, TRAINED).sel(layer=1, pos="r1") == 1  # it looks like composition here
    assert (success(result, BRIDGE).sel(layer=[1, 2]) == 0).all()
    assert success(result, BRIDGE).max() < 0.3  # exchanging a token sometimes makes a trained chain
    same = result.fraction.sel(outcome="clean answer", expected="true", group=SAME)
    assert same.sel(layer=1, pos="r1") == 0


@pytest.mark.slow
def test_nothing_is_said_of_random_weights(measured):
    for name in ("composer", "memoriser"):
        assert CrossQueryPatching().claims(measured[f"random {name}"]) == set()


def test_every_pair_is_what_its_group_says(data):
    pairs, world = choose_pairs(data), data.world
    source, target, composed = pairs.source, pairs.target, pairs.composed
    e1, r1, r2 = composed.parts.T
    assert (source.parts[:, :2] == composed.parts[:, :2]).all()  # the source's prefix,
    assert (target.parts[:, 2] == r2).all()  # and the target's last relation
    assert (world.tail[world.tail[e1, r1], r2] == composed.answer).all()
    assert target.trained.all() and (source.facts[:, 0] != target.facts[:, 0]).all()
    assert (source.answer != composed.answer).all() and (source.parts[:, 2] != r2).all()
    trained = {
        tuple(map(int, key))
        for key in np.stack([data.truth[n][: data.n_train] for n in ("e1", "r1", "r2")], 1)
    }
    inside = np.array([tuple(map(int, key)) in trained for key in composed.parts])
    of = {name: pairs.group == number for number, name in enumerate(GROUPS)}
    assert inside[of[TRAINED]].all() and not inside[~of[TRAINED]].any()
    same = world.tail[e1, r1] == world.tail[target.parts[:, 0], target.parts[:, 1]]
    assert same[of[SAME]].all() and not same[of[BRIDGE]].any()
    other_answer = composed.answer != target.answer
    assert other_answer[~of[SAME]].all() and not other_answer[of[SAME]].any()
    first_role = world.facts.role[composed.facts[:, 0]]
    assert (first_role[of[OOD]] == 1).all() and (first_role[~of[OOD]] == 0).all()
    assert all(which.sum() >= 10 for which in of.values())


def test_the_unit_is_the_sources_bridge(data):
    model, _ = composer(data)
    examples = CrossQueryPatching().examples(model, data)
    e1, r1 = examples.inputs["source"][:, :2].T
    bridges = data.world.tail[e1, r1 - data.world.n_entities]
    by_cluster = dict(zip(examples.clusters, bridges, strict=True))
    assert [by_cluster[c] for c in examples.clusters] == bridges.tolist()
    assert len(set(by_cluster.values())) == len(by_cluster)


@pytest.mark.slow
def test_one_program_for_all_cells_and_checkpoints(data):
    model, params = composer(data)
    runner = Runner(CrossQueryPatching(), model)
    subject = InMemory(model, data, [params] * 3)
    measure(CrossQueryPatching(), subject, progress=False, runner=runner)
    once = runner.traces
    measure(CrossQueryPatching(), subject, progress=False, runner=runner)
    assert runner.traces == once <= 2  # `lax.map` may trace its function twice


MUTATIONS = {
    "a layer late": (
        "implicit_reasoning.analysis.patching.grids.state",
        lambda real: lambda model, run, layer: real(model, run, min(layer + 1, model.spec.depth)),
    ),
    "trained chains": (
        "implicit_reasoning.analysis.queries.all_queries",
        lambda real: (
            lambda data: real(data)._replace(
                trained=~real(data).trained  # exchange absent and trained chains
            )
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_instrument_fails_on_the_models_by_hand(data, name, monkeypatch):
    path, change = MUTATIONS[name]
    module, attribute = path.rsplit(".", 1)
    real = getattr(__import__(module, fromlist=["x"]), attribute)
    monkeypatch.setattr(path, change(real))
    wanted = {
        composer: {
            Claim("carried", "e2", 1, "r1"),
            Claim("factors", "e2"),
            Claim("grounded", "e2"),
        },
        memoriser: {Claim("memorised", "e2")},
    }
    said = {}
    for make in wanted:
        model, params = make(data)
        result = measure(CrossQueryPatching(), InMemory(model, data, [params]), progress=False)
        said[make] = CrossQueryPatching().claims(result.isel(step=0))
    assert said != wanted
    # A memoriser has no code that prefixes share, but it knows the composed chains of training.
    assert (Claim("factors", "e2") in said[memoriser]) == (name == "trained chains")


@pytest.mark.slow
def test_figures_say_how_to_read_them(measured):
    (figure,) = CrossQueryPatching().figures(measured["both steps"])
    assert "null" in figure.caption
    figure.drawing.draw_without_rendering()


def test_it_says_where_it_makes_no_sense(data):
    model, _ = composer(data)
    with pytest.raises(NotApplicable, match="need probe rows that are training chains"):
        CrossQueryPatching().examples(model, dataset(phi=0))


def test_a_group_may_be_empty():
    pairs = choose_pairs(dataset(ood_fraction=0.0))
    assert (pairs.group != GROUPS.index(OOD)).all() and len(pairs.group) > 0


def test_the_choice_is_the_same_every_time(data):
    first, second = (choose_pairs(data) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
