"""Edits of planted models reach the hops that share the edited store, and no others."""

import functools

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable
from implicit_reasoning.analysis.claims import judge
from implicit_reasoning.analysis.editing.edit_cases import KINDS
from implicit_reasoning.analysis.editing.fine_tuning import Lesson, Tuning, fine_tune
from implicit_reasoning.analysis.editing.knowledge_editing import (
    DEFAULT,
    MEMIT,
    NO_EDIT,
    NULLS,
    ORACLE,
    RANDOM,
    RESID_MID,
    ROME,
    STATE,
    W_OUT,
    WEIGHTS,
    KnowledgeEditing,
)
from implicit_reasoning.analysis.editing.scores import SCORES
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.surgery import LowRankChange, write_change
from tests.analysis import tiny_states
from tests.analysis.planted_subject import dataset, known

# The planted models store single facts in the first block, except for the memoriser, which stores
# them in the last one.
LAYERS = {"composer": 0, "shared_store": 0, "memoriser": 2, "cluster_composer": 0}
TUNING = Tuning(steps=60, rate=0.02)  # weights of planted models are larger than trained ones
KEEP = ("same entity", "same relation", "locality")


def instrument(name, editors=DEFAULT):
    return KnowledgeEditing(editors, layer=LAYERS[name], edits=31, others=60, tuning=TUNING)


SINGLE = ("memoriser", "cluster_composer")  # they store single facts


@functools.cache
def edited(name, editors=DEFAULT):
    """Edit a planted model."""
    subject = known(name).subject
    one = instrument(name, editors)
    runner = Runner(one, subject.model)
    result = measure(one, subject, runner=runner, progress=False).isel(step=0)
    assert runner.traces == 1
    return result


def scores(result, editor, group="id"):
    return result["share"].sel(group=group, editor=editor)


@pytest.mark.slow
def test_an_edit_of_the_first_store_of_a_composer_reaches_the_first_hop_only():
    for group in ("id", "ood"):
        of = scores(edited("composer"), ROME, group)
        assert of.sel(score="efficacy") == 1 == of.sel(score="first hop")
        assert of.sel(score="second hop") == 0 == of.sel(score="stale first hop")
        assert of.sel(score="stale second hop") == 1 and of.sel(score="both") == 0
        np.testing.assert_array_equal(of.sel(score=list(KEEP)), 1)


@pytest.mark.slow
def test_an_edit_of_a_shared_store_reaches_both_hops():
    for group in ("id", "ood"):
        of = scores(edited("shared_store"), ROME, group)
        np.testing.assert_array_equal(of.sel(score=["efficacy", "first hop", "second hop"]), 1)
        np.testing.assert_array_equal(of.sel(score=["both", *KEEP]), 1)
        assert of.sel(score=["stale first hop", "stale second hop"]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_an_edit_of_single_facts_reaches_no_chain_that_does_not_read_them(name):
    of = scores(edited(name), ROME)
    assert of.sel(score="efficacy") == 1
    np.testing.assert_array_equal(of.sel(score=["first hop", "second hop", "both"]), 0)
    np.testing.assert_array_equal(of.sel(score=["stale first hop", "stale second hop", *KEEP]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_enough_edits_count(name):
    count = edited(name)["share_n"].sel(editor=ROME, group="id")
    assert count.min() >= 16 and count.sel(score="efficacy") == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_nulls_change_nothing_and_have_the_norm_of_the_edit(name):
    nothing, drawn = (scores(edited(name), null) for null in (NO_EDIT, RANDOM))
    stale = ["stale first hop", "stale second hop", *KEEP]
    np.testing.assert_array_equal(nothing.sel(score=stale), 1)
    new = ["efficacy", "first hop", "second hop", "both"]
    np.testing.assert_array_equal(nothing.sel(score=new), 0)
    assert drawn.sel(score=new).max() < 0.1 and drawn.sel(score=stale).min() > 0.7
    size = edited(name)["change"].sel(group="id")
    np.testing.assert_allclose(size.sel(editor=RANDOM), size.sel(editor=ROME), rtol=1e-5)
    assert size.sel(editor=NO_EDIT) == 0 < size.sel(editor=ROME)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_hop_follows_a_state_that_is_overwritten(name):
    """So the first hop alone is no evidence about stores of facts."""
    rome, state = (scores(edited(name), editor) for editor in (ROME, STATE))
    assert rome.sel(score="first hop") == state.sel(score="first hop")
    assert state.sel(score="locality") == 1


@pytest.mark.slow
def test_states_are_written_where_a_hop_reads_them():
    # A vector before the MLP need not have the code of b' that the second hop reads.
    before = scores(edited("composer"), RESID_MID)
    assert before.sel(score="efficacy") == 1 == before.sel(score="first hop")
    # The second hop follows if the value is written where the hop is computed.
    assert scores(edited("shared_store"), STATE).sel(score="second hop") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_claims_are_those_of_the_planted_stores(name):
    wanted = {"composer": {"stored_twice"}, "shared_store": {"stored_once"}}
    claims = instrument(name).claims(edited(name))
    assert {claim.kind for claim in claims} == wanted.get(name, set())
    assert judge(claims, known(name).mechanism) == ("right" if claims else "silent")


@pytest.mark.slow
def test_half_of_the_edits_are_too_few_for_a_claim():
    few = edited("composer").assign(share_n=edited("composer")["share_n"] // 2)
    assert not instrument("composer").claims(few)


@pytest.mark.slow
def test_other_editors_of_the_first_store_of_a_composer_reach_the_first_hop_only():
    found = edited("composer", (MEMIT, W_OUT))
    tuned, together = (scores(found, name) for name in (W_OUT, MEMIT))
    assert tuned.sel(score="efficacy") == 1 == together.sel(score="efficacy")
    assert tuned.sel(score="first hop") == 1 and together.sel(score="first hop") > 0.8
    for of in (tuned, together):
        assert of.sel(score="second hop") == 0 and of.sel(score="stale second hop") == 1
        np.testing.assert_array_equal(of.sel(score=list(KEEP)), 1)


@pytest.mark.slow
def test_fine_tuned_models_are_scored_on_prompts_that_were_not_taught():
    """Tune the composer on one edit, and ask every prompt."""
    subject = known("composer").subject
    model, params = subject.model, subject.checkpoints[0]
    one = KnowledgeEditing((WEIGHTS, ORACLE), edits=3, others=20, tuning=Tuning(15, 0.02))
    inputs = one.examples(model, dataset()).inputs
    case = jax.tree.map(lambda leaf: leaf[0], inputs["case"])
    chains = np.isin(case["kind"], (1, 2))
    taught = {WEIGHTS: case["kind"] == 0, ORACLE: case["kind"] == 0}
    taught[ORACLE] = taught[ORACLE] | (chains & (np.arange(len(chains)) % 2 == 0))

    @jax.jit
    def compute(params, inputs, lessons):
        found = one.measure(model, params, inputs, jax.random.key(0))
        answers = {}
        for name, lesson in lessons.items():
            tuned = fine_tune(model, params, lesson, one.tuning)
            answers[name] = model.forward(tuned, lesson.tokens)[0].argmax(-1)
        return found, answers

    tokens, position, after = (case[name] for name in ("tokens", "position", "after"))
    lessons = {name: Lesson(tokens, position, after, which) for name, which in taught.items()}
    found, answers = jax.tree.map(np.asarray, compute(params, inputs, lessons))
    for number, name in enumerate((WEIGHTS, ORACLE), start=len(NULLS)):
        given = np.take_along_axis(answers[name], case["position"][:, None], axis=1)[:, 0]
        for score, kind in {
            "efficacy": 0,
            "first hop": 1,
            "second hop": 2,
            "same entity": 3,
        }.items():
            scored = (case["kind"] == kind) & ~(taught[name] & chains)
            place = list(SCORES).index(score)
            assert found["counted"][number, place, 0] == scored.any()
            right = (given == case["after"])[scored].mean()
            np.testing.assert_allclose(found["share"][number, place, 0], right, rtol=1e-5)
        assert found["change"][number].min() > 0.01


@pytest.mark.slow
def test_scores_are_those_of_written_weights():
    """Write the changes into the weights of the composer, and ask every prompt."""
    subject, one = known("composer").subject, instrument("composer")
    model, params = subject.model, subject.checkpoints[0]
    examples = one.examples(model, dataset())
    case = examples.inputs["case"]

    @jax.jit
    def compute(params, inputs):
        made = one.changes(model, params, inputs, jax.random.key(0))

        def answers(item):
            change, tokens = item
            return model.forward(write_change(model, params, 0, change), tokens)[0].argmax(-1)

        return made, jax.lax.map(answers, (made.rome, inputs["case"]["tokens"]))

    made, answers = jax.tree.map(np.asarray, compute(params, examples.inputs))
    given = np.take_along_axis(answers, case["position"][..., None], axis=2)[..., 0]
    right = {
        kind: (given == case["after"])[case["kind"] == number].mean()
        for number, kind in enumerate(KINDS)
    }
    assert right == dict(zip(KINDS, (1, 1, 0, 1, 1), strict=True))
    old = np.asarray(params["blocks"]["0"]["mlp"]["W_out"])
    for key, added, change in zip(made.keys, made.added, zip(*made.rome), strict=True):  # noqa: B905
        product = LowRankChange(*change)
        new = old + product.keys.T @ product.values
        np.testing.assert_allclose(key @ new, key @ old + added, atol=1e-5)


def test_bad_options_and_other_tasks_are_refused():
    with pytest.raises(InputError, match="no such editor: 'mend'; choose from"):
        KnowledgeEditing(("mend",))
    with pytest.raises(InputError, match=r"layers must ascend to layer = 1, got \(1, 2\)"):
        KnowledgeEditing(layer=1, layers=(1, 2))
    with pytest.raises(InputError, match="edits and others must be at least 1"):
        KnowledgeEditing(edits=0)
    subject = known("composer").subject
    with pytest.raises(InputError, match="layer is 3; the model has the blocks 0 to 2"):
        KnowledgeEditing(layer=3).examples(subject.model, subject.dataset)
    other = tiny_states.make_dataset(order="r r e")
    with pytest.raises(NotApplicable, match="editing needs prompts"):
        KnowledgeEditing().examples(tiny_states.make_model(other), other)
    assert KnowledgeEditing((STATE,)).coords(subject.model, subject.dataset)["editor"] == (
        *NULLS,
        STATE,
    )
