"""Chunked examples give the same values, and examples that do not count are not computed."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.chunks import map_in_chunks
from tests.compiled import compiled


def outcomes(examples):
    return {"a": examples[0].T, "b": examples[0].sum(1)}


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_examples_in_parts_are_the_same_as_at_once(count):
    values = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    found = compiled(lambda values: map_in_chunks(outcomes, [values], at_once=3))(values)
    np.testing.assert_array_equal(found["a"], values.T)
    np.testing.assert_array_equal(found["b"], values.sum(1))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_those_that_count_are_there_and_no_more_parts_than_they_fill(share):
    """Any subset of the examples is measured by one program."""
    values, calls = np.arange(1.0, 23, dtype=np.float32).reshape(11, 2), []

    def seen(examples):
        jax.debug.callback(lambda first: calls.append(first), examples[0][0, 0])
        return outcomes(examples)

    counted = np.random.default_rng(0).random(11) < share
    run = jax.jit(lambda counted: map_in_chunks(seen, [values], counted, at_once=4))
    for mask in (counted, ~counted):
        calls.clear()
        found = jax.device_get(run(mask))
        jax.effects_barrier()
        np.testing.assert_array_equal(found["a"][:, mask], values.T[:, mask])
        np.testing.assert_array_equal(found["b"][mask], values.sum(1)[mask])
        assert len(calls) == -(-mask.sum() // 4)
    # The stubs of jax.jit do not declare the size of its cache.
    assert run._cache_size() == 1  # type: ignore[attr-defined]
