"""Swap, erasure, alignment and behavior on planted models, and with each instrument broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, used
from implicit_reasoning.analysis.behaviour import ANSWER_KINDS, Behaviour
from implicit_reasoning.analysis.claims import Claim, describe
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.states import prompts, residuals
from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.analysis.truth.known import planted_model
from implicit_reasoning.analysis.variables import das, erasure, mean_swap
from implicit_reasoning.analysis.variables.das import Alignment
from implicit_reasoning.analysis.variables.erasure import Erasure
from implicit_reasoning.analysis.variables.subspaces import ClassMeans, Eraser
from implicit_reasoning.errors import InputError
from tests.analysis.planted_subject import dataset, in_words, known

_made = {}


def subject(name):
    return known(name).subject


def results(name, instrument):
    """Return the result of an instrument on a planted model, measured once per session."""
    key = (name, instrument.name)
    if key not in _made:
        one = subject(name)
        runner = Runner(instrument, one.model)
        _made[key] = measure(instrument, one, runner=runner, progress=False)
        assert runner.traces <= 2  # for all cells; `lax.map` may trace twice
    return _made[key]


def told(name, instrument, result=None):
    result = results(name, instrument) if result is None else result
    return instrument.claims(result.isel(step=0))


def test_the_rest_of_a_model_from_a_clean_state_is_the_model():
    one = subject("composer")
    tokens = prompts(one.dataset, one.dataset.rows("test_ii"))[:8]

    @jax.jit
    def rests(params, tokens):
        states = residuals(one.model, params, tokens)
        ends = [logits_from_layer(one.model, params, states[layer], layer) for layer in (0, 2, 3)]
        return ends, one.model.forward(params, tokens)[0]

    ends, whole = jax.device_get(rests(one.checkpoints[0], tokens))
    for logits in ends:
        np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5)


# Use ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["composer", pytest.param("prefix_memoriser", marks=pytest.mark.slow)]
)
def test_all_that_a_swap_claims_is_true(name):
    claims = told(name, mean_swap.MeanSwap())
    assert claims and not in_words(claims, name)["false"]
    assert (Claim("used", "e2", 1, "r1") in claims) == (name == "composer")


def test_a_swap_in_a_composer_is_exact_and_its_control_does_nothing():
    found = results("composer", mean_swap.MeanSwap()).sel(step=0, group="test_ii")
    e2 = found["counterfactual"].sel(variable="e2", pos="r1")
    np.testing.assert_array_equal(e2.sel(edit="class means"), [0, 1, 1, 0])
    assert e2.sel(edit=list(mean_swap.CONTROLS)).max() < 0.2
    shares = sum(found[name] for name in ("counterfactual", "unchanged", "other"))
    np.testing.assert_allclose(shares.where(shares.notnull(), 1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_swap_that_moves_to_another_class_is_found_out(monkeypatch):
    """Mutation: the added mean is that of another class."""
    right = mean_swap.class_means

    def wrong(*args):
        means = right(*args)
        return ClassMeans(jnp.roll(means.mean, 1, axis=0), means.size)

    monkeypatch.setattr(mean_swap, "class_means", wrong)
    broken = measure(mean_swap.MeanSwap(), subject("composer"), progress=False)
    assert Claim("used", "e2", 1, "r1") not in told("composer", mean_swap.MeanSwap(), broken)


@pytest.mark.slow
def test_random_states_are_at_chance():
    """In an untrained model nothing is used, and almost nothing is answered."""
    model = subject("composer").model
    random = jax.jit(model.init)(jax.random.key(0))
    one = InMemory(model, subject("composer").dataset, [random])
    for instrument in (mean_swap.MeanSwap(), Behaviour()):
        assert instrument.claims(measure(instrument, one, progress=False).isel(step=0)) == set()


# Necessity ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_erasing_breaks_what_is_used_and_nothing_else():
    """The composer of `idle_copy` has e2 at two places, but reads it at only one of them."""
    e2 = results("idle_copy", Erasure()).sel(step=0, group="test_ii", variable="e2")
    stays = e2["unchanged"].sel(edit="variable")
    assert stays.sel(layer=1, pos="r1") < 0.3 < 0.95 < stays.sel(layer=2, pos="r2")
    assert min(e2["decoded"].sel(layer=1, pos="r1"), e2["decoded"].sel(layer=2, pos="r2")) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, one",
    [
        ("idle_copy", Claim("unused", "e2", 2, "r2")),
        pytest.param("parallel", Claim("unused", "e2", 3, "r1"), marks=pytest.mark.slow),
        # Beside the bridge, erasure also removes parts of the prefix, so nothing is claimed.
        pytest.param("prefix_memoriser", Claim("unused", "r2", 3, "r2"), marks=pytest.mark.slow),
    ],
)
def test_all_that_an_erasure_claims_is_true(name, one):
    claims = told(name, Erasure())
    assert one in claims
    assert not in_words(claims, name)["false"]


@pytest.mark.slow
def test_what_survives_its_erasure_may_be_used_all_the_same():
    """In `parallel`, answers survive the erasure of e2 but follow its replacement."""
    both = {one.name: results("parallel", one) for one in (mean_swap.MeanSwap(), Erasure())}
    e2 = both["erasure"]["unchanged"].sel(
        step=0, group="train_ii", variable="e2", layer=1, pos="r1"
    )
    assert e2.sel(edit="variable") > 0.95 > 0.2 > e2.sel(edit="swapped")
    said = used.table(both, "train_ii")["verdict"]
    assert said.sel(step=0, variable="e2", layer=1, pos="r1") == "used, replaceable"


@pytest.mark.slow
def test_an_eraser_that_takes_nothing_is_found_out(monkeypatch):
    """Mutation: nothing is necessary any more, and what is used seems replaceable.

    The swap still contradicts a false claim. Without the swap as well, everything seems unused.
    """
    right = erasure.leace
    monkeypatch.setattr(
        erasure,
        "leace",
        lambda *args: (lambda e: Eraser(e.mean, 0 * e.out, e.back, e.rank))(right(*args)),
    )
    broken = measure(Erasure(), subject("idle_copy"), progress=False)
    both = {"mean_swap": results("idle_copy", mean_swap.MeanSwap()), "erasure": broken}
    said = used.table(both, "train_ii")["verdict"]
    assert said.sel(step=0, variable="e2", layer=1, pos="r1") == "used, replaceable"
    assert not in_words(told("idle_copy", Erasure(), broken), "idle_copy")["false"]
    monkeypatch.setattr(erasure, "swap", lambda states, *args: states)
    broken = measure(Erasure(), subject("idle_copy"), progress=False)
    claims = told("idle_copy", Erasure(), broken)
    assert "e2 unused at layer 1, r1" in in_words(claims, "idle_copy")["false"]


# Subspaces ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search():
    return Alignment(rank=54, steps=300)


@pytest.fixture(scope="module")
def composer():
    """Return a composer in a world of 40 entities.

    With 24 entities, fewer than 20 bridges have pairs for measuring isolation.
    """
    return planted_model("composer", dataset(n_entities=40, out_degree=5), ("train_ii",))


@pytest.fixture(scope="module")
def searched(search, composer):
    return measure(search, composer.subject, progress=False)


@pytest.mark.slow
def test_a_subspace_of_the_bridge_is_found_in_a_composer(search, composer, searched):
    one = searched.sel(step=0, group="test_ii", variable="e2", pos="r1")
    assert one["cause"].sel(edit="learnt", layer=1) > 0.8
    assert one["isolation"].sel(edit="learnt", layer=1) > 0.8
    assert one["cause"].sel(edit="random", layer=1) < 0.3
    # Nothing reads r1 after layer 2. An untrained model may hit the expected answer by chance.
    assert one["cause"].drop_sel(edit="untrained").sel(layer=3).max() == 0
    assert one["cause"].sel(edit="untrained").max() < 0.1
    claims = search.claims(searched.isel(step=0))
    assert Claim("used", "e2", 1, "r1") in claims
    assert not describe(claims, composer.mechanism)["false"]


@pytest.mark.slow
def test_an_unlearnt_subspace_makes_no_claim(search, composer, monkeypatch):
    """Mutation: the search returns its initial subspace."""
    monkeypatch.setattr(das, "align", lambda model, params, material, weights, *rest: weights)
    broken = measure(search, composer.subject, progress=False)
    assert search.claims(broken.isel(step=0)) == set()


def test_held_out_pairs_share_nothing_with_those_learnt_from(search):
    one = subject("composer")
    inputs = search.examples(one.model, one.dataset).inputs
    learnt = {tuple(row) for row in inputs["fit_tokens"][:, :2]}
    assert not learnt & {tuple(row) for row in inputs["tokens"][:, :2]}
    asked = inputs["expected"][0, 0] >= 0
    sources = inputs["source_tokens"][0, 0][asked]
    assert not learnt & {tuple(row) for row in sources[:, :2]}
    trained = {tuple(row) for row in prompts(one.dataset, np.arange(one.dataset.n_train))}
    composed = np.column_stack([sources[:, :2], inputs["tokens"][asked][:, 2]])
    assert not trained & {tuple(row) for row in composed}


@pytest.mark.parametrize(
    "options, says", [({"variable": "e9"}, "no variable 'e9'"), ({"positions": ["x"]}, "'x'")]
)
def test_what_is_not_there_cannot_be_searched_for(options, says):
    one = subject("composer")
    with pytest.raises(InputError, match=says):
        Alignment(**options).examples(one.model, one.dataset)


# Behavior ---------------------------------------------------------------------------------------


def test_answers_are_sorted_into_kinds():
    right = results("composer", Behaviour()).sel(step=0)["fraction"].sel(kind="right")
    np.testing.assert_array_equal(right, 1)
    found = results("memoriser", Behaviour()).sel(step=0)
    for name in ("fraction", "chance"):
        np.testing.assert_allclose(found[name].sum("kind"), 1, atol=1e-5)
    assert found["fraction"].sel(kind="right", group="train_ii") == 1
    assert list(found["kind"].values) == list(ANSWER_KINDS)


def test_only_a_memoriser_is_said_to_memorise():
    assert told("memoriser", Behaviour()) == {Claim("memorised", "e2")}
    assert told("composer", Behaviour()) == set()


def test_behaviour_that_asks_about_other_answers_is_found_out():
    """Mutation: the truth of another row is used, so that nothing is correct."""
    one, instrument = subject("memoriser"), Behaviour()
    examples = instrument.examples(one.model, one.dataset)
    wrong = {**examples.inputs, "kind": np.roll(examples.inputs["kind"], 1, axis=0)}
    measured = jax.jit(instrument.measure, static_argnums=0)
    found = measured(one.model, one.checkpoints[0], wrong, jax.random.key(0))
    assert found["fraction"][0].mean() < 0.3


# Decodable or used -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_table_tells_what_is_used_from_what_is_only_there():
    instruments = (mean_swap.MeanSwap(), Erasure())
    both = {one.name: results("idle_copy", one) for one in instruments}
    made = used.table(both, "train_ii")  # in test_ii fewer bridges count than a verdict needs
    e2 = made["verdict"].sel(step=0, variable="e2")
    assert e2.sel(layer=1, pos="r1") == "used"
    assert e2.sel(layer=2, pos="r2") == "decodable, not used"
    assert any("e2 at S[2, r2] is decodable" in said for said in used.disagreements(made))


def test_the_table_needs_both_interventions():
    with pytest.raises(InputError, match="erasure is missing"):
        used.table({"mean_swap": results("composer", mean_swap.MeanSwap())})


@pytest.mark.slow
def test_every_figure_can_be_drawn(search, searched):
    both = {one.name: results("idle_copy", one) for one in (mean_swap.MeanSwap(), Erasure())}
    drawn = used.figures(both)
    for instrument in (mean_swap.MeanSwap(), Erasure()):
        drawn += instrument.figures(both[instrument.name])
    drawn += Behaviour().figures(results("composer", Behaviour())) + search.figures(searched)
    assert [figure.name for figure in drawn] == [
        *("used", "mean_swap", "erasure", "behaviour", "behaviour_shortcuts"),
        *("das_cause", "das_isolation"),
    ]
    for figure in drawn:
        assert figure.caption and figure.title
        figure.drawing.canvas.draw()
