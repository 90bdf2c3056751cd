"""What the study of circuits asks, and what its decision rules say."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.analysis.truth.known import planted_model, scored_world
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.runs.results import current_instrument
from implicit_reasoning.worlds import build
from tests.experiments.scripts import load

instruments, pairs_of = (
    load("circuit_formation_instruments"),
    load("circuit_formation_pairs").pairs_of,
)
rules, results = load("circuit_formation_rules"), load("reasoning_or_shortcut_arms")
components, study = load("components_rules"), load("circuit_formation")
checks = load("circuit_formation_checks")
WORLDS = np.array([0, 1, 2, 3] * 2)
STAGES = ("untrained", "memorised", "half", "end")
STEPS = [0, 100, 150, 200]


def arm(runs=8, **parts):
    """Return an arm whose runs were measured at all stages."""
    reached = np.tile(np.array(STEPS, float), (runs, 1))
    stages = xr.Dataset({"reached": (("run", "stage"), reached)}, {"stage": list(STAGES)})
    return results.Arm({**parts, "stages": stages}, WORLDS[:runs], np.arange(runs) // 4)


def routes_of(through, around, width=0.05):
    """Return results of `routes`, the same in every run; arguments are values by step."""
    values = np.array([through, around]).T[None, :, :, None, None]
    mean = np.broadcast_to(values, (8, 4, 2, 1, 1))
    dims = ("run", "step", "route", "cut", "group")
    ends = {"": 0, "_low": -width, "_high": width}
    arrays = {f"faithfulness{end}": (dims, mean + shift) for end, shift in ends.items()}
    arrays["n_states"] = ("run", "step", "group"), np.full((8, 4, 1), 30.0)
    names = {"route": ["through r1", "around r1"], "cut": ["own"], "group": ["train_ii"]}
    coords = {"step": STEPS, **names}
    return xr.Dataset(arrays, coords)


def estimates_of(n_edges=100):
    """Return results of `estimates` in which so many edges have a sender that differs."""
    change = np.zeros((8, 4, 1, 110, 2))
    change[..., :n_edges, 0] = 1
    dims = ("run", "step", "estimator", "edge", "pos")
    return xr.Dataset({"score": (dims, change)}, {"step": STEPS, "estimator": ["magnitude"]})


@pytest.mark.parametrize(
    ("task", "changes"),
    [("in_context", {}), ("indirect_object", {}), ("greater_than", {}), ("ladder", {})],
)
def test_the_prompts_of_a_pair_differ_in_one_token_and_in_the_answer(task, changes):
    dataset = build(apply_overrides(load_config(f"{task}:pocket"), changes).task)
    pairs = pairs_of(dataset)
    assert ((pairs.clean != pairs.corrupt).sum(1) == 1).all()
    assert (pairs.answer != pairs.corrupt_answer).all()
    assert {len(np.unique(pairs.group)), len(pairs.groups)} == {len(pairs.groups)}


def test_names_of_corrupt_prompts_are_answered_by_the_other_name():
    dataset = build(load_config("indirect_object:pocket").task)
    pairs = pairs_of(dataset)
    sides = (pairs.clean, pairs.answer), (pairs.corrupt, pairs.corrupt_answer)
    for (prompts, answers), (_, others) in zip(sides, sides[::-1], strict=True):
        for prompt, answer, other in zip(prompts, answers, others, strict=True):
            assert (prompt == answer).sum() == 1 and (prompt == other).sum() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mechanism", "through"), [("composer", True), ("prefix_memoriser", True), ("memoriser", False)]
)
def test_routes_of_planted_models(mechanism, through):
    dataset = scored_world(0)
    known = planted_model(mechanism, dataset, ("train_ii",))
    found = measure(instruments.Routes(), known.subject, progress=False).isel(step=0)
    faithful = found.faithfulness.sel(group="train_ii")
    own, null = (faithful.sel(cut=cut) for cut in instruments.CUTS)
    way, other = ("through r1", "around r1")[:: 1 if through else -1]
    assert float(own.sel(route=way)) > 0.99
    assert float(own.sel(route=other)) < 0.01
    assert float(null.sel(route=way)) < 0.9


@pytest.mark.slow
def test_the_circuit_of_a_composer_is_complete_and_needs_its_edges():
    """As many random edges are not the circuit."""
    known = planted_model("composer", scored_world(0), ("train_ii",))
    found = measure(checks.Checks(), known.subject, progress=False).isel(step=0)
    exact, random = (found.sel(order=name, removed=name) for name in checks.REMOVED)
    assert float(found.n_clusters) >= 5
    assert 4 <= float(found["size"]) <= 20
    assert float(exact.incompleteness) < 0.02
    assert float(random.incompleteness) > 0.5
    assert float(exact.needed) >= 0.6  # only some sizes are measured, so it has spare edges
    assert float(exact.needed) > float(random.needed) + 0.2
    assert float(exact.stability) > float(random.stability) + 0.2


def test_resamples_draw_whole_clusters():
    cluster, chosen = np.array([0, 0, 1, 2, 2, 3]), np.array([1, 1, 0, 1, 1, 1], bool)
    times = checks.resamples(cluster, chosen)
    assert (times[:, 0] == times[:, 1]).all() and (times[:, 3] == times[:, 4]).all()
    assert (times[:, 2] == 0).all()
    assert (times[:, [0, 3, 5]].sum(1) == 3).all()
    assert len(np.unique(times, axis=0)) > 1
    assert (checks.resamples(cluster, np.zeros(6, bool)) == 0).all()


def test_the_overlap_is_the_mean_over_pairs():
    circuits = np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool)
    assert float(checks.mean_overlap(circuits)) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


def test_a_circuit_is_complete_minimal_and_stable_by_its_numbers():
    part = xr.Dataset(
        {
            "size": (("run", "step"), np.full((8, 4), 40.0)),
            "incompleteness": (("run", "step", "order"), np.full((8, 4, 1), 0.05)),
            "needed": (("run", "step", "removed"), np.full((8, 4, 1), 0.8)),
            "stability": (("run", "step", "order"), np.full((8, 4, 1), 0.9)),
            "n_clusters": (("run", "step"), np.full((8, 4), 20.0)),
        },
        {"step": STEPS, "order": ["exact"], "removed": ["exact"]},
    )
    estimates = estimates_of()
    assert np.isnan(rules.checked(arm(checks=part, estimates=estimates), "needed", "EAP")).all()
    said = rules.checks(arm(checks=part, estimates=estimates))
    assert [one.answer for one in said] == ["yes", "no", "yes"]
    few = part.assign(n_clusters=part.n_clusters - 1)
    whole = part.assign(size=part["size"] + 60)  # a circuit of all edges that can matter
    for missing in (few, whole):
        said = rules.checks(arm(checks=missing, estimates=estimates))
        assert [one.answer for one in said] == ["no", "no", "no"]


def test_no_part_has_the_old_name_of_an_instrument():
    """Files are read with the present names of instruments, so such a part would be renamed."""
    assert [name for name in study.PARTS if current_instrument(name) != name] == []
    assert [name for name in study.CLASSES if current_instrument(name) != name] == []


def test_a_route_is_bypassed_or_remains():
    away = arm(routes=routes_of([0, 0.1, 0.5, 1], [0, 0.9, 0.5, 0.05]))
    stays = arm(routes=routes_of([0, 0.1, 0.1, 0.1], [0, 0.9, 0.9, 0.9]))
    size = xr.Dataset(
        {
            "faithfulness": (
                ("run", "step", "order", "size", "group"),
                np.broadcast_to(
                    np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1.0]])[
                        None, :, None, :, None
                    ],
                    (8, 4, 1, 4, 1),
                ),
            ),
            "n_states": (("run", "step", "group"), np.full((8, 4, 1), 30.0)),
        },
        {"step": STEPS, "order": [rules.EXACT], "size": [0, 10, 40, 100], "group": ["train_ii"]},
    )
    for one, bypassed, remains in ((away, "yes", "no"), (stays, "no", "yes")):
        one.parts["discovery"], one.parts["estimates"] = size, estimates_of()
        found = rules.memorizing(one)
        assert (found.bypassed.answer, found.remains.answer) == (bypassed, remains)
        assert found.size == "shrinks"
        np.testing.assert_allclose(found.log_ratio, np.log(10 / 40))
    assert rules.sparse(away).answer == "yes"
    np.testing.assert_array_equal(rules.smallest(size), [[np.nan, 40, 10, 10]] * 8)
    np.testing.assert_array_equal(rules.sizes(away, "memorised"), 40)


def test_only_a_route_that_is_there_forms_with_the_answers():
    """A noisy curve near 0 has a half-time, too."""
    curve = np.array([0, 0.1, 0.9, 1.0])
    steps = [0, 100, 140, 200]
    dims = ("run", "evaluation", "split")
    accuracy = np.broadcast_to(curve[None, :, None], (8, 4, 1))
    coords = {"evaluation": steps, "split": ["test_ii"]}
    training = xr.Dataset({"accuracy": (dims, accuracy)}, coords)
    for height, answers in ((1, "yes"), (0.02, "no")):
        routes = routes_of(height * curve, 0 * curve).assign_coords(step=steps)
        found = rules.formation(arm(routes=routes, training=training))
        said = (found.there.answer, found.with_answers.answer, found.suddenly.answer)
        assert said == (answers,) * 3
        np.testing.assert_allclose(found.half_times, found.answers)
    np.testing.assert_allclose(rules.answered(arm(training=training), "half"), 0.9)  # at step 140
    few = routes.assign(n_states=routes.n_states - 11)
    assert np.isnan(rules.formation(arm(routes=few, training=training)).half_times).all()


def test_random_cuts_differ_by_draw_and_cut_what_can_have_an_effect():
    graph = EdgeGraph(known_spec(), 3)
    own = instruments.through(graph, 1)
    draws = [instruments.like(graph, own, draw) for draw in range(2)]
    assert (draws[0] != draws[1]).any()
    for one in draws:
        assert (graph.alive & ~one).sum() == (graph.alive & ~own).sum()
        assert not (graph.alive & ~one)[graph.sender == 0, 1:].any()


def known_spec():
    return planted_model("composer", scored_world(0), ("train_ii",)).subject.model.spec


def test_a_taught_run_without_a_run_before_has_no_reference():
    dims = ("run", "step", "order", "size", "group")
    faithful = np.broadcast_to(np.array([0, 1.0, 1])[:, None], (8, 4, 1, 3, 1))
    rank = np.broadcast_to(np.arange(110.0)[:, None], (8, 4, 1, 110, 1))
    part = xr.Dataset(
        {
            "faithfulness": (dims, faithful),
            "rank": (("run", "step", "order", "edge", "pos"), rank),
            "n_states": (("run", "step", "group"), np.full((8, 4, 1), 30.0)),
        },
        {"step": STEPS, "order": [rules.EXACT], "size": [0, 10, 100], "group": ["train_ii"]},
    )
    taught = arm(discovery=part, estimates=estimates_of())
    index, reference, said = rules.fine_tuning(taught, arm(7, discovery=part))
    np.testing.assert_array_equal(index, np.ones(8))
    np.testing.assert_array_equal(reference, [1] * 7 + [np.nan])
    assert said == "too few runs (7)"


def test_a_rise_between_distant_checkpoints_says_nothing_about_its_speed():
    steps = np.array([0, 100, 140, 1_000])
    assert rules.rises_suddenly(steps, np.array([0, 0.1, 0.9, 1.0])) == 1
    assert rules.rises_suddenly(steps, np.array([0, 0.4, 0.6, 1.0])) == 0
    assert np.isnan(rules.rises_suddenly(steps, np.array([0, 0.0, 0.1, 1.0])))


def test_few_clusters_and_few_runs_give_no_answer():
    values = np.random.default_rng(0).random((8, 4, 3, 50, 2))
    values[:, :, 1] = 2 * values[:, :, 0]
    part = xr.Dataset(
        {
            "score": (("run", "step", "estimator", "edge", "pos"), values),
            "n_clusters": (("run", "step"), np.array([[32, 32, 32, 19.0]] * 8)),
        },
        {"step": STEPS, "estimator": ["exact", "EAP", "magnitude"]},
    )
    one = arm(estimates=part)
    np.testing.assert_allclose(rules.agreement(one, "half", "EAP"), 1)
    assert components.reliability(rules.agreement(one, "half", "EAP"), one) == "reliable"
    assert abs(rules.agreement(one, "half", "magnitude")).max() < 0.35
    assert np.isnan(rules.agreement(one, "end", "EAP")).all()
    assert components.reliability(rules.agreement(one, "end", "EAP"), one) == "too few runs (0)"
