"""Decoding through a bottleneck agrees with an explicit projector fitted on other facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, measure
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.reading import decoding
from implicit_reasoning.analysis.reading.decoding import BOTTLENECKS, WIDTH, Decoding
from implicit_reasoning.analysis.truth.known import knowledge
from implicit_reasoning.model.planted.routes import Hops, MechanismBuilder
from tests.analysis.planted_subject import dataset as planted_dataset
from tests.analysis.tiny_states import (
    make_dataset,
    make_model,
    plant,
    random_states,
    random_subject,
    run,
)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def examples(dataset):
    return Decoding().examples(make_model(dataset), dataset)


def by_hand(states, classes, fitted, width):
    """Project onto the largest differences of class means, computed from the fitted rows."""
    x = states.astype(np.float64)
    means = np.stack([x[fitted & (classes == c)].mean(0) for c in np.unique(classes[fitted])])
    centre = means.mean(0)
    _, size, rows = np.linalg.svd(means - centre)
    rows = rows[: min(width, (size > 1e-4 * size[0]).sum())]
    return centre + (x - centre) @ rows.T @ rows, len(rows)


def test_states_come_out_as_an_explicit_projector_says(dataset, examples):
    inputs = examples.inputs
    n_rows = len(inputs["fold"])
    states = np.random.default_rng(0).normal(size=(n_rows, 48)).astype(np.float32)
    found, width = decoding._through_bottlenecks(
        jnp.asarray(states), inputs, dataset.n_vocab, jax.random.key(0)
    )
    first = examples.group == 0
    for fold in range(decoding._FOLDS):
        own = inputs["fold"] == fold
        for number in (0, 1):  # true tails, then shuffled tails
            classes = inputs["classes"][0, number]
            wanted, rank = by_hand(states, classes, first & ~own, WIDTH)
            np.testing.assert_allclose(found[number][own], wanted[own], atol=1e-4)
            assert number or width[0, fold] == rank <= WIDTH
    changed = np.asarray(found[2]) - np.asarray(found[0])
    assert np.abs(changed).max() > 0.1  # there are equally many random directions, and they differ
    own = inputs["fold"] == 0
    spread = np.asarray(found[2])[own] - np.asarray(found[2])[own].mean(0)
    assert np.linalg.matrix_rank(spread, tol=1e-3) == min(width[0, 0], own.sum() - 1)


def test_a_bottleneck_is_found_on_other_facts(dataset, examples):
    """The facts of a bridge are in different folds, and a bridge with one fact does not count."""
    inputs, first = examples.inputs, examples.group == 0
    tails = inputs["wanted"][0, 0]
    for bridge in np.unique(tails):
        folds = inputs["fold"][first & (tails == bridge)]
        counts = np.bincount(folds, minlength=decoding._FOLDS)
        assert counts.max() - counts.min() <= 1
        for row in np.flatnonzero(tails == bridge):
            others = first & (tails == bridge) & (inputs["fold"] != inputs["fold"][row])
            assert inputs["counted"][0, row] == others.any()
    assert (inputs["classes"][:, :, ~first] == -1).all()
    true, shuffled = np.sort(inputs["classes"][0][:, first])
    np.testing.assert_array_equal(true, shuffled)


@pytest.fixture(scope="module")
def planted(dataset, examples):
    """Return `result(states)`, which measures given states instead of the model's."""
    # These blocks add almost nothing, so the unembedding reads the states that are put in.
    model = make_model(dataset, normalization="none", init_std=0.02)

    def result(states):
        with pytest.MonkeyPatch.context() as patch:
            plant(patch, decoding, states.astype(np.float32))
            return run(Decoding(), dataset, model)[0].isel(step=0)

    return result


def unembedding(dataset):
    """Return the columns of the model's unembedding as rows of norm 1, one per token."""
    model = make_model(dataset, normalization="none", init_std=0.02)
    columns = np.array(random_subject(model, dataset).params()["unembed"]["W_U"][0]).T
    return columns / np.linalg.norm(columns, axis=1, keepdims=True)


def coded(dataset, examples):
    """Return small random states with the tail's column of the unembedding at S[1, r1]."""
    states = 0.1 * random_states(examples.inputs["tokens"], 3)
    states[1, :, 1] += 10 * unembedding(dataset)[examples.inputs["wanted"][0, 0]]
    return states


HERE = Claim("decodable", "e2", 1, "r1")


def test_a_code_of_the_bridge_gets_through(dataset, examples, planted):
    """These states also pass other bottlenecks, so only the unembedding decides here."""
    result = planted(coded(dataset, examples))
    e2 = result["top1"].sel(variable="e2", truth="true", group="id")
    assert e2.sel(layer=1).min() > 0.9 and e2.sel(layer=[0, 2]).max() < 0.2
    assert result["full_run_by_construction"].values.tolist() == [False, True, True]
    assert Decoding().claims(result) == {HERE}


def test_what_facts_of_a_bridge_do_not_share_does_not_get_through(dataset, examples, planted):
    """A direction that differs among the facts of a bridge does not pass the bottleneck.

    Every fourth fact of a bridge has the column of its tail. All other facts have the column of
    another token. In addition, all facts of a bridge share a code that the unembedding does not
    read. The full run finds e2 for every fourth fact. The column of most other facts of the bridge
    passes the bottleneck.
    """
    columns, tails = unembedding(dataset), examples.inputs["wanted"][0, 0]
    shown = (tails + 1) % 16
    for bridge in np.unique(tails):
        own = np.flatnonzero((tails == bridge) & (examples.group == 0))[::4]
        shown[own] = bridge
    unread = np.linalg.svd(columns)[2][len(columns) :]  # 24 of 48 dimensions
    shared = np.random.default_rng(5).normal(size=(dataset.n_vocab, len(unread))) @ unread
    states = 0.1 * random_states(examples.inputs["tokens"], 3)
    states[1, :, 1] += 10 * columns[shown] + 20 * shared[tails]
    e2 = planted(states)["top1"].sel(variable="e2", truth="true", group="id", layer=1)
    assert e2.sel(reading="full run") > 0.2 > 0.1 > e2.sel(reading=BOTTLENECKS[0])


def test_claims_are_of_the_bottleneck_only(dataset, examples, planted):
    """The mutations break each condition of a claim separately."""
    found = planted(coded(dataset, examples))
    where = {"variable": "e2", "layer": 1, "group": "id"}

    def claims(**values):
        """Return the claims after replacing the accuracies of e2 at S[1, r1], by reading."""
        result = found.copy(deep=True)
        for reading, value in {"full run": 1.0, **values}.items():
            for end in ("", "_low", "_high"):
                result[f"top1{end}"].loc[where | {"truth": "true", "reading": reading}] = value
        return Decoding().claims(result)

    through, shuffled, random = BOTTLENECKS
    none_other = {shuffled: 0.1, random: 0.1}
    assert claims(**{through: 1.0, "immediate": 0.0, **none_other}) == {HERE}
    assert claims(**{through: 0.5, "immediate": 1.0, **none_other}) == set()
    for other in (shuffled, random):
        assert claims(**{through: 1.0, "immediate": 0.0, **none_other, other: 1.0}) == set()
        assert claims(**{through: 1.0, "immediate": 1.0, **none_other, other: 1.0}) == {HERE}


@pytest.mark.slow
def test_nothing_is_claimed_where_e2_is_yet_to_be_computed():
    """A composer has e1 at r1 after block 0, and looks the bridge up in block 2.

    After block 0 the full run finds every bridge, because the following blocks always compute it.
    """
    plan = MechanismBuilder("late", knowledge(planted_dataset(), ("train_ii",)), None)
    plan.two_hops(Hops(0, 2, 3, 3), bridge=plan.draft.output)
    late = plan.planted("factors", "grounded")
    subject = InMemory(late.model, planted_dataset(), [late.params])
    whole = measure(Decoding(), subject, progress=False)
    result = whole.isel(step=0)
    e2 = result["top1"].sel(variable="e2", truth="true", group="id")
    assert e2.sel(reading="full run", layer=[1, 2, 3]).min() == 1
    claims = Decoding().claims(result)
    assert claims and claims <= {Claim("decodable", "e2", layer, "r1") for layer in (3, 4)}
    drawn = Decoding().figures(whole)
    assert "shows only that the prefix" in drawn[0].caption and len(drawn) == 3
