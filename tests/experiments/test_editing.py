"""What the study of edits measures, and what its decision rules say."""

import jax
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.editing.knowledge_editing import (
    MEMIT,
    NULLS,
    RANDOM,
    ROME,
    STATE,
)
from implicit_reasoning.analysis.editing.scores import SCORES, Case
from implicit_reasoning.runs.results import current_instrument
from implicit_reasoning.statistics import clopper_pearson
from implicit_reasoning.worlds import ROLES
from tests.analysis.planted_subject import dataset, known
from tests.experiments.scripts import load

study, rules, tables = load("editing"), load("editing_rules"), load("editing_tables")
instruments, places = load("editing_instruments"), load("editing_places")
figures = load("editing_figures")
results = load("reasoning_or_shortcut_arms")
WORLDS, INITS = np.array([0, 1, 2, 3] * 2), np.repeat([0, 1], 4)
STEPS = [0, 100, 150, 200]
STAGES = ("untrained", "memorised", "half", "end")
EDITORS = (*NULLS, ROME, STATE, MEMIT)
N_EDITS = 60
PLACES, COUNTS = ("0 e1", "0 r1", "1 r1"), (1, 2, 32)


def shares(runs, **scores):
    """Return results of `Edits`: scores of rome by name, which random changes do not have.

    A value is a number, or one value for each of the three stages. A score that is not named is 0.
    """
    dims = ("run", "step", "group", "editor", "score")
    values = np.zeros((runs, 3, 3, len(EDITORS), len(SCORES)))
    for name, value in scores.items():
        place = list(SCORES).index(name.replace("_", " "))
        values[..., EDITORS.index(ROME), place] = np.broadcast_to(value, (3,))[None, :, None]
    for editor in (STATE, MEMIT):
        values[..., EDITORS.index(editor), :] = values[..., EDITORS.index(ROME), :]
    ends = {"": 0.0, "_low": -0.05, "_high": 0.05}
    found = {f"share{end}": (dims, (values + shift).clip(0, 1)) for end, shift in ends.items()}
    found["share_n"] = dims, np.full(values.shape, 30.0)
    place = list(SCORES).index("efficacy")
    for end in (*ends, "_n"):
        found[f"efficacy{end}"] = dims[:-1], found[f"share{end}"][1][..., place]
    return found


def arm(runs=8, worlds=WORLDS, **scores):
    """Return an arm. The first hop of an edit is 1 if the fact is in many training chains."""
    reached = np.tile(np.array(STEPS, float), (runs, 1))
    stages = xr.Dataset({"reached": (("run", "stage"), reached)}, {"stage": list(STAGES)})
    edits = np.arange(N_EDITS)
    by_edit = np.zeros((runs, 3, len(SCORES), N_EDITS))
    by_edit[:, :, list(SCORES).index("first hop")] = edits % 8 > 4
    reads = {"": 0.0, "_low": -0.05, "_high": 0.05}
    parts = {
        **shares(runs, **scores),
        "by_edit": (("run", "step", "score", "edit"), by_edit),
        "new_decoded": (("run", "step", "layer", "edit"), by_edit[:, :, 1:3]),
        "chains": (
            ("run", "step", "hop", "edit"),
            np.broadcast_to(np.stack([edits % 8, edits % 3]), (runs, 3, 2, N_EDITS)),
        ),
        "role": (
            ("run", "step", "edit"),
            np.full((runs, 3, N_EDITS), ROLES.index("I")),
        ),
    }
    for name, dims, sizes in (("read", "use", 3), ("decoded", "tail", 3)):
        of_layer = ("layer",) * (name == "decoded")
        shape = (runs, 3, 3, sizes, *(2,) * len(of_layer))
        for end, shift in reads.items():
            level = 0.9 if name == "decoded" else 0.1
            parts[f"{name}{end}"] = (
                ("run", "step", "group", dims, *of_layer),
                np.full(shape, level + shift),
            )
        parts[f"{name}_n"] = parts[name][0], np.full(shape, 30.0)
    coords = {
        "step": STEPS[1:],
        "group": ["id", "ood", "cold"],
        "editor": list(EDITORS),
        "score": list(SCORES),
        "hop": ["first", "second"],
        "layer": [1, 2],
        "use": list(instruments.USES),
        "tail": list(instruments.TAILS),
    }
    claims = xr.Dataset(
        {"claimed": (("run", "step", "claim"), np.tile([0.0, 1.0], (runs, 3, 1)))},
        {"step": STEPS[1:], "claim": list(study.CLAIMS)},
    )
    nodes = {"stages": stages, "edits": xr.Dataset(parts, coords), "claims": claims}
    return results.Arm(nodes | further(runs), worlds[:runs], INITS[:runs])


def further(runs):
    """Return results of `Places` and `Sequences`."""
    found = {}
    names: dict[str, dict[str, tuple]] = {
        "places": {"place": PLACES, "editor": (RANDOM, ROME)},
        "through_chains": {},
        "sequences": {"count": COUNTS},
    }
    outputs: dict[str, dict[str, tuple]] = {
        "places": {
            "share": ("place", "editor", "score"),
            "efficacy": ("place", "editor"),
            "read": ("place", "use"),
        },
        "through_chains": {
            "taught": (),
            "share": ("score",),
            "efficacy": (),
            "read": ("reader",),
        },
        "sequences": {
            "back": ("score",),
            "back_efficacy": (),
            "in_sequence": ("count", "score"),
            "in_sequence_efficacy": ("count",),
            "left": (),
        },
    }
    for node, own in names.items():
        sizes = {"run": runs, "group": 1, "score": len(SCORES), "use": 3, "reader": 3}
        sizes |= {dim: len(labels) for dim, labels in own.items()}
        arrays = {}
        for name, dims in outputs[node].items():
            dims = ("run", "group", *dims)
            shape = tuple(sizes[dim] for dim in dims)
            for end, level in {"": 0.9, "_low": 0.85, "_high": 0.95, "_n": 30}.items():
                arrays[f"{name}{end}"] = dims, np.full(shape, float(level))
        coords = {dim: list(labels) for dim, labels in own.items()}
        coords |= {"score": list(SCORES), "use": list(instruments.USES)}
        found[node] = xr.Dataset(arrays, coords | {"reader": list(places.READERS)})
    for end in ("", "_low", "_high"):
        found["through_chains"][f"efficacy{end}"][:] = 0.1
    for end, level in {"": 0.7, "_low": 0.6, "_high": 0.8, "_n": 40}.items():
        found["sequences"][f"locality{end}"] = ("run", "count"), np.full((runs, 3), float(level))
    return found


def test_an_edit_that_reaches_the_first_hop_only():
    one = arm(
        efficacy=1,
        first_hop=(0.1, 0.5, 0.9),
        stale_second_hop=1,
        same_entity=1,
        same_relation=1,
        locality=(1, 1, 0.7),
    )
    assert rules.follows(rules.share(one, "first hop")) == "8 yes, 0 no: yes"
    assert rules.follows(rules.share(one, "second hop")) == "0 yes, 8 no: no"
    assert rules.follows(rules.share(one, "first hop", stage="half")) == "0 yes, 0 no: open"
    assert rules.specific(one).answer == "no" and rules.nulls_do_nothing(one).answer == "yes"
    assert rules.sign(rules.over_training(one, "first hop"), one) == "more"
    assert rules.sign(rules.over_training(one, "locality"), one) == "less"
    assert rules.sign(rules.over_training(one, "efficacy"), one) == "open"
    why = rules.reasons(one)
    assert why.overwritten == "yes" and why.new_decoded.is_high.all() and why.read.is_low.all()
    assert why.stored["stored_twice"].answer == "yes" != why.stored["stored_once"].answer


def test_chains_have_a_place_of_their_own_if_the_fact_does_not_follow():
    one = arm()
    assert rules.through_chains(one).own_place.answer == "yes"
    part = one.parts["through_chains"]
    part["efficacy_high"][:] = 0.3
    assert rules.through_chains(one).own_place.answer == "no"


def test_few_edits_and_few_runs_give_no_answer():
    one = arm(efficacy=1, first_hop=1)
    part = one.parts["edits"]
    one.parts["edits"] = part.assign(share_n=part["share_n"] * 0 + 19)
    assert np.isnan(rules.share(one, "first hop").mean).all()
    assert rules.follows(rules.share(one, "first hop")) == "0 yes, 0 no: open (8 missing)"
    assert str(rules.specific(one)) == "0 of 8: no (8 missing)"
    assert rules.reasons(one).overwritten == "too few runs (0)"
    few = arm(3, efficacy=1, first_hop=(0, 0, 1))
    assert rules.follows(rules.share(few, "first hop")) == "3 yes, 0 no: too few runs"
    assert rules.sign(rules.over_training(few, "first hop"), few) == "too few runs (3)"


def test_a_missing_number_is_counted_beside_the_answer():
    """A rule fails where a number is missing, which is not the same as a number that is low."""
    one = arm(efficacy=1)
    one.parts["edits"]["efficacy_n"][0] = 19
    found = rules.high(rules.share(one, "efficacy"))
    assert str(found) == "7 of 8: yes (1 missing)" and found.missing == 1
    assert str(rules.high(rules.share(arm(efficacy=1), "efficacy"))) == "8 of 8: yes"


def test_efficacy_has_the_interval_of_outcomes():
    one = arm(efficacy=1)
    one.parts["edits"]["efficacy_low"][:] = 0.7
    assert (rules.share(one, "efficacy").low == 0.7).all()
    one.parts["sequences"]["back_efficacy_low"][:] = 0.6
    one.parts["sequences"]["in_sequence_efficacy_low"][:] = 0.5
    assert (rules.back(one, "efficacy").low == 0.6).all() and rules.undone(one).answer == "no"
    assert (rules.in_sequence(one, "efficacy").low == 0.5).all()
    assert (rules.in_sequence(one, "first hop").low == 0.85).all()


def test_the_locality_of_several_edits_of_one_model_has_no_interval_over_edits():
    one = arm(efficacy=1, locality=1)
    found = rules.share(one, "locality", editor=MEMIT)
    assert (found.mean == 1).all() and np.isnan(found.low).all() and np.isnan(found.high).all()
    assert np.isfinite(rules.share(one, "first hop", editor=MEMIT).low).all()
    found = rules.in_sequence(one, "locality")
    assert (found.mean == 0.7).all() and (found.low == 0.6).all()
    assert (rules.last_known(one, "locality", 2) == 0.7).all()


def test_stages_are_in_the_order_of_their_steps():
    one = arm()
    assert rules.stages_of(one) == ("memorised", "half", "end")
    reached = one.parts["stages"]["reached"]
    reached.loc[{"stage": "memorised"}] = [150, 180, 180, 190, 190, 190, np.nan, np.nan]
    assert rules.stages_of(one) == ("half", "memorised", "end")
    reached.loc[{"stage": "half"}] = np.nan
    assert rules.stages_of(one) == ("memorised", "half", "end")


def test_equal_shares_of_all_edits_are_no_variation():
    """It is not the same as too few runs: every run has enough edits."""
    one = arm(efficacy=1)
    place = list(SCORES).index("first hop")
    one.parts["edits"]["by_edit"][2:, :, place] = 1
    assert rules.chains_matter(one, "first hop") == "no variation in 6 runs"
    assert rules.chains_matter(arm(efficacy=1), "first hop") == "more"
    one.parts["edits"]["by_edit"][:, :, place] = np.nan
    assert rules.chains_matter(one, "first hop") == "too few runs (0)"


def test_chains_are_counted_by_edit():
    one = arm(efficacy=1)
    rank = rules.by_chains(one, "first hop")
    assert (rank > 0.8).all() and rules.sign(rank, one) == "more"
    assert np.isnan(rules.by_chains(one, "second hop")).all()
    shares = {name: values[0] for name, values in rules.binned(one, "first hop").items()}
    assert shares["1 - 2"] == 0 and shares["5 - 6"] == 1
    assert np.isnan(shares["7 and more"]) and np.isnan(shares["0"])  # too few edits
    saying, silent = rules.first_hop_by_state(one)
    assert (saying == 1).all() and (silent == 0).all()


def test_arms_are_compared_by_world_and_initialization():
    looped, base = arm(first_hop=0.9), arm(7, first_hop=0.4)
    # The runs of the other arm are in another order.
    order = np.arange(7)[::-1]
    parts = {name: part.isel(run=order) for name, part in base.parts.items()}
    base = results.Arm(parts, base.worlds[order], base.inits[order])
    values = base.parts["edits"]["share"]
    base.parts["edits"]["share"] = values + 0.01 * xr.DataArray(base.worlds, dims="run")
    difference, both = rules.paired(looped, base, "first hop")
    np.testing.assert_allclose(difference, 0.5 - 0.01 * WORLDS[:7])
    np.testing.assert_array_equal(both.worlds, WORLDS[:7])


@pytest.mark.slow
def test_tables_and_figures_are_made_from_the_saved_arrays(tmp_path, blank_figures):
    arms = {"ladder": arm(efficacy=1, first_hop=1), "ladder_looped": arm(first_hop=0.5)}
    arms["ladder_early"] = arm(3, efficacy=1)
    tables.write_tables(tmp_path, arms)
    text = (tmp_path / "answers.md").read_text()
    assert "| first hop | 0.50 [0.50, 0.50] (0.50 - 0.50; 8) | 1.00 " in text
    assert "-0.50 [-0.50, -0.50] (-0.50 - -0.50; 8) | less |" in text
    assert "| ladder_early | (curves) |" in text and "nan" not in text
    assert text.count("8 of 8: yes") > 4
    assert "(one model per run)" in text and "half: 1.00 [" in text
    assert "| ladder | first hop | 0.90 " in text.partition("## 8")[2]
    assert text.partition("## 8")[2].count("8 of 8: yes") == 2  # no rule for the first hop
    every = (tmp_path / "runs.md").read_text()
    assert every.count("| ladder_early | 0 | 0 |") > 10 and "nan" not in every
    assert "| ladder | 1 | 0 | after 32 | 0.90 [0.85, 0.95] | 0.90 [0.85, 0.95] | 0.70 [" in every
    for column in ("first hop of state", "taught chain", "norm that is left", "new tail decoded"):
        assert column in every
    figures.draw_all(tmp_path, arms)
    assert {path.stem for path in tmp_path.glob("*.png")} == figures.CAPTIONS.keys()
    assert "places.png" in (tmp_path / "figures.md").read_text()


def test_no_part_has_the_old_name_of_an_instrument():
    """Files are read with the present names of instruments, so such a part would be renamed."""
    names = ("edits", "claims", *study.AT_END)
    assert [name for name in names if current_instrument(name) != name] == []


def test_other_chains_of_an_edit_through_a_chain_end_with_other_relations():
    model, data = known("composer").subject.model, dataset()
    inputs = places.ThroughChains(edits=12).examples(model, data).inputs
    tail, entities = data.world.tail, data.world.n_entities
    chain, case = inputs["chain"], inputs["case"]
    for number, taught in enumerate(inputs["taught"]):
        head, relation = inputs["facts"]["tokens"][number, 0]
        prompts = chain["tokens"][number][chain["there"][number]]
        assert (prompts[:, 2] == relation).tolist() == [True] + [False] * (len(prompts) - 1)
        assert len(np.unique(prompts[:, 2])) == (tail[head] >= 0).sum()
        if taught >= 0:
            np.testing.assert_array_equal(prompts[0], case["tokens"][number, taught])
            assert (tail[prompts[:, 0], prompts[:, 1] - entities] == head).all()
    assert (inputs["taught"] >= 0).sum() > 5


def test_places_and_counts():
    model = known("composer").subject.model
    assert places.places(model) == [(0, "e1"), (0, "r1"), (1, "e1"), (1, "r1"), (2, "r1")]
    assert places.counts_up_to(12) == (1, 2, 4, 8, 12)
    made = places.Sequences(edits=10).examples(model, dataset())
    case = made.inputs["case"]
    facts = dataset().world.facts
    np.testing.assert_array_equal(case["tokens"][:, 0, 0], facts.head[made.clusters])
    assert made.groups == ("id",) and made.coords["count"] == (1, 2, 4, 8, 10)
    assert (np.diff(made.clusters) < 0).any()
    truth, others = dataset().truth, made.inputs["others"]["tokens"]
    bridge = {
        tuple(tokens[:2]): entity
        for tokens, entity, fact in zip(dataset().tokens, truth["e2"], truth["fact2"], strict=True)
        if fact >= 0
    }
    known_bridges = [
        (bridge.get(tuple(one[:2])), made.inputs["bridge"][n]) for n, one in enumerate(others)
    ]
    assert all(right in (None, found) for right, found in known_bridges)
    assert sum(right is not None for right, _ in known_bridges) > 100


@pytest.mark.parametrize("instrument", [places.Places, places.ThroughChains, places.Sequences])
def test_questions_about_both_hops_edit_facts_that_training_chains_use(instrument):
    made = instrument(edits=12).examples(known("composer").subject.model, dataset())
    assert made.groups == ("id",) and len(made.clusters) == 12
    assert (dataset().world.facts.role[made.clusters] == ROLES.index("I")).all()


def test_the_locality_of_one_model_has_an_interval_over_prompts():
    """All edits of one model share its locality, so an interval over edits would have no width."""
    right = np.ones((2, 90), bool)
    right[1, ::3] = False
    result = xr.Dataset(
        {
            "locality": (("count", "other"), right),
            "locality_counted": ("other", np.arange(90) < 60),
            "bridge": ("other", np.arange(90) % 30),
            "size": ("count", [0.1, 0.2]),
        }
    )
    found = places.with_locality(result)
    assert found["locality"].dims == ("count",) and "other" not in found.dims and "size" in found
    np.testing.assert_allclose(found["locality"], [1, 2 / 3])
    np.testing.assert_array_equal(found["locality_n"], 30)
    assert found["locality_high"][0] == 1 and 0.8 < found["locality_low"][0] < 0.95
    # The two prompts of a bridge are equal: the interval is that of 30 bridges, not 60 prompts.
    low, high = clopper_pearson(20, 30)
    assert found["locality_low"][1] == pytest.approx(low, abs=0.03)
    assert found["locality_high"][1] == pytest.approx(high, abs=0.03)


def test_read_strength_is_that_of_prompts_and_edits_that_count():
    kind = np.array([[2, 2, 2, 4]] * 3)
    columns = {field: kind for field in Case._fields if field != "counted"}
    counted = np.array([[True, False, True, True], [False] * 4, [True] * 4])
    cases = Case(**columns, counted=counted)
    values, succeeded = np.array([[1.0, 50, 3, 7]] * 3), np.array([True, True, False])
    uses = {"second hop": "second hop", "other facts": "same relation"}
    compute = jax.jit(lambda *arrays: instruments.mean_by_use(*arrays, uses))
    strength, there = compute(cases, values, succeeded)
    np.testing.assert_array_equal(there, [[True, False, False]] * 2)
    np.testing.assert_array_equal(strength[:, 0], [2, 7])


@pytest.mark.slow
def test_the_instruments_of_planted_models():
    """Edits of the composer in sequence are kept, and edits of a shared store reach both hops."""
    from implicit_reasoning.analysis.runner import measure

    found = measure(
        places.Sequences(edits=24, others=40), known("composer").subject, progress=False
    ).isel(step=0, group=0)
    scores = ["efficacy", "first hop", "locality"]
    np.testing.assert_array_equal(found["back"].sel(score=[*scores, "second hop"]), 1)
    np.testing.assert_array_equal([found["back_efficacy"], found["succeeded"]], 1)
    kept = found["in_sequence"].sel(score=scores[:2]).isel(count=-1)
    assert kept.min() > 0.9 and found["in_sequence_n"].sel(score="efficacy", count=4) == 4
    for name, end in (("in_sequence_efficacy", "in_sequence"), ("back_efficacy", "back")):
        np.testing.assert_allclose(found[name], found[end].sel(score="efficacy"), rtol=1e-6)
    assert not found["in_sequence_n"].sel(score="locality").any()
    kept = places.with_locality(found)["locality"]
    assert kept.min() > 0.9 and kept.sizes == {"count": 6}
    assert found["left"] < 1
    found = measure(
        places.ThroughChains(edits=31, others=40), known("composer").subject, progress=False
    ).isel(step=0, group=0)
    assert found["taught"] == 1 and found["taught_n"] > 19
    assert found["share"].sel(score="second hop") == 1 and found["share"].sel(score="efficacy") == 0
    assert found["efficacy"] == 0 < found["efficacy_high"]
    assert (
        found["read"].sel(reader="other chains") > 0.9 > 0.1 > found["read"].sel(reader="the fact")
    )
    found = measure(
        instruments.Edits(edits=31, others=40), known("shared_store").subject, progress=False
    ).isel(step=0, group=0)
    assert found["read"].sel(use="second hop") > 0.9 > 0.1 > found["read"].sel(use="other facts")
    assert found["decoded"].isel(layer=0).sel(tail=["new", "old, no edit"]).min() > 0.9
    np.testing.assert_array_equal(found["efficacy"], found["share"].sel(score="efficacy"))
    place = list(SCORES).index("first hop")
    own = found["by_edit"].isel(score=place)[found["role"] == ROLES.index("I")]
    np.testing.assert_allclose(
        own.mean(), found["share"].sel(editor=ROME, score="first hop"), rtol=1e-5
    )
