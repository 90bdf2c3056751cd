"""Decoding through a bottleneck: an explicit projector, facts held out, and what gets through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.reading import decoding
from implicit_reasoning.analysis.reading.decoding import BOTTLENECKS, WIDTH, Decoding
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
    """The projection onto the largest differences of class means, of the rows fitted."""
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
        for number in (0, 1):  # true tails, shuffled ones
            classes = inputs["classes"][0, number]
            wanted, rank = by_hand(states, classes, first & ~own, WIDTH)
            np.testing.assert_allclose(found[number][own], wanted[own], atol=1e-4)
            assert number or width[0, fold] == rank <= WIDTH
    changed = np.asarray(found[2]) - np.asarray(found[0])
    assert np.abs(changed).max() > 0.1  # random directions are others, and as many
    own = inputs["fold"] == 0
    spread = np.asarray(found[2])[own] - np.asarray(found[2])[own].mean(0)
    assert np.linalg.matrix_rank(spread, tol=1e-3) == min(width[0, 0], own.sum() - 1)


def test_a_bottleneck_is_found_on_other_facts(dataset, examples):
    """The facts of a bridge are in different folds, and one that is alone does not count."""
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
    """`result(states)`: of states that are put in place of the model's, compiled once."""
    patch = pytest.MonkeyPatch()

    def result(states):
        plant(patch, decoding, states.astype(np.float32))
        return run(Decoding(), dataset, model())[0].isel(step=0)

    def model():
        # Blocks that add nothing: what is put in is what is unembedded.
        return make_model(dataset, normalization="none", init_std=0.02)

    yield result
    patch.undo()


def coded(dataset, examples):
    """Small random states, and at S[1, r1] the tail's column of the unembedding."""
    model = make_model(dataset, normalization="none", init_std=0.02)
    columns = np.array(random_subject(model, dataset).params()["unembed"]["W_U"][0]).T
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    states = 0.1 * random_states(examples.inputs["tokens"], 3)
    states[1, :, 1] += 10 * columns[examples.inputs["wanted"][0, 0]]
    return states


def test_a_code_of_the_bridge_gets_through_and_that_of_the_prefix_does_not(
    dataset, examples, planted
):
    """Layer 1: the column of the tail, in all facts of a bridge. Layer 2: one of the fact's own.

    The second is unembedded to another token for each fact: the last layer's full run is nothing
    but that, and what a bottleneck makes of it does not find the tail either.
    """
    result = planted(coded(dataset, examples))
    e2 = result["top1"].sel(variable="e2", truth="true", group="id")
    print(e2.transpose("reading", "layer").values, result["width"].values)
    assert min(e2.sel(layer=1, reading=["full run", BOTTLENECKS[0]])) > 0.9
    assert e2.sel(layer=1, reading=list(BOTTLENECKS[1:])).max() < 0.7
    assert e2.sel(layer=2).max() < 0.2
    assert result["full_run_by_construction"].values.tolist() == [False, True, True]


def test_claims_are_of_the_bottleneck_only(dataset, examples, planted):
    result, here = planted(coded(dataset, examples)), Claim("decodable", "e2", 1, "r1")
    loc = {"variable": "e2", "layer": 1, "group": "id"}

    def claims(value, **where):
        changed = result.copy(deep=True)
        for end in ("", "_low", "_high"):
            changed[f"top1{end}"].loc[{**loc, **where}] = value
        return Decoding().claims(changed)

    true = {"truth": "true"}
    for reading in BOTTLENECKS[1:]:
        result["top1_high"].loc[loc | true | {"reading": reading}] = 0.1
    assert claims(1.0, reading=BOTTLENECKS[0], **true) == {here}
    assert claims(0.5, reading=BOTTLENECKS[0], **true) == set()
    for reading in ("immediate", "full run"):  # neither makes a claim, nor takes one away
        assert claims(1.0, reading=reading) == claims(0.0, reading=reading)
    result["top1"].loc[loc | true | {"reading": BOTTLENECKS[0]}] = 1.0
    result["top1_low"].loc[loc | true | {"reading": BOTTLENECKS[0]}] = 1.0
    for reading in BOTTLENECKS[1:]:  # each null can take it away
        assert claims(0.6, reading=reading, **true) == set()
