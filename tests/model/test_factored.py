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
FULL = A @ B
NARROW, WIDE, ROWS, VECTOR = draw(7, 2), draw(7, 9), draw(9, 7), draw(7)
PAIR = draw(7, 2), draw(2, 9)
INDICES = {
    "one": (1,),
    "both": (1, 2),
    "second": (slice(None), 0),
    "row": (0, 1, 3),
    "entry": (0, 1, 3, -1),
    "columns": (0, 1, slice(None), slice(2, 5)),
    "new": (None,),
}


@jax.jit
def everything(a, b):
    """Return many results in one program."""
    made = FactoredMatrix(a, b)
    even, other = made.make_even(), FactoredMatrix(*PAIR)
    return {
        "products": (made.AB, made.BA, made.T.AB, (2 * made).AB, (made * np.float32(3)).AB),
        "shapes": (made.unsqueeze(0).AB, made.get_corner(2)),
        "svd": made.svd(),
        "eigenvalues": made.eigenvalues[0],
        "norm": made.norm(),
        "collapsed": (made.collapse_l(), made.collapse_r()),
        "even": (even.AB, even.A, even.B),
        "right": [(made @ right).AB for right in (NARROW, WIDE)],
        "left": [(left @ made).AB for left in (NARROW.T, ROWS)],
        "array": (jax.numpy.asarray(ROWS) @ made).AB,
        "vectors": (made @ VECTOR, VECTOR @ made),
        "factored": made @ other,
        "indexed": {name: made[index].AB for name, index in INDICES.items()},
        "mapped": jax.vmap(lambda matrix: matrix @ matrix.T)(made[0]),
    }


@pytest.fixture(scope="module")
def found():
    return everything(A, B)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def transposed(matrix):
    return np.swapaxes(matrix, -2, -1)


def test_shapes_and_products(found):
    made = FactoredMatrix(A, B)
    assert (made.shape, made.ndim) == ((2, 3, 7, 7), 4)
    assert (made.ldim, made.mdim, made.rdim) == (7, 4, 7)
    assert [factor.shape for factor in made.pair] == [(2, 3, 7, 4), (2, 3, 4, 7)]
    wanted = FULL, B @ A, transposed(FULL), 2 * FULL, 3 * FULL
    for mine, theirs in zip(found["products"], wanted, strict=True):
        close(mine, theirs)
    close(found["shapes"][0], FULL[None])
    close(found["shapes"][1], FULL[:2, :2, :2, :2])


def test_singular_values_eigenvalues_and_norm(found):
    left, values, right = (np.asarray(part) for part in found["svd"])
    assert (left.shape, values.shape, right.shape) == ((2, 3, 7, 4), (2, 3, 4), (2, 3, 7, 4))
    close(values, np.linalg.svd(FULL, compute_uv=False)[..., :4])
    close(left * values[..., None, :] @ transposed(right), FULL)
    close(transposed(left) @ left, np.broadcast_to(np.eye(4), (2, 3, 4, 4)))
    close(found["norm"], np.linalg.norm(FULL, axis=(-2, -1)))
    close(left @ found["collapsed"][0], FULL)
    close(found["collapsed"][1] @ transposed(right), FULL)
    product, first, second = found["even"]
    close(product, FULL)
    both = [np.linalg.svd(factor, compute_uv=False) for factor in (first, second)]
    close(*both)
    # Characteristic polynomials do not depend on the order of the eigenvalues.
    for mine, whole in zip(found["eigenvalues"], FULL[0], strict=True):
        wanted = np.linalg.eigvals(whole)
        largest = wanted[np.argsort(-np.abs(wanted))[:4]]
        np.testing.assert_allclose(np.poly(mine), np.poly(largest), rtol=1e-3, atol=1e-3)


def test_a_norm_far_below_the_norms_of_its_factors_is_accurate():
    """The trace of the product of the Gram matrices would be wrong by 1e-3 here."""
    columns = np.linalg.qr(RANDOM.standard_normal((8, 8)))[0].astype(np.float32)
    nearly_orthogonal = columns[4:] + np.float32(1e-5) * columns[:4]
    made = FactoredMatrix(columns[:4], nearly_orthogonal.T)
    np.testing.assert_allclose(made.norm(), 2e-5, rtol=0.05)


def test_products_with_arrays_and_vectors(found):
    for mine, right in zip(found["right"], (NARROW, WIDE), strict=True):
        close(mine, FULL @ right)
    for mine, left in zip(found["left"], (NARROW.T, ROWS), strict=True):
        close(mine, left @ FULL)
    close(found["array"], ROWS @ FULL)
    close(found["vectors"][0], FULL @ VECTOR)
    close(found["vectors"][1], VECTOR @ FULL)
    close(found["factored"].AB, FULL @ PAIR[0] @ PAIR[1])
    assert found["factored"].mdim == 2  # the smallest inner dimension


def test_indexing(found):
    wanted = {name: FULL[index] for name, index in INDICES.items()}
    wanted |= {"row": FULL[0, 1, 3:4], "entry": FULL[0, 1, 3:4, -1:]}
    for name, mine in found["indexed"].items():
        close(mine, wanted[name])
    with pytest.raises(InputError, match="at most 4 entries"):
        FactoredMatrix(A, B)[0, 0, 0, 0, 0]


def test_compiled_functions_take_and_return_factored_matrices(found):
    assert isinstance(found["mapped"], FactoredMatrix)
    close(found["mapped"].AB, FULL[0] @ transposed(FULL[0]))


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="cannot be multiplied"):
        FactoredMatrix(draw(3, 4), draw(3, 4))
    with pytest.raises(InputError, match="do not broadcast"):
        FactoredMatrix(draw(2, 3, 4), draw(3, 4, 5))
    with pytest.raises(InputError, match="must have 7 rows"):
        FactoredMatrix(A, B) @ draw(6, 2)
    with pytest.raises(InputError, match="must have 7 columns"):
        draw(2, 6) @ FactoredMatrix(A, B)
    with pytest.raises(InputError, match="square"):
        _ = FactoredMatrix(draw(3, 2), draw(2, 4)).eigenvalues
    with pytest.raises(InputError, match="single number"):
        FactoredMatrix(A, B) * draw(7)


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
