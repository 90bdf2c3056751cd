"""Progress measures of composition on planted models, and against edits by hand."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable
from implicit_reasoning.analysis.components.composition_progress import (
    STATES,
    CompositionProgress,
    fitted_rows,
)
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, mask
from tests.analysis import planted_subject, tiny_states

_CERTAIN, _CHANCE = 0.02, 3.0  # losses of a sure answer, and of no answer among 30 tokens


@pytest.fixture(scope="module")
def found():
    """Measure two planted models of equal shape in one program each."""
    names = ("composer", "prefix_memoriser", "cluster_composer")
    return {
        name: measure(CompositionProgress(), planted_subject.known(name).subject, progress=False)
        for name in names
    }


def loss(result, group):
    of_group = result.isel(step=0).sel(group=group)
    return dict(zip(STATES, of_group.loss.values, strict=True))


@pytest.mark.slow
def test_a_composer_answers_through_the_shared_code(found):
    for group in ("train_ii", "test_ii", "test_oi"):
        of = loss(found["composer"], group)
        assert max(of["own"], of["restricted"], of["excluded, other bridge"]) < _CERTAIN
        assert min(of["excluded"], of["restricted, other bridge"]) > _CHANCE


@pytest.mark.slow
def test_a_memoriser_answers_through_what_differs_between_prefixes_with_one_bridge(found):
    of = loss(found["prefix_memoriser"], "train_ii")
    assert max(of["own"], of["excluded"], of["excluded, other bridge"]) < _CERTAIN
    assert min(of["restricted"], of["restricted, other bridge"]) > _CHANCE


@pytest.mark.slow
def test_a_code_that_single_facts_do_not_set_is_not_grounded(found):
    """The second hop of a cluster composer works if it gets the code from training chains."""
    result = found["cluster_composer"].isel(step=0).sel(group="test_oi")
    right = dict(zip(STATES, result.correct.values, strict=True))
    # Some bridges have no code, because the training chains do not identify them.
    assert right["restricted"] > 0.7 > 0.1 > max(right["own"], right["restricted, other bridge"])
    assert found["composer"].isel(step=0).sel(group="test_oi", state="own").correct == 1


def test_edits_agree_with_means_and_edits_by_hand():
    dataset = tiny_states.make_dataset()
    model = tiny_states.make_model(dataset)
    one = tiny_states.random_subject(model, dataset)
    instrument = CompositionProgress()
    examples, params = instrument.examples(model, dataset), one.checkpoints[0]
    tokens, answer = examples.inputs["tokens"], examples.inputs["answer"]
    rows = fitted_rows(dataset)
    truth, site = dataset.truth, "blocks.0.hook_resid_post"

    @jax.jit
    def forward(params, tokens, new=None):
        where = (np.arange(3) == 1)[:, None]
        edits = None if new is None else {site: Edit(mask, (where, new[:, None]))}
        logits, sites = model.forward(params, tokens, edits=edits, sites=(site,))
        return logits[:, -1], sites[site][:, 1]

    fitted = np.asarray(forward(params, dataset.tokens[rows, :3])[1], np.float64)
    _, clean = forward(params, tokens)
    codes = []
    facts = {tuple(dataset.tokens[row, :2]): truth["e2"][row] for row in range(len(dataset))}
    bridges = np.array([facts[tuple(row[:2])] for row in tokens])
    for bridge in (bridges, examples.inputs["other"]):
        codes.append(
            [
                fitted[
                    (truth["e2"][rows] == b) & (dataset.tokens[rows, :2] != row[:2]).any(1)
                ].mean(0)
                for row, b in zip(tokens, bridge, strict=True)
            ]
        )
    (restricted, null), overall = np.array(codes), fitted.mean(0)
    new = [clean, restricted, clean - (restricted - overall), null, clean - (null - overall)]
    result = measure(instrument, one, progress=False).isel(step=0)
    for state, states in zip(STATES, new, strict=True):
        logits = np.asarray(forward(params, tokens, np.asarray(states, np.float32))[0], np.float64)
        own = np.take_along_axis(logits, answer[:, None], 1)
        wanted = np.log(np.exp(logits - own).sum(1))
        for number, group in enumerate(examples.groups):
            here = wanted[examples.group == number].mean()
            np.testing.assert_allclose(result.loss.sel(group=group, state=state), here, rtol=1e-4)


def test_examples_have_a_mean_of_others_and_another_answer():
    dataset = planted_subject.dataset()
    model = planted_subject.known("composer").subject.model
    examples = CompositionProgress().examples(model, dataset)
    inputs, rows = examples.inputs, fitted_rows(dataset)
    fit, bridge = inputs["fit_bridge"], inputs["bridge"]
    assert (dataset.truth["role1"][rows] == 0).all()
    assert len(np.unique(dataset.truth["fact1"][rows])) == len(rows)
    has_own = inputs["own"] >= 0
    np.testing.assert_array_equal(fit[inputs["own"][has_own]], bridge[has_own])
    np.testing.assert_array_equal(
        inputs["fit_tokens"][inputs["own"][has_own]], inputs["tokens"][has_own, :2]
    )
    others = (fit[None] == bridge[:, None]).sum(1) - has_own
    assert others.min() >= 1
    tail = dataset.world.tail[inputs["other"], inputs["tokens"][:, 2] - dataset.world.n_entities]
    assert (tail != inputs["answer"]).all() and (inputs["other"] != bridge).all()
    assert np.isin(inputs["other"], fit).all()
    assert set(examples.groups) >= {"train_ii", "test_ii", "test_oi"}


@pytest.mark.slow
def test_the_figure_is_drawn(found):
    (figure,) = CompositionProgress().figures(found["composer"])
    assert figure.name == "composition_progress" and "layer 1" in figure.caption


def test_layers_that_cannot_matter_are_refused():
    dataset = tiny_states.make_dataset()
    with pytest.raises(InputError, match="at least 1"):
        CompositionProgress(layer=0)
    with pytest.raises(NotApplicable, match="3 blocks"):
        CompositionProgress(layer=2).examples(tiny_states.make_model(dataset), dataset)
    backwards = tiny_states.make_dataset(order="r r e")
    with pytest.raises(NotApplicable, match="before the other"):
        CompositionProgress().examples(tiny_states.make_model(backwards), backwards)
