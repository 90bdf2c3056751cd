"""Every activation_fn finds the directions of sparse data.

The data has more directions than dimensions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.activations import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
)
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.population import Population, make_members, stack_pools
from implicit_reasoning.dictionaries.steps import DictionaryRecipe, DictionaryTrainingSettings
from implicit_reasoning.dictionaries.synthetic import Synthetic, recovered
from implicit_reasoning.errors import InputError
from tests.compiled import compiled

DATA = Synthetic()  # 512 directions in 128 dimensions, 8 of them active, in pairs
WIDTH, STATES, FRESH = 1024, 262_144, 8192
TRAINED = {
    # activation_fn, sparsity, learning rate, steps, bounds on active features (8 in the data)
    "topk": (TopK(max_k=8), 8.0, 3e-3, 2000, (7.5, 8.0)),
    "batch_topk": (BatchTopK(), 8.0, 3e-3, 2000, (7.0, 9.0)),
    "matryoshka": (Matryoshka(widths=(256, 512)), 8.0, 3e-3, 2500, (7.0, 9.0)),
    "gated": (Gated(), 1.2, 1e-3, 2500, (7.0, 10.5)),
    "jumprelu": (JumpReLU(), 0.1, 1e-3, 2500, (6.5, 8.5)),
    # With 1.5, ReLU still has 12.9 active features and has lost 16% of the directions, because L1
    # shrinks them away.
    "relu": (ReLU(), 1.2, 1e-3, 2500, (8.0, 13.0)),
}


def train(activation_fn, sparsity, rate, steps, data=DATA, width=WIDTH, states=STATES, batch=1024):
    """Return the share of directions that a feature has with cosine > 0.9, and active features.

    The number of active features is that of fresh states.
    """

    @jax.jit
    def draw():
        keys = jax.random.split(jax.random.key(0), 3)
        directions = data.directions(keys[0])
        x, fresh = (
            data.states(keys[n], directions, count) for n, count in ((1, states), (2, FRESH))
        )
        return directions, x[None], fresh

    directions, x, fresh = draw()
    # The penalty rises slowly, so that directions are found before any is lost. Features count as
    # dead early, because training is short.
    settings = DictionaryTrainingSettings(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        decay_steps=steps // 4,
        sparsity_warmup_steps=steps // 2,
        dead_after=100,
    )
    architecture = Autoencoder(data.width, data.width, width)
    dictionary = Dictionary(architecture, activation_fn)
    pools, members = stack_pools(x, x), make_members([0], [sparsity], [0])
    population = Population(DictionaryRecipe(dictionary, settings), pools, members)
    state, _ = population.advance(population.begin(), 0, steps)

    def judged(params, threshold, sparsity):
        found = recovered(directions, architecture.rows(params)) > 0.9
        params = dictionary.finish(params, threshold, sparsity)
        acts = dictionary.for_inference().encode(params, fresh)
        return found.mean(), (acts > 0).sum(1).mean()

    last = jax.tree.map(lambda leaf: leaf[0], jax.device_get((state.params, state.threshold)))
    found, l0 = compiled(judged)(*last, np.float32(sparsity))
    return float(found), float(l0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_directions_are_recovered_by_few_features(name):
    *how, (least, most) = TRAINED[name]
    found, l0 = train(*how)
    assert found >= 0.95
    assert least <= l0 <= most


@pytest.mark.slow
def test_a_small_one_is_recovered():
    data = Synthetic(n_directions=32, width=16, mean_active=2.0)
    found, l0 = train(TopK(max_k=2), 2.0, 3e-3, 1500, data, 64, 65_536, batch=256)
    assert found >= 0.95 and l0 <= 2


# Data --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frequencies_and_pairs_are_as_said():
    data = Synthetic(n_directions=64, width=24, mean_active=3.0, exponent=0.5, together=0.3)
    active, frequency = compiled(lambda key: (data.activity(key, 100_000) > 0, data.frequencies))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(frequency.sum(), 3.0, rtol=1e-5)
    np.testing.assert_allclose(frequency[0] / frequency[-1], 32**0.5, rtol=1e-4)
    spread = np.sqrt(frequency * (1 - frequency) / 100_000)
    assert (np.abs(active.mean(0) - frequency) < 5 * spread).all()
    for pair in (0, 31):
        one, other = active[:, 2 * pair], active[:, 2 * pair + 1]
        assert abs(np.corrcoef(one, other)[0, 1] - 0.3) < 0.03
    assert abs(np.corrcoef(active[:, 0], active[:, 2])[0, 1]) < 0.01
    states = compiled(lambda one, other: data.states(one, data.directions(other), 7))(
        *map(jax.random.key, (1, 2))
    )
    assert states.shape == (7, 24) and states.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_directions": 7}, "n_directions is 7; it must be an even number"),
        ({"together": 1.5}, "together is 1.5; it must be a number from 0 to 1"),
        ({"n_directions": 8, "mean_active": 7.0}, "but must be at most 1; reduce mean_active"),
    ],
)
def test_data_that_cannot_be_is_said(changes, said):
    with pytest.raises(InputError, match=said):
        Synthetic(**changes)
