"""Every planted head that copies a variable is found, with its variable, and no other head is."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, NotApplicable
from implicit_reasoning.analysis.components import head_moves
from implicit_reasoning.analysis.components.head_moves import GROUPS, HeadMoves
from implicit_reasoning.analysis.components.moved_vectors import identify, identify_pairs
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.analysis.truth.known import scored_world
from implicit_reasoning.model.planted import MECHANISMS
from implicit_reasoning.worlds import build
from tests.analysis.planted_subject import planted_model
from tests.model.exchange.models import initial


def planted(name):
    data = scored_world(0)
    only_trained = name in ("prefix_memoriser", "cluster_composer")
    return planted_model(name, data, ("train_ii",) if only_trained else data.splits)


def claims_of(subject):
    result = measure(HeadMoves(), subject, progress=False)
    return HeadMoves().claims(result.isel(step=0, drop=True)), result


def moves(known):
    return {claim for claim in known.mechanism.true if claim.kind == "moves"}


@pytest.fixture(scope="module")
def idle_copy():
    """Return the claims and the result of a model with a head that copies and is not used."""
    known = planted("idle_copy")
    params = jax.device_get(known.subject.checkpoints[0])
    noise = initial(known.subject.model, seed=1)
    return known, *claims_of(InMemory(known.subject.model, known.subject.dataset, [params, noise]))


def test_an_idle_copy_is_copied_like_a_used_one(idle_copy):
    known, found, _ = idle_copy
    assert found == moves(known)
    assert sorted(claim.variable for claim in found) == ["e1", "e2", "e2"]


def test_random_weights_copy_nothing(idle_copy):
    """Attention of random weights is spread over positions."""
    _, _, result = idle_copy
    assert HeadMoves().claims(result.isel(step=1, drop=True)) == set()


def test_the_vector_of_a_bridge_identifies_the_bridge_only(idle_copy):
    _, found, result = idle_copy
    heads = [claim.unit for claim in found if claim.variable == "e2"]
    one = result.isel(step=0).sel(route="r1->r2", truth="true")
    for head in heads:
        shares = one.identified.sel(block=head.layer, head=head.head)
        assert (shares.sel(variable="e2") == 1).all()  # also for facts that begin no chain
        assert (shares.sel(variable=["e1", "r1", "prefix"]) < 0.5).all()
        assert one.mass.sel(block=head.layer, head=head.head, group=GROUPS[0]) > 0.99
    shuffled = result.isel(step=0).sel(truth="shuffled", group=GROUPS[0])
    assert shuffled.identified.sel(variable=["e1", "e2", "prefix"]).max() < 0.2
    # e2 is not known at e1, and e1 has no longer prefix.
    first = result.isel(step=0).sel(route="e1->r1")
    assert (first.identified_n.sel(variable=["r1", "e2", "prefix"]) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix_memoriser", "cluster_composer"])
def test_codes_that_resemble_a_bridge_are_told_from_it(name):
    """One head copies an index of the prefix; the other a code that only chains set."""
    known = planted(name)
    found, _ = claims_of(known.subject)
    assert found == moves(known)
    assert {"prefix", "cluster"} & {claim.variable for claim in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_all_planted_heads_are_found(name):
    known = planted(name)
    assert claims_of(known.subject)[0] == moves(known)


@pytest.mark.slow
def test_means_that_contain_the_fact_itself_are_noticed_by_the_null(monkeypatch):
    """Then an index of the prefix identifies e1, r1 and e2, and shuffled values just as well."""

    def without_leaving_out(vectors, labels, fits, classes):
        return identify_pairs(vectors, vectors, labels, labels)

    monkeypatch.setattr(head_moves, "identify", without_leaving_out)
    known = planted("prefix_memoriser")
    found, result = claims_of(known.subject)
    head = next(claim.unit for claim in found if claim.variable == "prefix")
    at = {"block": head.layer, "head": head.head, "route": "r1->r2", "group": GROUPS[0]}
    assert (result.identified.isel(step=0).sel(at).sel(variable=["e1", "e2"]) > 0.9).all()
    assert found == moves(known)


@pytest.mark.slow
def test_values_of_the_wrong_position_are_noticed(monkeypatch):
    """If the vector had the value at the target, no head would copy anything."""
    right = head_moves.moved_vectors

    def at_the_target(model, params, tokens, source, target):
        there = right(model, params, tokens, target, target)
        return right(model, params, tokens, source, target)._replace(vectors=there.vectors)

    monkeypatch.setattr(head_moves, "moved_vectors", at_the_target)
    known = planted("idle_copy")
    assert claims_of(known.subject)[0] != moves(known)


@jax.jit
def both(vectors, labels, fits, classes):
    return identify(vectors, labels, fits, classes), identify_pairs(
        vectors, vectors[::-1], labels, labels[::-1]
    )


def test_identification_leaves_the_row_out():
    """Equal to computing every mean anew, without the row."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4], np.int32)
    fits = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    vectors = rng.standard_normal((5, 3))[labels] + 0.6 * rng.standard_normal((10, 3))
    vectors = vectors.astype(np.float32)
    found, pairs = both(vectors, labels, fits, np.arange(5, dtype=np.int32))
    wanted, wanted_pairs = [], []
    for row, label in enumerate(labels):
        distance = np.full(5, np.inf)
        for value in range(5):
            members = (labels == value) & (fits > 0) & (np.arange(10) != row)
            if members.any():
                distance[value] = np.square(vectors[row] - vectors[members].mean(0)).sum()
        own, rest = distance[label], np.delete(distance, label)
        wanted.append(bool(own < rest.min()))
        means = np.stack([vectors[labels == value].mean(0) for value in range(5)])
        distance = np.square(vectors[9 - row] - means).sum(1)
        wanted_pairs.append(bool(distance.argmin() == labels[9 - row]))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(pairs, wanted_pairs)
    assert 0 < sum(wanted) < 10


def test_tasks_without_chains_are_refused(idle_copy):
    known, *_ = idle_copy
    sizes = {"modulus": 7, "train_fraction": 0.5, "probes": 9, "world_seed": 0}
    sums = build(SimpleNamespace(name="modular_addition", **sizes))
    with pytest.raises(NotApplicable, match="chains"):
        HeadMoves().examples(known.subject.model, sums)


@pytest.mark.slow
def test_figures_say_how_to_read_them(idle_copy):
    (figure,) = HeadMoves().figures(idle_copy[2])
    assert "null" in figure.caption
    figure.drawing.draw_without_rendering()
