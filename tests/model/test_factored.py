"""Factored matrices compute what numpy computes from the full product."""

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.factored import FactoredMatrix, ov_matrices, qk_matrices
from tests.model.exchange.models import filled

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


A, B = draw(2, 3, 7, 4), draw(3, 4, 7)  # the batch axes [2, 3] and [3] broadcast
MADE, FULL = FactoredMatrix(A, B), A @ B


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_shapes_and_products():
    assert (MADE.shape, MADE.ndim) == ((2, 3, 7, 7), 4)
    assert (MADE.ldim, MADE.mdim, MADE.rdim) == (7, 4, 7)
    assert [factor.shape for factor in MADE.pair] == [(2, 3, 7, 4), (2, 3, 4, 7)]
    close(MADE.AB, FULL)
    close(MADE.BA, B @ A)
    close(MADE.T.AB, np.swapaxes(FULL, -2, -1))
    close((2 * MADE).AB, 2 * FULL)
    close((MADE * np.float32(3)).AB, 3 * FULL)
    close(MADE.unsqueeze(0).AB, FULL[None])
    close(MADE.get_corner(2), FULL[:2, :2, :2, :2])


def test_singular_values_eigenvalues_and_norm():
    left, values, right = MADE.svd()
    assert (left.shape, values.shape, right.shape) == ((2, 3, 7, 4), (2, 3, 4), (2, 3, 7, 4))
    close(values, np.linalg.svd(FULL, compute_uv=False)[..., :4])
    close(left * values[..., None, :] @ np.swapaxes(right, -2, -1), FULL)
    close(np.swapaxes(left, -2, -1) @ left, np.broadcast_to(np.eye(4), (2, 3, 4, 4)))
    close(MADE.norm(), np.linalg.norm(FULL, axis=(-2, -1)))
    close(left @ MADE.collapse_l(), FULL)
    close(MADE.collapse_r() @ np.swapaxes(right, -2, -1), FULL)
    even = MADE.make_even()
    close(even.AB, FULL)
    close(FactoredMatrix(even.A, np.eye(4)).S, FactoredMatrix(np.eye(4), even.B).S)
    # Characteristic polynomials do not depend on the order of the eigenvalues.
    for found, whole in zip(MADE.eigenvalues[0], FULL[0], strict=True):
        wanted = np.linalg.eigvals(whole)
        largest = wanted[np.argsort(-np.abs(wanted))[:4]]
        np.testing.assert_allclose(np.poly(found), np.poly(largest), rtol=1e-3, atol=1e-3)


def test_a_norm_far_below_the_norms_of_its_factors_is_accurate():
    """The trace of the product of the Gram matrices would be wrong by 1e-3 here."""
    columns = np.linalg.qr(RANDOM.standard_normal((8, 8)))[0].astype(np.float32)
    nearly_orthogonal = columns[4:] + np.float32(1e-5) * columns[:4]
    made = FactoredMatrix(columns[:4], nearly_orthogonal.T)
    np.testing.assert_allclose(made.norm(), 2e-5, rtol=0.05)


@pytest.mark.parametrize("width", [2, 9])
def test_products_with_arrays_and_vectors(width):
    right, left, vector = draw(7, width), draw(width, 7), draw(7)
    close((MADE @ right).AB, FULL @ right)
    close((left @ MADE).AB, left @ FULL)
    close((jax.numpy.asarray(left) @ MADE).AB, left @ FULL)
    close(MADE @ vector, FULL @ vector)
    close(vector @ MADE, vector @ FULL)
    other = FactoredMatrix(draw(7, 2), draw(2, width))
    close((MADE @ other).AB, FULL @ np.asarray(other.AB))
    # A product with few rows is not wider inside than before.
    assert (MADE @ other).mdim == 2


def test_indexing():
    close(MADE[1].AB, FULL[1])
    close(MADE[1, 2].AB, FULL[1, 2])
    close(MADE[:, 0].AB, FULL[:, 0])
    close(MADE[0, 1, 3].AB, FULL[0, 1, 3:4])
    close(MADE[0, 1, 3, -1].AB, FULL[0, 1, 3:4, -1:])
    close(MADE[0, 1, :, 2:5].AB, FULL[0, 1, :, 2:5])
    close(MADE[None].AB, FULL[None])
    with pytest.raises(InputError, match="at most 4 entries"):
        MADE[0, 0, 0, 0, 0]


def test_compiled_functions_take_and_return_factored_matrices():
    made = jax.jit(jax.vmap(lambda matrix: matrix @ matrix.T))(MADE[0])
    close(made.AB, FULL[0] @ np.swapaxes(FULL[0], -2, -1))


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="cannot be multiplied"):
        FactoredMatrix(draw(3, 4), draw(3, 4))
    with pytest.raises(InputError, match="do not broadcast"):
        FactoredMatrix(draw(2, 3, 4), draw(3, 4, 5))
    with pytest.raises(InputError, match="must have 7 rows"):
        MADE @ draw(6, 2)
    with pytest.raises(InputError, match="must have 7 columns"):
        draw(2, 6) @ MADE
    with pytest.raises(InputError, match="square"):
        _ = FactoredMatrix(draw(3, 2), draw(2, 4)).eigenvalues
    with pytest.raises(InputError, match="single number"):
        MADE * draw(7)


SPEC = Spec(d_vocab=5, n_ctx=3, n_layers=2, d_model=6, n_heads=2, d_mlp=8, n_loops=2, init_std=0.5)
MODEL = Transformer(SPEC)


def test_the_matrices_of_heads_are_what_heads_compute():
    """A head's score and output follow from the states that it reads."""
    params = filled(MODEL)
    names = ("hook_resid_pre", "ln1.hook_scale", "attn.hook_attn_scores", "attn.hook_result")
    sites = [f"blocks.1.{name}" for name in names]
    tokens = np.array([[1, 2, 3]])
    _, found = jax.jit(lambda p: MODEL.forward(p, tokens, sites=sites))(without_biases(params))
    state, scale, scores, result = (np.asarray(found[site]) for site in sites)
    ov, qk = (make(MODEL, params, fold_norm=True) for make in (ov_matrices, qk_matrices))
    assert ov.shape == qk.shape == (4, 2, 6, 6)
    read = (state / scale)[0]
    wanted = read @ np.asarray(qk[1].AB) @ read.T / np.sqrt(SPEC.d_head)
    below = np.tril(np.ones((3, 3), bool))
    close(scores[0][:, below], wanted[:, below])
    # The first position attends to itself only.
    close(result[0, 0], read[0] @ np.asarray(ov[1].AB))
    close(ov[3].AB, ov[1].AB)  # the second loop has the same weights
    plain = ov_matrices(MODEL, params)
    attn = params["blocks"]["1"]["attn"]
    close(plain[1].AB, attn["W_V"] @ attn["W_O"])
    attn_qk = attn["W_Q"] @ np.swapaxes(np.asarray(attn["W_K"]), -2, -1)
    close(qk_matrices(MODEL, params)[1].AB, attn_qk)


def without_biases(params):
    """Set the biases of attention and of `ln1` to zero, because the matrices do not have them."""
    params = jax.tree.map(np.asarray, params)
    for block in params["blocks"].values():
        for group, names in (("attn", ("b_Q", "b_K", "b_V", "b_O")), ("ln1", ("b",))):
            for name in names:
                block[group][name] = np.zeros_like(block[group][name])
    return params
