"""Controls of swaps and searches can fail, and without working controls nothing is claimed."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, measure
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.states import chain_splits
from implicit_reasoning.analysis.truth.known import knowledge, planted_model
from implicit_reasoning.analysis.variables import controls, das, mean_swap
from implicit_reasoning.analysis.variables.counterfactuals import (
    choose_cases,
    counterfactual_answers,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.das import Alignment
from implicit_reasoning.analysis.variables.interchange import InterchangePairs
from implicit_reasoning.analysis.variables.mean_swap import MeanSwap
from tests.analysis.planted_subject import dataset, known

HERE = Claim("used", "e2", 1, "r1")
BY_DEFAULT = 0  # the answer of a planted model if none of its neurons is active


@pytest.fixture(scope="module")
def cases():
    fitted = rows_to_fit(dataset())
    return choose_cases(dataset(), chain_splits(dataset()), 128, fitted), fitted


@pytest.fixture(scope="module")
def made(cases):
    return controls.swap_controls(dataset(), *cases)


# Choice of values -------------------------------------------------------------------------------


def test_no_value_keeps_its_mean_when_means_are_dealt_anew(cases, made):
    chosen, fitted = cases
    for name, dealt in zip(chosen.variables.names, made["permuted"], strict=True):
        there = np.unique(dataset().truth[name][fitted])
        assert (dealt[there] != there).all() and set(dealt[there]) == set(there)
        np.testing.assert_array_equal(np.delete(dealt, there), np.delete(range(len(dealt)), there))


def test_a_third_value_is_another_one_and_leads_elsewhere(cases, made):
    chosen, _ = cases
    for index, name in enumerate(chosen.variables.names):
        third, there = made["third"][index], made["third"][index] >= 0
        assert there.mean() > 0.9
        assert (third != chosen.variables.values[index])[there].all()
        assert (third != chosen.new[index])[there].all()
        leads = counterfactual_answers(dataset(), chosen.rows, name, third[:, None])[:, 0]
        assert ((leads != chosen.expected[index]) | (leads < 0))[there].all()
        assert (leads >= 0).mean() > 0.4  # values with an answer come first


def test_the_other_variable_is_another_one_and_leads_elsewhere(cases, made):
    chosen, _ = cases
    names = chosen.variables.names
    for index, name in enumerate(names):
        other = "e1" if name == "r1" else "r1"
        new, there = made["beside_new"][index], made["beside_new"][index] >= 0
        old = chosen.variables.values[names.index(other)]
        np.testing.assert_array_equal(made["beside_old"][index], old)
        assert there.mean() > 0.9 and (new != old)[there].all()
        leads = counterfactual_answers(dataset(), chosen.rows, other, new[:, None])[:, 0]
        assert ((leads != chosen.expected[index]) | (leads < 0))[there].all()


@pytest.mark.parametrize("n_values", [5, 16, 17, 40, 250])
def test_values_are_drawn_evenly_and_each_case_by_a_draw_that_holds_its_value(n_values):
    old = np.random.default_rng(0).integers(-1, n_values + 1, (1, 400))  # some are never drawn
    found = controls.draw_values(np.arange(-1, n_values)[None], old)
    drawn, draw = found["drawn"][0], found["draw"][0]
    counts = np.bincount(drawn[drawn >= 0], minlength=n_values)
    assert counts.max() - counts.min() <= 1
    assert all(len(np.unique(d[d >= 0])) == min(n_values, controls.MAX_ERASED) for d in drawn)
    for value, number in zip(old[0], draw, strict=True):
        assert (number >= 0) == (value >= 0 and value in drawn)
        assert number < 0 or value in drawn[number]


# Effect of controls -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forgetful():
    """Return a composer that does not know the second facts of a quarter of the bridges.

    It answers those by default. The answer then depends on whether the old bridge is gone, not on
    what the new bridge leads to.
    """
    data = dataset(n_entities=40, out_degree=5)  # enough bridges remain for a claim
    one = planted_model("composer", data, ("train_ii",)).subject
    assert isinstance(one, InMemory)
    heads = knowledge(data, ()).facts[0]
    bridges = np.unique(data.truth["e2"][rows_to_fit(data)])
    lost = bridges[: len(bridges) // 4]
    params = jax.tree.map(np.array, one.checkpoints[0])
    params["blocks"]["2"]["mlp"]["W_out"][: len(heads)][np.isin(heads, lost)] = 0
    return InMemory(one.model, one.dataset, [jax.device_put(params)]), lost


def answered_by_default(answer, expected, there):
    """Return the default answer as the expected one, unless it is the correct answer."""
    due = there & (answer != BY_DEFAULT) & (expected >= 0)
    return np.where(due, BY_DEFAULT, -1).astype(np.int32)


class WrongReason(MeanSwap):
    """All swaps of e2 insert lost bridges, and the expected answer is the default answer."""

    lost = ()

    def examples(self, model, dataset):
        examples, random = super().examples(model, dataset), np.random.default_rng(0)
        inputs = examples.inputs
        e2 = list(examples.coords["variable"]).index("e2")
        new, third = random.choice(self.lost, (2, inputs["new"].shape[1]))
        inputs["new"][e2], inputs["more"]["third"][e2] = new, np.where(new == third, -1, third)
        there = ~np.isin(inputs["old"][e2], self.lost)
        inputs["expected"][e2] = answered_by_default(
            inputs["answer"], inputs["expected"][e2], there
        )
        return examples


@pytest.mark.slow
def test_a_swap_that_follows_because_the_old_code_is_gone_is_found_out(forgetful, monkeypatch):
    one, lost = forgetful
    instrument = WrongReason()
    instrument.lost = lost
    result = measure(instrument, one, progress=False).isel(step=0)
    e2 = result["counterfactual"].sel(variable="e2", layer=1, pos="r1", group="train_ii")
    assert e2.sel(edit="class means") == 1
    assert e2.sel(edit="third value") > 0.9 > 0.2 > e2.sel(edit="another variable")
    assert HERE not in instrument.claims(result)
    # Mutation: the controls cannot fail.
    monkeypatch.setattr(mean_swap, "_CONTROL", 1.0)
    assert HERE in instrument.claims(result)


@pytest.mark.slow
def test_a_control_that_was_not_made_does_not_count():
    """At e1, r1 is not known; without any control nothing is claimed."""
    result = measure(MeanSwap(), known("composer").subject, progress=False).isel(step=0)
    n = result["counterfactual_n"].sel(group="train_ii", pos="e1", variable="e1")
    assert (n.sel(edit="another variable") == 0).all() and n.sel(edit="third value").max() > 10
    assert HERE in MeanSwap().claims(result)
    unmade = result["counterfactual_n"].where(result["edit"] == "class means", 3)
    assert MeanSwap().claims(result.assign(counterfactual_n=unmade)) == set()


class WrongSearch(Alignment):
    """The same for pairs: where the bridge changes, the source has a lost bridge."""

    lost = ()

    def _pairs(self, dataset, bases, pool, *rules, **options):
        lost = pool[np.isin(dataset.truth["e2"][pool], self.lost)]
        of_lost, of_all = (
            super(WrongSearch, self)._pairs(dataset, bases, rows, *rules, **options)
            for rows in (lost, pool)
        )
        # Pairs for cause, the first kind, have lost bridges as sources. Pairs for isolation use
        # all bridges.
        return [
            InterchangePairs(
                np.stack([one.source[0], two.source[1]]),
                np.stack([one.expected[0], two.expected[1]]),
            )
            for one, two in zip(of_lost, of_all, strict=True)
        ]

    def examples(self, model, dataset):
        examples = super().examples(model, dataset)
        inputs, e2 = examples.inputs, dataset.truth["e2"]
        fit = rows_to_fit(dataset)
        base, source = fit[inputs["fit_base"]], fit[inputs["fit_source"]]
        due = inputs["fit_expected"].reshape(1, 2, -1)
        of_base, of_source = (x.reshape(1, 2, -1)[:, 0] for x in (base[None], source))
        due[:, 0] = self.due(dataset, e2, of_base, of_source, due[:, 0])
        inputs["shuffled"][:] = das._shuffled(inputs["fit_expected"])
        prompts = {tuple(row[:3]): n for n, row in enumerate(dataset.tokens[: len(e2)])}
        asked, given = (
            np.array([prompts[tuple(row)] for row in rows])[None]
            for rows in (inputs["tokens"], inputs["source_tokens"][0, 0])
        )
        inputs["expected"][:, 0] = self.due(dataset, e2, asked, given, inputs["expected"][:, 0])
        return examples

    def due(self, dataset, e2, base, source, expected):
        there = np.isin(e2[source], self.lost) & ~np.isin(e2[base], self.lost)
        return answered_by_default(dataset.truth["answer"][base], expected, there)


@pytest.mark.slow
def test_a_search_that_succeeds_for_the_wrong_reason_is_found_out(forgetful, monkeypatch):
    one, lost = forgetful
    # The old bridge has to be removed completely, so the search gets its largest rank, d_model / 2.
    instrument = WrongSearch(rank=one.model.spec.d_model // 2, steps=60)
    instrument.lost = lost
    result = measure(instrument, one, progress=False).isel(step=0)
    at = result.sel(variable="e2", layer=1, pos="r1", group="train_ii")
    assert at["cause"].sel(edit="learnt") > 0.9 and at["isolation"].sel(edit="learnt") > 0.8
    assert at["cause"].sel(edit="shuffled targets") > 0.6 > 0.5 > at["cause"].sel(edit="random")
    assert HERE not in instrument.claims(result)
    monkeypatch.setattr(das, "_CONTROL", 1.0)
    assert HERE in instrument.claims(result)


def test_answers_are_dealt_out_within_a_kind():
    expected = np.array([[3, 4, -1, 5, 7, 8, 9, -1]])
    dealt = das._shuffled(expected)
    assert not (dealt == expected).all()
    np.testing.assert_array_equal(np.sort(dealt[:, :4]), np.sort(expected[:, :4]))
    np.testing.assert_array_equal(dealt < 0, expected < 0)
