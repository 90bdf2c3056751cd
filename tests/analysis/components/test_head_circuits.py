"""Composition that is written into weights is found, and none is found in random weights."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.analysis.components import head_circuits
from implicit_reasoning.analysis.components.head_circuits import (
    DRAWS,
    HeadCircuits,
    composition_scores,
    leave_one_out_z,
)
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.factored import FactoredMatrix
from tests.analysis.subjects import DATASET
from tests.model.exchange.models import initial

SIZES = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_mlp": 4, "head_width": 4, "tied": True}
MODEL = Transformer(Spec(d_vocab=DATASET.n_vocab, n_ctx=DATASET.n_ctx, **SIZES, init_std=0.5))


def composing():
    """Return weights in which a1.h1 uses what a0.h0 writes for its keys, and a0.h1 copies."""
    params = jax.tree.map(np.array, initial(MODEL, seed=3))
    first, second = (params["blocks"][block]["attn"] for block in "01")
    second["W_K"][1] = first["W_O"][0].T
    first["W_O"][1] = first["W_V"][1].T
    return params


@pytest.fixture(scope="module")
def result():
    subject = InMemory(MODEL, DATASET, [initial(MODEL, seed=3), composing()])
    return measure(HeadCircuits(), subject, progress=False)


def test_only_the_written_composition_is_significant(result):
    p_values = result.p_value.isel(step=1)
    found = p_values.where(p_values <= 0.05, drop=True)
    (pair,) = found.stack(pair=found.dims).dropna("pair").pair.values
    assert tuple(pair) == ("key", 0, 0, 1, 1)
    assert result.z.isel(step=1).sel(kind="key", writer_head=0, head=1).max() > 10


def test_random_weights_do_not_compose(result):
    assert result.p_value.isel(step=0).min() > 0.05
    composition, null = (result[name].isel(step=0) for name in ("composition", "null_mean"))
    np.testing.assert_allclose(composition.mean(), null.mean(), rtol=0.05)
    # A random rotation keeps the square of the length of a product, 1 / d_model on average.
    np.testing.assert_allclose(null.mean(), 1 / np.sqrt(32), rtol=0.1)


def test_only_earlier_blocks_write_for_later_ones(result):
    there = result.composition.isel(step=0).notnull().all(("kind", "writer_head", "head"))
    np.testing.assert_array_equal(there, [[False, True], [False, False]])
    assert result.p_value.isel(step=0).notnull().sum() == 3 * 2 * 2


def test_scores_are_those_of_the_full_matrices(result):
    """The full matrices contain the norm, here the centring only."""
    params, centred = composing(), np.eye(32) - 1 / 32
    first, second = (params["blocks"][block]["attn"] for block in "01")
    for writer, reader in np.ndindex(2, 2):
        ov = centred @ first["W_V"][writer] @ first["W_O"][writer]
        qk = centred @ second["W_Q"][reader] @ second["W_K"][reader].T @ centred
        later = centred @ second["W_V"][reader] @ second["W_O"][reader]
        for kind, matrix in (("query", qk), ("key", qk.T), ("value", later)):
            lengths = np.linalg.norm(ov) * np.linalg.norm(matrix)
            at = {"writer_block": 0, "writer_head": writer, "block": 1, "head": reader}
            found = result.composition.isel(step=1).sel(at).sel(kind=kind)
            assert found == pytest.approx(np.linalg.norm(ov @ matrix) / lengths, rel=1e-4)


def test_a_head_with_a_symmetric_positive_matrix_copies(result):
    """W_V W_O = W_V W_V^T has no negative eigenvalue, and W_U = W_E^T."""
    copying = result.copying.isel(step=1)
    assert copying.sel(block=0, head=1) > 0.95  # centring changes the eigenvalues a little
    others = copying.stack(cell=("block", "head")).drop_sel(cell=(0, 1))
    assert np.abs(others).max() < 0.9
    attn, tokens = composing()["blocks"]["1"]["attn"], composing()["embed"]["W_E"]
    centred = np.eye(32) - 1 / 32
    whole = tokens @ centred @ attn["W_V"][0] @ attn["W_O"][0] @ centred @ tokens.T
    values = np.linalg.eigvals(whole)
    wanted = values.real.sum() / np.abs(values).sum()
    np.testing.assert_allclose(copying.sel(block=1, head=0), wanted, atol=1e-3)
    assert (result.null_copying < 0.7).all()


def test_composition_scores_of_batches():
    rng = np.random.default_rng(0)
    shapes = (3, 1, 6, 2), (3, 1, 2, 6), (1, 2, 6, 2), (1, 2, 2, 6)
    factors = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    @jax.jit
    def scores(a, b, c, d):
        return composition_scores(FactoredMatrix(a, b), FactoredMatrix(c, d))

    found = scores(*factors)
    left, right = factors[0] @ factors[1], factors[2] @ factors[3]
    product = left @ right
    lengths = (np.linalg.norm(one, axis=(-2, -1)) for one in (left, right))
    wanted = np.linalg.norm(product, axis=(-2, -1)) / np.prod(np.broadcast_arrays(*lengths), axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_z_values_of_draws_are_computed_from_the_other_draws():
    draws = np.random.default_rng(0).normal(3, 2, (7, 2, 3)).astype(np.float32)
    found = jax.jit(leave_one_out_z)(draws)
    for number, draw in enumerate(draws):
        others = np.delete(draws, number, axis=0)
        wanted = (draw - others.mean(0)) / others.std(0, ddof=1)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-4, atol=1e-5)


def test_p_values_follow_the_order_of_the_statistic(result):
    p_values = result.p_value.isel(step=1).stack(pair=result.p_value.dims[1:]).dropna("pair")
    z = result.z.isel(step=1).stack(pair=result.z.dims[1:]).dropna("pair")
    order = np.argsort(-z.values)
    assert (np.diff(p_values.values[order]) >= 0).all()
    assert p_values.min() == pytest.approx(1 / (1 + DRAWS))
    assert p_values.max() > 0.5


@pytest.mark.slow
def test_rotations_of_both_heads_together_are_noticed(monkeypatch):
    """A null that does not turn the writer has the composition itself."""
    monkeypatch.setattr(head_circuits, "_turned", lambda matrix, key: matrix)
    subject = InMemory(MODEL, DATASET, [composing()])
    found = measure(HeadCircuits(), subject, progress=False)
    assert not (found.p_value <= 0.05).any()


@pytest.mark.slow
def test_figures_say_how_to_read_them(result):
    (figure,) = HeadCircuits().figures(result)
    assert "null" in figure.caption
    figure.drawing.draw_without_rendering()
