"""Many descents at once end where single descents end, whatever their number and order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.editing.descent import descend, descend_many

SETTINGS = {"rate": 0.3, "steps": 30, "enough": 1e-2}
# The minimum of the last loss is above `enough`, so its descent takes all steps. The first loss
# starts below `enough`, so nothing moves.
ITEMS = {
    "at": np.array([[0.0, 0.01], [1, -2], [0.2, 0.1], [-4, 0.5], [0.7, 0.7], [9, 9], [2, 1]]),
    "floor": np.array([0, 0, 0, 0, 0, 0, 1.0]),
}
ITEMS = jax.tree.map(np.float32, ITEMS)
BEGIN = {"x": jnp.zeros(2)}


def loss(item, tuned):
    """Return a quadratic with a known minimum, twice: as the loss and as the target."""
    value = ((tuned["x"] - item["at"]) ** 2).sum() + item["floor"]
    return value, value


@pytest.fixture(scope="module")
def singly():
    """Return the result of one descent after another."""

    def one(item):
        return descend(lambda tuned: loss(item, tuned), BEGIN, **SETTINGS)

    return jax.lax.map(one, jax.tree.map(jnp.asarray, ITEMS))["x"]


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_many_descents_are_single_descents(singly, at_once):
    """A descent that takes the place of another one starts anew, with new moments."""
    found = descend_many(loss, ITEMS, BEGIN, at_once=at_once, **SETTINGS)["x"]
    np.testing.assert_allclose(found, singly, rtol=1e-5, atol=1e-6)


def test_descents_end_for_different_reasons(singly):
    """Some end at the target after different numbers of steps, and others at the last step."""
    distance = ((np.asarray(singly) - ITEMS["at"]) ** 2).sum(-1)
    assert (distance[[1, 2, 4]] <= 1e-2).all()
    assert distance[5] > 1  # 30 steps of .3 cannot reach it
    assert (np.asarray(singly)[0] == 0).all()


def test_the_order_of_items_does_not_matter(singly):
    """The results belong to their items."""
    order = np.random.default_rng(0).permutation(len(singly))
    shuffled = jax.tree.map(lambda leaf: leaf[order], ITEMS)
    found = descend_many(loss, shuffled, BEGIN, at_once=3, **SETTINGS)["x"]
    np.testing.assert_allclose(found, singly[order], rtol=1e-5, atol=1e-6)
