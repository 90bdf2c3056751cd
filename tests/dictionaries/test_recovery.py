"""Every variant finds the directions that sparse data is made of, more of them than dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.kinds import Autoencoder
from implicit_reasoning.dictionaries.population import Population, make_members, stack_pools
from implicit_reasoning.dictionaries.steps import Recipe, Settings
from implicit_reasoning.dictionaries.synthetic import Synthetic, recovered
from implicit_reasoning.dictionaries.variants import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
)
from implicit_reasoning.errors import InputError

DATA = Synthetic()  # 512 directions in 128 dimensions, 8 of them active, in pairs
WIDTH, STATES = 1024, 262_144
TRAINED = {
    # variant, sparsity, learning rate, steps
    "topk": (TopK(most=8), 8.0, 1e-3, 4000),
    "batch_topk": (BatchTopK(), 8.0, 1e-3, 4000),
    "matryoshka": (Matryoshka(widths=(256, 512)), 8.0, 1e-3, 4000),
    "relu": (ReLU(), 0.1, 1e-3, 4000),
    "gated": (Gated(), 0.1, 1e-3, 4000),
    "jumprelu": (JumpReLU(), 0.02, 1e-3, 4000),
}


def share_recovered(variant, sparsity, rate, steps, data=DATA, width=WIDTH, states=STATES):
    """Share of directions to which a feature has a cosine above .9; mean active features."""
    keys = jax.random.split(jax.random.key(0))
    directions = data.directions(keys[0])
    x = data.states(keys[1], directions, states)
    settings = Settings(
        steps=steps, batch=1024, learning_rate=rate, decay=steps // 4, sparsity_warm_up=steps // 10
    )
    kind = Autoencoder(data.width, data.width, width)
    pools, members = stack_pools(x[None], x[None]), make_members([0], [sparsity], [0])
    made = Population(Recipe(Dictionary(kind, variant), settings), pools, members)
    state, window = made.advance(made.begin(), 0, steps)
    rows = kind.rows(jax.tree.map(lambda leaf: leaf[0], state.params))
    return float((recovered(directions, rows) > 0.9).mean()), float(window.l0[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_directions_are_recovered(name):
    found, _ = share_recovered(*TRAINED[name])
    assert found >= 0.95


def test_a_small_one_in_the_default_suite():
    data = Synthetic(n_directions=64, width=24, mean_active=3.0)
    found, l0 = share_recovered(TopK(most=3), 3.0, 3e-3, 4000, data, 128, 65_536)
    assert found >= 0.95 and l0 <= 3


# The data ----------------------------------------------------------------------------------------


def test_frequencies_and_pairs_are_as_said():
    data = Synthetic(n_directions=64, width=24, mean_active=3.0, exponent=0.5, together=0.3)
    active = np.asarray(data.activity(jax.random.key(0), 200_000)) > 0
    frequency = np.asarray(data.frequencies)
    np.testing.assert_allclose(frequency.sum(), 3.0, rtol=1e-5)
    np.testing.assert_allclose(frequency[0] / frequency[-1], 32**0.5, rtol=1e-4)
    spread = np.sqrt(frequency * (1 - frequency) / 200_000)
    assert (np.abs(active.mean(0) - frequency) < 5 * spread).all()
    for pair in (0, 31):
        one, other = active[:, 2 * pair], active[:, 2 * pair + 1]
        assert abs(np.corrcoef(one, other)[0, 1] - 0.3) < 0.03
    assert abs(np.corrcoef(active[:, 0], active[:, 2])[0, 1]) < 0.01
    states = data.states(jax.random.key(1), data.directions(jax.random.key(2)), 7)
    assert states.shape == (7, 24) and states.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_directions": 7}, "directions go in pairs"),
        ({"together": 1.5}, "`together` is a share"),
        ({"n_directions": 8, "mean_active": 7.0}, "asks for a frequency above 1"),
    ],
)
def test_data_that_cannot_be_is_said(changes, said):
    with pytest.raises(InputError, match=said):
        Synthetic(**changes)
