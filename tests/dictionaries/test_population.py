"""A population is its members by themselves; steps depend on their number, not on how they come."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.kinds import Autoencoder, CrossLayer, Transcoder
from implicit_reasoning.dictionaries.population import (
    Population,
    make_members,
    stack_pools,
)
from implicit_reasoning.dictionaries.steps import Lot, Pool, Recipe, Settings, State, batch_of
from implicit_reasoning.dictionaries.synthetic import Synthetic
from implicit_reasoning.dictionaries.variants import BatchTopK, JumpReLU, ReLU, TopK

DATA = Synthetic(n_directions=24, width=12, mean_active=2.0)
SETTINGS = Settings(
    steps=40, batch=64, learning_rate=3e-3, warm_up=5, decay=10, sparsity_warm_up=8, dead_after=4
)


def pools(n=2):
    keys = jax.random.split(jax.random.key(0), n)
    x = jnp.stack([DATA.states(key, DATA.directions(key), 256) for key in keys])
    return stack_pools(x, x, np.array([156, 100]))


def population(variant, sparsities=(2.0, 3.0), *, kind=None, settings=SETTINGS, **other):
    members = make_members([0, 1, 0, 1], [*sparsities, *sparsities], [0, 0, 1, 1])
    kind = kind or Autoencoder(12, 12, 32)
    return Population(Recipe(Dictionary(kind, variant), settings), pools(), members, **other)


def trained(made, chunks=(40,)):
    state, start, windows = made.begin(), 0, []
    for count in chunks:
        state, window = made.advance(state, start, count)
        windows.append(window)
        start += count
    return state, windows


@pytest.mark.parametrize(
    ("variant", "sparsities"),
    [(TopK(most=4), (2.0, 3.0)), (JumpReLU(), (0.02, 0.1))],
    ids=["topk", "jumprelu"],
)
def test_it_learns(variant, sparsities):
    settings = Settings(steps=200, batch=64, learning_rate=1e-2)
    made = population(variant, sparsities, settings=settings)
    _, (first, _, last) = trained(made, (5, 180, 15))
    assert (np.asarray(last.mse) < 0.5 * np.asarray(first.mse)).all()


def test_members_are_what_they_are_alone_and_together():
    alone = trained(population(TopK(most=4)))[0].params
    together = trained(population(TopK(most=4), together=4))[0].params
    for name in alone:
        np.testing.assert_allclose(alone[name], together[name], atol=2e-5)
    members = make_members([1], [3.0], [1])  # the last of the four
    recipe = Recipe(Dictionary(Autoencoder(12, 12, 32), TopK(most=4)), SETTINGS)
    one = Population(recipe, pools(), members)
    by_itself = trained(one)[0].params
    for name in alone:
        np.testing.assert_array_equal(alone[name][3], by_itself[name][0])


def test_how_steps_are_cut_does_not_matter():
    made = population(BatchTopK())
    whole, parts = trained(made)[0], trained(made, (1, 17, 22))[0]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_is_compiled_once_for_all_chunks():
    made = population(ReLU(), (0.1, 0.2))
    trained(made, (1, 2, 3))
    assert made._advance._cache_size() == 1


def test_the_learning_rate_rises_and_falls():
    rates = [float(SETTINGS.rate(jnp.int32(step))) for step in (0, 4, 20, 35, 39)]
    np.testing.assert_allclose(rates, np.array([0.2, 1, 1, 0.5, 0.1]) * 3e-3, rtol=1e-6)


def test_groups_of_states_weigh_the_same():
    x = jnp.arange(100.0)[:, None]
    pool = Pool(x, x, jnp.array([0, 10]), jnp.array([10, 90]))
    drawn = np.asarray(batch_of(pool, 20_000, jax.random.key(0))[0])[:, 0]
    assert set(drawn.astype(int)) == set(range(100))
    assert abs((drawn < 10).mean() - 0.5) < 0.02


def test_the_bias_begins_at_the_mean_of_a_batch_or_at_nothing():
    whole = pools(1)
    lot = Lot(Pool(*(part[0] for part in whole)), jnp.float32(2), jax.random.key(3))
    dictionary = Dictionary(Autoencoder(12, 12, 32), TopK(most=4))
    starts = {
        mean: Recipe(dictionary, Settings(batch=64, bias_at_mean=mean)).begin(lot).params["b_dec"]
        for mean in (True, False)
    }
    drawn = batch_of(lot.pool, 64, jax.random.fold_in(lot.key, 0))[1]
    np.testing.assert_allclose(starts[True], drawn.mean(0), rtol=1e-6)
    assert (starts[False] == 0).all() and (starts[True] != 0).all()


@pytest.mark.parametrize("kind", [Transcoder(12, 12, 32), CrossLayer(12, 12, 32, n_layers=2)])
def test_unit_decoders_stay_so(kind):
    settings = Settings(steps=10, batch=32, unit_decoder=True)
    made = population(ReLU(), (0.1, 0.2), kind=kind, settings=settings)
    params = trained(made, (10,))[0].params
    norms = jax.vmap(kind.norms)(params)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


# Features that are dead --------------------------------------------------------------------------


def lot_of(pool):
    return Lot(pool, jnp.float32(0.05), jax.random.key(0))


def with_dead(variant, kind, n_dead=5):
    made = population(variant, (0.05, 0.05), kind=kind, settings=Settings(batch=64, dead_after=9))
    state = jax.tree.map(lambda leaf: leaf[0], made.begin())
    pool = jax.tree.map(lambda leaf: leaf[0], made.pools)
    idle = jnp.zeros(32, jnp.int32).at[:n_dead].set(50)
    clip, adam = state.adam
    adam = adam._replace(mu=jax.tree.map(jnp.ones_like, adam.mu))
    return made, state._replace(idle=idle, adam=(clip, adam)), pool


@pytest.mark.parametrize("kind", [Autoencoder(12, 12, 32), CrossLayer(12, 12, 32, n_layers=2)])
def test_resampling_replaces_the_dead_and_nobody_else(kind):
    made, state, pool = with_dead(ReLU(), kind)
    new = made.recipe.resample(state, lot_of(pool), jax.random.key(3))
    assert (np.asarray(new.idle) == 0).all()
    dead = np.arange(32) < 5
    rows = [np.asarray(kind.rows(s.params)) for s in (state, new)]
    np.testing.assert_array_equal(rows[0][~dead], rows[1][~dead])
    np.testing.assert_allclose(np.linalg.norm(rows[1][dead], axis=1), 1, rtol=1e-5)
    columns = [
        np.moveaxis(np.asarray(s.params["W_enc"]), -2, -1).reshape(32, -1) for s in (state, new)
    ]
    np.testing.assert_array_equal(columns[0][~dead], columns[1][~dead])
    alive = np.linalg.norm(columns[0][~dead], axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(columns[1][dead], axis=1), 0.2 * alive, rtol=1e-4)
    moments = np.asarray(new.adam[1].mu["b_enc"])
    np.testing.assert_array_equal(moments, np.where(dead, 0, 1))


def test_what_is_resampled_is_what_was_written_worst():
    """Of a pool of which one state is written badly, the dead begin at that one."""
    kind = Autoencoder(12, 12, 32)
    made, state, pool = with_dead(ReLU(), kind)
    odd = 100 * jnp.eye(12)[3]
    x = jnp.concatenate([jnp.zeros((10, 12)), odd[None]])
    pool = Pool(x, x, jnp.array([0]), jnp.array([11]))
    params = state.params | {"b_dec": jnp.zeros(12)}
    state = state._replace(params=params)
    new = made.recipe.resample(state, lot_of(pool), jax.random.key(0))
    np.testing.assert_allclose(kind.rows(new.params)[:5], np.tile(np.eye(12)[3], (5, 1)), atol=1e-5)


def test_it_is_done_on_its_steps_only():
    settings = Settings(steps=10, batch=64, dead_after=0, resample_every=4)
    made = population(TopK(most=2), (1.0, 1.0), settings=settings)
    before = made.begin()
    state, _ = made.advance(before, 0, 3)
    idle = np.asarray(state.idle)
    assert (idle > 0).any()
    state, _ = made.advance(state, 3, 1)
    assert (np.asarray(state.idle) == 0).all()


# Devices -----------------------------------------------------------------------------------------

MESH = """
import jax, numpy as np
from implicit_reasoning.dictionaries.population import make_mesh
from tests.dictionaries.test_population import *
for variant, sparsities in ((TopK(most=4), (2.0, 3.0)), (ReLU(), (.05, .1))):
    made = population(variant, sparsities, mesh=make_mesh(trial=4, model=2))
    state = trained(made, (20,))[0]
    assert state.params["W_enc"].sharding.spec == jax.sharding.PartitionSpec("trial", None, "model")
    one = trained(population(variant, sparsities, together=4), (20,))[0]
    for name in one.params:
        np.testing.assert_allclose(state.params[name], one.params[name], atol=1e-5)
"""


def test_members_and_features_are_dealt_out_to_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", MESH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_state_is_arrays_only():
    state = population(ReLU(), (0.1, 0.2)).begin()
    assert isinstance(state, State)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
