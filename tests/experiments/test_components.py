"""What the study of components keeps of a run, and what its decision rules say."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.patching.pairs import bridge_pairs
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.worlds import build
from tests.experiments.scripts import load

study, rules, at = load("components"), load("components_rules"), load("stages")
tables, results = load("components_tables"), load("reasoning_or_shortcut_arms")
pairs_of, figures = load("components_pairs"), load("components_figures")
KEPT = Path("results/components")
WORLDS = np.array([0, 1, 2, 3] * 2)
NOISE = np.linspace(-0.01, 0.01, 8)


def arm(node, part, *, half=100.0, worlds=WORLDS):
    """Return an arm with one instrument's results; all runs have the same stages."""
    reached = np.tile([0.0, half, half, 200.0], (len(worlds), 1))
    stages = xr.Dataset({"reached": (("run", "stage"), reached)}, {"stage": list(rules.STAGES)})
    return results.Arm({node: part, "stages": stages}, worlds, worlds * 0)


def outputs(dims, coords, n=30.0, width=0.02, **values):
    """Return outputs with intervals of a fixed width, [run, *dims]."""
    found = {}
    for name, value in values.items():
        shape = (8, *(len(coords[dim]) for dim in dims))
        mean = np.broadcast_to(value, shape) + NOISE.reshape(8, *[1] * len(dims))
        for end, shift in (("", 0), ("_low", -width), ("_high", width)):
            found[f"{name}{end}"] = ("run", *dims), mean + shift
        found[f"{name}_n"] = ("run", *dims), np.full(shape, n)
    return xr.Dataset(found, coords)


def test_the_widest_gap_gets_a_checkpoint():
    saved = [0, 1, 4, 16, 100, 225, 400, 900]
    assert at.fill_gaps(saved, {0, 900}, 3) == [0, 225, 900]
    assert at.fill_gaps(saved, {0, 900}, 4) == [0, 100, 225, 900]
    assert at.fill_gaps(saved, {0, 900}, 10) == saved


def test_digits_that_count_are_kept():
    values = xr.Dataset(
        {"x": ("i", [123456.0, 0.000123456, 0.0, np.nan]), "n": ("i", [1, 2, 3, 4])}
    )
    found = study.significant(values)
    np.testing.assert_allclose(found["x"], [123500, 0.0001235, 0, np.nan], rtol=1e-6)
    assert found["n"].dtype.kind == "i"


def test_half_times_are_interpolated_on_the_scale_of_the_logarithm():
    steps = np.array([0, 9, 99, 999])
    assert rules.half_time(steps, np.array([0, 0, 1, 1.0])) == pytest.approx(10**1.5 - 1)
    assert rules.half_time(steps, np.array([0.6, 0.8, 0.9, 1.0])) == pytest.approx(9)
    assert np.isnan(rules.half_time(steps, np.zeros(4)))


STEPS = np.array([0, 50, 100, 150, 200])


def heads(rise, accuracy, drop, strength=0.9):
    """Return an arm with a head whose attention rises at some step, and another idle head."""
    coords = {
        "group": ["test_repeated"],
        "target": ["previous token", "induction"],
        "step": STEPS,
        "block": [0, 1],
        "head": [0, 1],
    }
    attention = np.full((1, 2, 5, 2, 2), 0.1)
    attention[0, 0, 1:, 0, 0] = 0.8
    attention[0, 1, rise:, 1, 1] = strength
    dims = tuple(coords)
    part = outputs(dims, coords, attention=attention, other_keys=np.full(attention.shape, 0.05))
    curves = {name: coords[name] for name in ("group", "step")}
    values = {
        "correct": (np.arange(5) >= accuracy)[None] * 0.9,
        "loss": 4.0 - 3.0 * (np.arange(5) >= drop)[None],
    }
    part = part.merge(outputs(("group", "step"), curves, **values))
    return arm("head_scores", part)


def test_the_induction_bump():
    found = rules.bump(heads(2, 2, 2))
    assert found.head.tolist() == [[1, 1]] * 8 and found.is_induction.all()
    answers = [found.together, found.loss_drops, found.previous_first]
    assert [one.answer for one in answers] == ["yes"] * 3
    assert rules.bump(heads(4, 1, 4)).together.answer == "no"
    assert rules.bump(heads(1, 1, 4)).loss_drops.answer == "no"
    weak = rules.bump(heads(2, 2, 2, strength=0.4))
    assert not weak.is_induction.any() and weak.together.answer == "no"
    one = rules.bump(results.Arm(heads(2, 2, 2).parts, WORLDS, WORLDS))
    assert str(one.together) == "8 of 8: yes"


@pytest.mark.parametrize(
    ("own", "null", "said"),
    [
        (0.7, 0.1, "one store"),
        (0.3, 0.1, "in part"),
        (0.1, 0.1, "separate"),
    ],
)
def test_the_overlap_of_both_hops_and_its_null(own, null, said):
    coords = {"group": ["facts"], "count": [32, 64, 128], "step": [0, 100, 200]}
    values = np.array([0.9, own, 0.9])[None, :, None]
    part = outputs(tuple(coords), coords, overlap_by_count=values)
    nulls = outputs(tuple(coords), coords, null_overlap_by_count=null)
    noise = {name: part.transpose("run", ...) for name, part in nulls.items()}
    if said == "separate":  # the differences of the runs have both signs
        noise = {name: value - 2 * (value - null) for name, value in noise.items()}
        noise["null_overlap_by_count_n"] = nulls["null_overlap_by_count_n"]
    one = arm("fact_neurons", part.merge(noise))
    assert rules.overlap(one, "end")[2] == said
    few = arm(
        "fact_neurons", part.merge(noise).assign(overlap_by_count_n=part.overlap_by_count_n - 15)
    )
    assert rules.overlap(few, "end")[2] == "too few runs (0)"


@pytest.mark.parametrize(
    ("value", "said"), [(0.95, "reliable"), (0.85, "open"), (0.5, "misleading")]
)
def test_the_reliability_of_an_estimate(value, said):
    coords = {
        "group": ["another bridge"],
        "estimator": ["patching", *rules.ESTIMATES],
        "kind": list(tables.KINDS),
        "ranked": ["effect", "size"],
        "step": [0, 100, 200],
    }
    values = np.full((1, 5, 3, 2, 3), 0.99)
    values[:, 1, 1, 0, 2] = value
    one = arm("attribution", outputs(tuple(coords), coords, agreement=values))
    assert rules.reliability(rules.agreement(one, "end", "AtP", "parts"), one) == said
    assert rules.reliability(rules.agreement(one, "half", "AtP", "parts"), one) == "reliable"
    assert rules.reliability(rules.agreement(one, "end", "AtP", "states"), one) == "reliable"


def claims(moves, part):
    """Return an arm whose runs claim from step 100 on that head (1, 0) moves e2 to the end."""
    coords = {"variable": list(study.MOVED), "step": [0, 100, 200], "block": [0, 1], "head": [0, 1]}
    moved, used = np.zeros((8, 5, 3, 2, 2)), np.zeros((8, 3, 2, 2))
    moved[:moves, 2, 1:, 1, 0] = 1
    used[:part, 1:, 1, 0] = 1
    used[part:, 1:, 0, 1] = 1  # a head that moves nothing
    data = {
        "moves": (("run", *coords), moved),
        "part": (("run", "step", "block", "head"), used),
    }
    return xr.Dataset(data, coords)


def test_movers_that_are_used_and_movers_that_are_not():
    found = rules.movers(arm("claims", claims(8, 8)))
    assert [one.answer for one in (found.bridge, found.used, found.before)] == ["yes"] * 3
    assert found.moved["e2"].answer == "yes" and found.moved["e1"].answer == "no"
    assert found.untrained == 0 and (found.first == 100).all()
    assert rules.movers(arm("claims", claims(8, 0))).used.answer == "no"
    assert rules.movers(arm("claims", claims(8, 4))).used.answer == "open"
    none = rules.movers(arm("claims", claims(0, 8)))
    assert none.bridge.answer == none.used.answer == none.before.answer == "no"
    assert rules.movers(arm("claims", claims(8, 8), half=50.0)).before.answer == "no"


def enriched(own, without_mlp, right):
    """Return an arm with the share of tails at S[1, e1], and that with the first MLP off."""
    coords = {
        "group": ["in chains"],
        "off": ["MLPs", "attention"],
        "n_off": [0, 1, 2],
        "whose": ["own", "another's"],
        "layer": [0, 1, 2],
        "step": [0, 100, 200],
    }
    shares = np.full((1, 2, 3, 2, 3, 3), 0.1)
    shares[:, :, 0, 0, 1] = own
    shares[:, :, 1:, 0, 1] = without_mlp
    chains = {name: coords[name] for name in ("group", "off", "n_off", "step")}
    answers = np.broadcast_to(np.array([0.9, right, right])[None, None, :, None], (1, 2, 3, 3))
    part = outputs(tuple(coords), coords, attributes=shares)
    return arm("enrichment", part.merge(outputs(tuple(chains), chains, chain_right=answers)))


def test_enrichment_at_e1():
    assert [one.answer for one in rules.enrichment(enriched(0.8, 0.1, 0.2))] == ["yes"] * 3
    assert [one.answer for one in rules.enrichment(enriched(0.8, 0.7, 0.9))] == ["yes", "no", "no"]
    assert [one.answer for one in rules.enrichment(enriched(0.11, 0.1, 0.2))] == ["no"] * 3


def code(restricted, other, excluded):
    """Return an arm with the accuracies of edited states; own answers come after the code."""
    states = ["own", "restricted", "excluded", "restricted, other bridge", "excluded, other bridge"]
    coords = {"group": ["train_ii", "test_ii", "test_c0"], "state": states, "step": [0, 100, 200]}
    values = np.zeros((3, 5, 3))
    values[:, :, 2] = np.array([0.9, restricted, excluded, other, 0.9])
    values[0, 1, 1] = restricted
    values[2, 0] = 0.1
    return arm("composition_progress", outputs(tuple(coords), coords, correct=values))


def test_answers_through_a_shared_code():
    found = rules.shared_code(code(0.95, 0.02, 0.05), "end")
    assert found.through.answer == found.needs.answer == "yes"
    assert rules.shared_code(code(0.95, 0.3, 0.05), "end").through.answer == "no"
    assert rules.shared_code(code(0.5, 0.02, 0.9), "end").needs.answer == "no"
    assert rules.circuit_first(code(0.95, 0, 0)).answer == "yes"
    assert rules.circuit_first(code(0.4, 0, 0)).answer == "no"
    np.testing.assert_allclose(rules.waiting(code(0.95, 0, 0)), 0.85)


def test_directions_are_compared_with_nulls_and_class_means():
    names = ["class mean", "LDA", *rules.NULLS]
    coords = {
        "direction": names,
        "cost": list(study.STEERING_COSTS),
        "end": ["mean", "low", "high"],
        "step": [0, 200],
        "group": ["relation in training"],
    }
    values = np.array([0.9, 0.6, 0.1, 0.02])[None, :, None, None, None, None]
    noise = NOISE.reshape(8, 1, 1, 1, 1, 1) * [[[[[0.5]]]]]
    shares = np.broadcast_to(values, (8, 4, 3, 3, 2, 1)) + noise
    part = xr.Dataset({"followed_at": (("run", *coords), shares)}, coords)
    one = arm("steering", part)
    found, null = rules.steered(one)
    assert list(found) == names[:2] and null == pytest.approx(0.1 + NOISE / 2)
    assert rules.steers(found["LDA"], null, one) == "yes"
    assert rules.steers(found["LDA"] - 0.3, null, one) == "no"
    assert rules.compared(found["class mean"], found["LDA"], one) == "beat"
    assert rules.compared(found["LDA"], found["class mean"], one) == "lose"
    assert rules.compared(found["LDA"], found["LDA"] - NOISE - 1e-3, one) == "open"


def test_pairs_of_modular_addition(addition_dataset):
    pairs = pairs_of.addition_pairs(addition_dataset)
    a, b, last = pairs.clean.T
    assert (pairs.answer == (a + b) % 7).all() and (last == 7).all()
    other, same, _ = pairs.corrupt.T
    assert (same == b).all() and (other != a).all()
    assert (pairs.corrupt_answer == (other + b) % 7).all()
    trained = {
        tuple(row[:3]) for row in addition_dataset.tokens[: addition_dataset.n_train].tolist()
    }
    is_trained = np.array([tuple(row) in trained for row in pairs.clean.tolist()])
    assert (is_trained == (np.asarray(pairs.group) == 0)).all() and 0 < is_trained.mean() < 1


def test_pairs_with_another_bridge():
    dataset = build(load("smoke").get_config().task)
    pairs, every = pairs_of.other_bridge_pairs(dataset), bridge_pairs(dataset)
    assert pairs.groups == every.groups[:1] and 0 < len(pairs) == (every.group == 0).sum()
    assert (pairs.answer != pairs.corrupt_answer).all() and len(pairs.clusters) == len(pairs)


@pytest.fixture
def addition_dataset():
    config = load_config("configs/modular_addition.py:pocket")
    return build(apply_overrides(config, {"task.modulus": 7}).task)


@pytest.mark.slow
def test_tables_and_figures_are_those_of_what_is_kept(tmp_path):
    arms = results.read_arms(KEPT)
    tables.write_tables(tmp_path, arms)
    for name in ("answers.md", "runs.md"):
        assert (tmp_path / name).read_text() == (KEPT / name).read_text()
    names = [path.stem for path in KEPT.glob("*.png")]
    few = {name: arms[name] for name in ("in_context_by_doubling", "ladder") if name in arms}
    drawn = {name for name in names if getattr(figures, f"draw_{name}")(few) is not None}
    assert "induction" in drawn and set(names) - drawn <= {"addition", "gradients"}
    assert all(getattr(figures, f"draw_{name}")({}) is None for name in names)
