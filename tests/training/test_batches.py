"""Batches: every order is a pure function of (key, step, rows); an epoch has each row once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.training.batches import check_order, permuted, rows_of_step

KEY = jax.random.key(0)


SIZE = 8  # of a batch; most tests use one size, because each size is compiled


@functools.partial(jax.jit, static_argnames=("batch_size", "order"))
def rows(key, step, n_rows, batch_size=SIZE, order="epochs"):
    return rows_of_step(key, step, n_rows, batch_size=batch_size, order=order)


@functools.partial(jax.jit, static_argnames="order")
def _stream(key, n_rows, order):
    one = functools.partial(rows_of_step, batch_size=SIZE, order=order)
    return jax.vmap(one, (None, 0, None))(key, jnp.arange(2000), n_rows)


def stream(n_steps, n_rows, order="epochs", key=KEY):
    """Return all rows of the first steps, in the order in which training reads them."""
    return np.asarray(_stream(key, jnp.int32(n_rows), order))[:n_steps].ravel()


@jax.jit
def images(round_keys, index, n):
    """Return the images of the indices under permutations of 0..n-1: [key, index]."""
    of_key = jax.vmap(permuted, (None, 0, None))
    return jax.vmap(of_key, (0, None, None))(round_keys, index, n)


def some_keys(seed, count):
    return np.random.default_rng(seed).integers(2**32, size=(count, 6), dtype=np.uint32)


# All n share one length of the index, so that the function compiles once. Images of indices beyond
# n are not used.
LENGTH = 600


@given(n=st.integers(1, LENGTH), seed=st.integers(0, 2**31 - 1))
def test_it_permutes(n, seed):
    index = np.minimum(np.arange(LENGTH, dtype=np.uint32), np.uint32(n - 1))
    image = np.asarray(images(some_keys(seed, 1), index, np.uint32(n)))[0, :n]
    assert sorted(image.tolist()) == list(range(n))


def test_it_permutes_more_than_sixteen_bits():
    n = 2**16 + 1
    (image,) = np.asarray(images(some_keys(0, 1), np.arange(n, dtype=np.uint32), np.uint32(n)))
    assert (np.sort(image) == np.arange(n)).all()


@pytest.mark.parametrize("n", [17, *(pytest.param(n, marks=pytest.mark.slow) for n in (65, 128))])
def test_every_position_goes_everywhere_equally_often(n):
    n_keys = 8000
    image = np.asarray(images(some_keys(1, n_keys), np.arange(n, dtype=np.uint32), np.uint32(n)))
    counts = np.stack([np.bincount(image[:, i], minlength=n) for i in range(n)])
    chi_square = ((counts - n_keys / n) ** 2 / (n_keys / n)).sum(1)
    standardized = (chi_square - (n - 1)) / np.sqrt(2 * (n - 1))
    assert standardized.max() < 6 and abs(standardized.mean()) < 0.7


def test_neighbours_part():
    """Rows that are adjacent in the file are not more likely to be adjacent in an epoch."""
    n = 100
    image = np.asarray(images(some_keys(2, 4000), np.arange(n, dtype=np.uint32), np.uint32(n)))
    adjacent = np.abs(np.diff(image.astype(int), axis=1)) == 1
    assert adjacent.mean() == pytest.approx(2 / n, rel=0.05)


@pytest.mark.parametrize("n_rows", [1, 5, 8, 97])  # 5: a batch of 8 has more than one epoch
def test_an_epoch_visits_every_row_once_before_any_twice(n_rows):
    epochs = 6
    seen = stream(100, n_rows)[: epochs * n_rows]
    assert (np.sort(seen.reshape(epochs, n_rows)) == np.arange(n_rows)).all()


def test_every_epoch_has_an_order_of_its_own():
    seen = stream(25, 40).reshape(5, 40)
    for epoch in range(1, 5):
        assert (seen[epoch] == seen[epoch - 1]).mean() < 0.2


def test_other_keys_give_other_orders():
    assert (stream(6, 50) == stream(6, 50, key=jax.random.key(1))).mean() < 0.2


@pytest.mark.parametrize("order", ["epochs", "replacement"])
def test_a_batch_depends_on_nothing_but_key_step_and_rows(order):
    """Resumed runs rely on this: a step computed alone equals that step in a sequence."""
    all_steps = stream(12, 30, order).reshape(12, SIZE)
    for step in (0, 5, 11):
        assert (rows(KEY, jnp.int32(step), jnp.int32(30), order=order) == all_steps[step]).all()


@pytest.mark.parametrize("order", ["epochs", "replacement"])
def test_trials_with_other_numbers_of_rows_are_one_mapped_call(order):
    n_rows, step = jnp.array([1, 9, 64, 100, 1000]), jnp.int32(37)
    one = functools.partial(rows_of_step, batch_size=SIZE, order=order)
    mapped = jax.jit(jax.vmap(one, (None, None, 0)))(KEY, step, n_rows)
    for n, batch in zip(n_rows, mapped, strict=True):
        assert (batch == rows(KEY, step, n, order=order)).all()
        assert batch.min() >= 0 and batch.max() < n


@pytest.mark.parametrize("n_rows", [3, 1000, 3_000_017, 2**23 - 2])
def test_late_steps_do_not_overflow(n_rows):
    """Epoch and index of every row of a step near the maximum agree with Python's integers."""
    batch_size, step = 512, 2**31 - 3
    check_order("epochs", batch_size, n_rows)
    batch = rows(KEY, jnp.int32(step), jnp.int32(n_rows), batch_size)
    where = [divmod(step * batch_size + i, n_rows) for i in range(batch_size)]
    # The number of an epoch only keys its order. It may wrap, if it wraps in the same way for all
    # rows.
    epoch = np.array([epoch % 2**32 for epoch, _ in where], np.uint32)
    index = np.array([index for _, index in where], np.uint32)
    assert (batch == _of_epochs(epoch, index, np.uint32(n_rows))).all()


@jax.jit
def _of_epochs(epoch, index, n):
    keys = jax.vmap(lambda e: jax.random.bits(jax.random.fold_in(KEY, e), (6,)))(epoch)
    return jax.vmap(permuted, (0, 0, None))(keys, index, n)


def test_replacement_is_uniform_over_the_rows():
    seen = stream(2000, 50, "replacement")
    assert seen.min() == 0 and seen.max() == 49
    counts = np.bincount(seen, minlength=50)
    chi_square = ((counts - len(seen) / 50) ** 2 / (len(seen) / 50)).sum()
    assert abs(chi_square - 49) < 5 * np.sqrt(2 * 49)
    # Sampling with replacement repeats rows, unlike an epoch.
    assert len(set(stream(6, 48, "replacement").tolist())) < 40


def test_an_order_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="order is 'shuffle'; it must be one of 'replacement', 'e"):
        check_order("shuffle", 8, 100)


def test_epochs_that_cannot_be_counted_in_32_bits_are_refused():
    check_order("epochs", 2**16, 2**16 - 2)
    with pytest.raises(
        InputError,
        match=r"batch_size is 65,536 and there are 65,535 training rows, .* smaller batch_size",
    ):
        check_order("epochs", 2**16, 2**16 - 1)
    check_order("replacement", 2**16, 2**16)
