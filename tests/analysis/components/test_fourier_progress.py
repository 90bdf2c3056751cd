"""Progress measures of modular addition on planted weights, and against explicit transforms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, NotApplicable
from implicit_reasoning.analysis.components import fourier, fourier_progress
from implicit_reasoning.analysis.components.fourier_figures import PHASES, phase_ends
from implicit_reasoning.analysis.components.fourier_progress import FourierProgress, split_losses
from implicit_reasoning.analysis.components.losses import cross_entropy
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import build
from tests.analysis import subjects

P, KEYS, SCALE = 11, (2, 5), 8.0
DATASET = build(
    SimpleNamespace(
        name="modular_addition", modulus=P, train_fraction=0.4, probes=1_000, world_seed=0
    )
)
A, B = np.divmod(np.arange(P * P), P)
SUM = (A + B) % P
SPEC = Spec(
    d_vocab=P + 1,
    n_ctx=3,
    n_layers=1,
    d_model=4 * P + 2,
    n_heads=2,
    d_mlp=P * P,
    head_width=P,
    act_fn="relu",
    normalization="none",
)


def planted(table):
    """Return the weights of a model whose logits of pair (a, b) are `table[P * a + b]`.

    Head 0 copies a and head 1 copies b to "=". A neuron is active for one pair only.
    """
    params = jax.tree.map(np.zeros_like, jax.device_get(subjects.initial(Transformer(SPEC), 0)))
    block, number = params["blocks"]["0"], np.arange(P)
    params["embed"]["W_E"][number, number] = 1
    for head in (0, 1):
        params["pos_embed"]["W_pos"][head, P + head] = 1
        block["attn"]["W_K"][head, P + head, head] = 1
        block["attn"]["b_Q"][head, head] = 400  # the pattern is 1 up to rounding
        block["attn"]["W_V"][head, number, number] = 1
        out = P + 2 + head * P + number
        block["attn"]["W_O"][head, number, out] = 1
        block["mlp"]["W_in"][out[(A, B)[head]], np.arange(P * P)] = 1
    block["mlp"]["b_in"][:] = -1
    block["mlp"]["W_out"][:, 3 * P + 2 :] = table
    params["unembed"]["W_U"][3 * P + 2 + number, number] = 1
    return params


def waves(frequencies):
    """Return the sum of cos(w (a + b - c)) over frequencies, [pair, c]."""
    angle = 2 * np.pi * (SUM[:, None] - np.arange(P)) / P
    return SCALE * sum(np.cos(k * angle) for k in frequencies)


def loss_of(logits, answer):
    """Return the cross-entropy in float64."""
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, np.broadcast_to(answer, logits.shape[:-1])[..., None], -1)
    others = np.where(np.arange(logits.shape[-1]) == answer[..., None], -np.inf, logits - own)
    return np.log1p(np.exp(others).sum(-1))


@pytest.fixture(scope="module")
def result():
    """Measure a memoriser, then the circuit: key frequencies are those of the last checkpoint."""
    is_train = np.zeros(P * P, bool)
    trained = slice(DATASET.n_train)
    is_train[DATASET.truth["a"][trained] * P + DATASET.truth["b"][trained]] = True
    table = SCALE * (is_train[:, None] & (SUM[:, None] == np.arange(P)))
    checkpoints = [planted(table), planted(waves(KEYS))]
    return measure(
        FourierProgress(), InMemory(Transformer(SPEC), DATASET, checkpoints), progress=False
    )


def test_the_planted_circuit_is_all_in_its_frequencies(result):
    last = result.isel(step=-1)
    own = loss_of(waves(KEYS), SUM).mean()
    assert last.frequency[last.is_key].values.tolist() == list(KEYS)
    np.testing.assert_allclose(last.full_loss, own, rtol=1e-4)
    np.testing.assert_allclose(last.restricted_loss, own, rtol=1e-4)
    np.testing.assert_allclose(last.excluded_loss, np.log(P), rtol=1e-5)
    np.testing.assert_allclose(last.null_restricted_loss, np.log(P), rtol=1e-5)
    np.testing.assert_allclose(last.null_excluded_loss, own, rtol=1e-4)
    assert (last.correct == 1).all()
    assert last.n_states.values.tolist() == [P, P, P]  # a sum is a cluster
    assert last.n_examples.sel(group="train_pairs") == DATASET.n_train


def test_norms_of_the_planted_weights(result):
    last = result.isel(step=-1)
    np.testing.assert_allclose(last.key_norm, [2 / 5, 1], rtol=1e-5)  # one-hot rows have all waves
    np.testing.assert_allclose(last.gini, [0, 1 - 2 / 5], atol=1e-5)
    wanted = [1 / 2 if k in KEYS else 0 for k in range(1, P // 2 + 1)]
    np.testing.assert_allclose(last.norm.sel(matrix="W_L"), wanted, atol=1e-6)
    squares = sum((leaf**2).sum() for leaf in jax.tree.leaves(planted(waves(KEYS))))
    np.testing.assert_allclose(last.squared_weights, squares, rtol=1e-5)


def test_a_memoriser_does_not_need_the_frequencies(result):
    first = result.isel(step=0)
    assert first.full_loss.sel(group="train_pairs") < 0.01
    assert first.excluded_loss.sel(group="train_pairs") < 0.1
    assert first.restricted_loss.sel(group="all_pairs") > 0.5 * np.log(P)


def test_losses_agree_with_a_two_dimensional_transform():
    """The waves of a + b with frequency k are the modes (k, k) and (-k, -k) of the logits."""
    logits = np.random.default_rng(0).normal(size=(P, P, P)) * 3
    modes = np.fft.fft2(logits, axes=(0, 1))
    keep = np.zeros((P, P, 1))
    for k in KEYS:
        keep[k, k] = keep[-k, -k] = 1
    component = np.fft.ifft2(modes * keep, axes=(0, 1)).real
    chosen = np.isin(np.arange(1, P // 2 + 1), KEYS)
    flat = logits.reshape(P * P, P).astype(np.float32)
    restricted, excluded = jax.jit(split_losses)(flat, SUM, chosen)
    whole = logits.mean((0, 1)) + component
    np.testing.assert_allclose(restricted, loss_of(whole.reshape(P * P, P), SUM), rtol=1e-4)
    rest = (logits - component).reshape(P * P, P)
    np.testing.assert_allclose(excluded, loss_of(rest, SUM), rtol=1e-4)


def test_other_frequencies_are_as_many_and_others():
    is_key = jnp.asarray(np.array([True, False, True, False, False, False]))
    draws = jnp.asarray(np.random.default_rng(0).random((50, 6)).astype(np.float32))
    draw = jax.jit(fourier_progress.other_frequencies)
    sets = np.asarray(draw(is_key, draws))
    assert (sets.sum(1) == 2).all() and not sets[:, [0, 2]].any()
    assert (sets.sum(0)[[1, 3, 4, 5]] > 0).all()
    most = jnp.asarray(np.array([True, True, True, True, True, False]))
    assert np.asarray(draw(most, draws)).sum() == 50


def test_the_loss_is_accurate_where_the_answer_is_certain():
    """The usual float32 loss is 0 from a probability of 1 - 3e-8 on."""
    logits = np.random.default_rng(0).normal(size=(200, 50)).astype(np.float32)
    answer = np.arange(200) % 50
    logits[np.arange(200), answer] += np.linspace(-30, 80, 200, dtype=np.float32)
    wanted = loss_of(logits, answer)
    assert wanted.min() < 1e-30
    found = jax.jit(cross_entropy)(logits, answer)
    np.testing.assert_allclose(found, wanted, rtol=3e-5)
    usual = -np.asarray(jax.jit(jax.nn.log_softmax)(logits))[np.arange(200), answer]
    assert (usual[wanted < 1e-8] == 0).all()


@pytest.mark.parametrize("modulus", [7, 8])
def test_waves_are_orthonormal(modulus):
    rows = fourier.waves(modulus).reshape(-1, modulus)
    rows = rows[np.linalg.norm(rows, axis=1) > 0]
    assert len(rows) == modulus - 1
    np.testing.assert_allclose(rows @ rows.T, np.eye(modulus - 1), atol=1e-6)
    np.testing.assert_allclose(rows.sum(1), 0, atol=1e-6)


def test_gini_and_key_frequencies_have_closed_forms():
    values = [[1] * 4, [0] * 4, [0, 0, 5, 0], [3, 1, 2, 4]]
    found = jax.jit(jax.vmap(fourier.gini))(np.array(values, np.float32))
    np.testing.assert_allclose(found, [0, 0, 1 - 1 / 4, 1 / 4], atol=1e-6)
    key = jax.jit(fourier.key_frequencies, static_argnums=1)
    norms = np.array([5, 1, 60, 4, 30], np.float32)
    for share, wanted in ((0.5, [2]), (0.6, [2, 4]), (0.9, [0, 2, 4]), (0.96, [0, 2, 3, 4])):
        assert np.flatnonzero(key(norms, share)).tolist() == wanted


@pytest.mark.slow
def test_figures_name_the_phases(result):
    assert [f.name for f in FourierProgress().figures(result)] == [
        "fourier_progress",
        "fourier_progress_weights",
    ]
    excluded = [4, 0.3, 2, 5, 6, 6]
    test = [4, 10, 9, 8, 2, 1e-3]
    right = [0.1, 0.1, 0.2, 0.3, 0.9, 1]
    steps = dict(zip(("step",), ([0, 10, 20, 30, 40, 50],), strict=True))
    wide = result.isel(step=[0] * 6).assign_coords(steps).load()
    for name, values in (("excluded_loss", excluded), ("full_loss", test), ("correct", right)):
        wide[name][:] = np.array(values)[:, None]
    assert phase_ends(wide) == dict(zip(PHASES, (10, 30, 50), strict=True))
    assert phase_ends(wide.isel(step=slice(4))) == {PHASES[0]: 10}


def test_other_tasks_are_refused():
    with pytest.raises(NotApplicable, match="modular_addition"):
        FourierProgress().examples(Transformer(SPEC), subjects.DATASET)
