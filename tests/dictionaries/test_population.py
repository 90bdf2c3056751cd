"""A population equals its members trained alone; steps depend only on their number."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.activations import BatchTopK, JumpReLU, ReLU, TopK
from implicit_reasoning.dictionaries.architectures import Autoencoder, CrossLayer, Transcoder
from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.population import (
    Population,
    make_members,
    stack_pools,
)
from implicit_reasoning.dictionaries.steps import (
    DictionaryRecipe,
    DictionaryState,
    DictionaryTrainingSettings,
    Pool,
    TrainingData,
    batch_of,
)
from implicit_reasoning.dictionaries.synthetic import Synthetic

DATA = Synthetic(n_directions=24, width=12, mean_active=2.0)
SETTINGS = DictionaryTrainingSettings(
    steps=200,
    batch_size=64,
    learning_rate=1e-2,
    warmup_steps=5,
    decay_steps=10,
    sparsity_warmup_steps=8,
    dead_after=4,
)


@functools.cache
def pools(n=2):
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.jit(jax.vmap(lambda key: DATA.states(key, DATA.directions(key), 256)))
    x = draw(keys)
    return stack_pools(x, x, np.array([156, 100]))


@functools.cache
def population(
    activation_fn, sparsities=(2.0, 3.0), *, architecture=None, settings=SETTINGS, **other
):
    """Return a population; tests that ask for the same population share one program."""
    members = make_members([0, 1, 0, 1], [*sparsities, *sparsities], [0, 0, 1, 1])
    architecture = architecture or Autoencoder(12, 12, 32)
    return Population(
        DictionaryRecipe(Dictionary(architecture, activation_fn), settings),
        pools(),
        members,
        **other,
    )


def trained(made, chunks=(40,)):
    state, start, windows = made.begin(), 0, []
    for count in chunks:
        state, window = made.advance(state, start, count)
        windows.append(window)
        start += count
    return state, windows


@pytest.mark.parametrize(
    ("activation_fn", "sparsities"),
    [
        (TopK(max_k=4), (2.0, 3.0)),
        pytest.param(JumpReLU(), (0.02, 0.1), marks=pytest.mark.slow),
    ],
    ids=["topk", "jumprelu"],
)
def test_it_learns(activation_fn, sparsities):
    _, (first, _, last) = trained(population(activation_fn, sparsities), (5, 180, 15))
    assert (np.asarray(last.mse) < 0.5 * np.asarray(first.mse)).all()


def test_members_are_what_they_are_alone_and_together():
    alone = trained(population(TopK(max_k=4)))[0].params
    together = trained(population(TopK(max_k=4), together=4))[0].params
    for name in alone:
        np.testing.assert_allclose(alone[name], together[name], atol=2e-5)
    members = make_members([1], [3.0], [1])  # the last of the four members
    recipe = DictionaryRecipe(Dictionary(Autoencoder(12, 12, 32), TopK(max_k=4)), SETTINGS)
    one = Population(recipe, pools(), members)
    by_itself = trained(one)[0].params
    for name in alone:
        np.testing.assert_array_equal(np.asarray(alone[name])[3], np.asarray(by_itself[name])[0])


@pytest.mark.parametrize(
    ("activation_fn", "sparsities"),
    [
        (TopK(max_k=4), (2.0, 3.0)),
        pytest.param(JumpReLU(), (0.02, 0.1), marks=pytest.mark.slow),
        pytest.param(BatchTopK(), (2.0, 3.0), marks=pytest.mark.slow),
    ],
    ids=["topk", "jumprelu", "batch_topk"],
)
def test_how_steps_are_cut_does_not_matter_and_compiles_nothing(activation_fn, sparsities):
    made = population(activation_fn, sparsities)
    whole, parts = trained(made)[0], trained(made, (1, 17, 22))[0]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert made._advance._cache_size() == 1


def test_the_learning_rate_rises_and_falls():
    settings = DictionaryTrainingSettings(
        steps=40, learning_rate=3e-3, warmup_steps=5, decay_steps=10
    )
    rates = jax.jit(jax.vmap(settings.rate))(np.array([0, 4, 20, 35, 39]))
    np.testing.assert_allclose(rates, np.array([0.2, 1, 1, 0.5, 0.1]) * 3e-3, rtol=1e-6)


def test_groups_of_states_weigh_the_same():
    x = jnp.asarray(np.arange(100.0, dtype="f4")[:, None])
    pool = Pool(x, x, jnp.asarray(np.array([0, 10])), jnp.asarray(np.array([10, 90])))
    drawn = jax.jit(batch_of, static_argnums=1)(pool, 20_000, jax.random.key(0))
    drawn = np.asarray(drawn[0])[:, 0]
    assert set(drawn.astype(int)) == set(range(100))
    assert abs((drawn < 10).mean() - 0.5) < 0.02


def test_the_bias_begins_at_the_mean_of_a_batch_or_at_nothing():
    dictionary = Dictionary(Autoencoder(12, 12, 32), TopK(max_k=4))

    @jax.jit
    def begun(whole):
        lot = TrainingData(Pool(*(part[0] for part in whole)), jnp.float32(2), jax.random.key(3))
        recipes = [
            DictionaryRecipe(dictionary, DictionaryTrainingSettings(batch_size=64, bias_at_mean=m))
            for m in (True, False)
        ]
        drawn = batch_of(lot.pool, 64, jax.random.fold_in(lot.key, 0))[1]
        return [recipe.begin(lot).params["b_dec"] for recipe in recipes], drawn.mean(0)

    (at_mean, at_nothing), mean = jax.device_get(begun(pools()))
    np.testing.assert_allclose(at_mean, mean, rtol=1e-6)
    assert (at_nothing == 0).all() and (at_mean != 0).all()


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(Transcoder(12, 12, 32), marks=pytest.mark.slow, id="transcoder"),
        pytest.param(CrossLayer(12, 12, 32, n_layers=2), id="cross_layer"),
    ],
)
def test_unit_decoders_stay_so_and_the_dead_are_replaced_on_their_steps_only(architecture):
    settings = DictionaryTrainingSettings(
        steps=10, batch_size=32, unit_decoder=True, dead_after=0, resample_every=4
    )
    made = population(TopK(max_k=2), (1.0, 1.0), architecture=architecture, settings=settings)
    norms = jax.jit(jax.vmap(architecture.norms))
    state, _ = made.advance(made.begin(), 0, 3)
    np.testing.assert_allclose(norms(state.params), 1, rtol=1e-5)
    assert (np.asarray(state.steps_since_fired) > 0).any()
    state, _ = made.advance(state, 3, 1)
    assert (np.asarray(state.steps_since_fired) == 0).all()
    np.testing.assert_allclose(norms(state.params), 1, rtol=1e-5)


# Dead features -----------------------------------------------------------------------------------


def lot_of(pool):
    return TrainingData(pool, jnp.float32(0.05), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def resampled(recipe, state, pool, key):
    return recipe.resample(state, lot_of(pool), key)


def with_dead(activation_fn, architecture, n_dead=5):
    made = population(
        activation_fn,
        (0.05, 0.05),
        architecture=architecture,
        settings=DictionaryTrainingSettings(batch_size=64, dead_after=9),
    )
    state = jax.tree.map(lambda leaf: leaf[0], jax.device_get(made.begin()))
    pool = jax.tree.map(lambda leaf: leaf[0], jax.device_get(made.pools))
    idle = np.where(np.arange(32) < n_dead, 50, 0).astype(np.int32)
    clip, adam = state.adam
    adam = adam._replace(mu=jax.tree.map(np.ones_like, adam.mu))
    return made.recipe, state._replace(steps_since_fired=idle, adam=(clip, adam)), pool


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(Autoencoder(12, 12, 32), marks=pytest.mark.slow),
        CrossLayer(12, 12, 32, n_layers=2),
    ],
)
def test_resampling_replaces_the_dead_and_nobody_else(architecture):
    recipe, state, pool = with_dead(ReLU(), architecture)
    new = jax.device_get(resampled(recipe, state, pool, jax.random.key(3)))
    assert (new.steps_since_fired == 0).all()
    dead = np.arange(32) < 5
    rows_of = jax.jit(architecture.rows)
    rows = [np.asarray(rows_of(s.params)) for s in (state, new)]
    np.testing.assert_array_equal(rows[0][~dead], rows[1][~dead])
    np.testing.assert_allclose(np.linalg.norm(rows[1][dead], axis=1), 1, rtol=1e-5)
    columns = [np.moveaxis(s.params["W_enc"], -2, -1).reshape(32, -1) for s in (state, new)]
    np.testing.assert_array_equal(columns[0][~dead], columns[1][~dead])
    alive = np.linalg.norm(columns[0][~dead], axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(columns[1][dead], axis=1), 0.2 * alive, rtol=1e-4)
    moments = new.adam[1].mu["b_enc"]
    np.testing.assert_array_equal(moments, np.where(dead, 0, 1))


def test_what_is_resampled_is_what_was_written_worst():
    """Dead features are initialized at the one state that is reconstructed badly."""
    architecture = Autoencoder(12, 12, 32)
    recipe, state, pool = with_dead(ReLU(), architecture)
    x, odd = np.zeros_like(pool.x), np.eye(12, dtype="f4")[3]
    x[10] = 100 * odd
    counts = np.array([11, 1], np.int32)  # the other states of the pool belong to no group
    pool = Pool(x, x, np.array([0, 10], np.int32), counts)
    state = state._replace(params=state.params | {"b_dec": np.zeros(12, np.float32)})
    new = resampled(recipe, state, pool, jax.random.key(0))
    found = np.asarray(new.params["W_dec"])[:5]
    np.testing.assert_allclose(found, np.tile(odd, (5, 1)), atol=1e-5)


# Devices -----------------------------------------------------------------------------------------

MESH = """
import sys
import jax, numpy as np
from implicit_reasoning.runtime.sharding import make_mesh
from tests.dictionaries.test_population import *
activation_fn, sparsities = ON_DEVICES[sys.argv[1]]
mesh = make_mesh({"trial": 4, "data": 1, "model": 2})
state = trained(population(activation_fn, sparsities, mesh=mesh), (20,))[0]
assert state.params["W_enc"].sharding.spec == jax.sharding.PartitionSpec("trial", None, "model")
np.savez(sys.argv[2], **state.params)
"""
ON_DEVICES = {"topk": (TopK(max_k=4), (2.0, 3.0)), "relu": (ReLU(), (0.05, 0.1))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk", "relu"])
def test_members_and_features_are_dealt_out_to_devices(tmp_path, name):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    found = tmp_path / "found.npz"
    done = subprocess.run(
        [sys.executable, "-c", MESH, name, found], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = trained(population(*ON_DEVICES[name], together=4), (20,))[0]
    with np.load(found) as dealt_out:
        assert set(dealt_out) == set(one.params)
        for own in one.params:
            np.testing.assert_allclose(dealt_out[own], one.params[own], atol=1e-5)


def test_the_layout_of_what_a_run_is_resumed_from_has_not_changed():
    """A state that an older version saved is restored by these names, shapes and types."""
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(population(BatchTopK()).begin), is_leaf=lambda leaf: leaf is None
    )
    params = {"W_dec": (32, 12), "W_enc": (12, 32), "b_dec": (12,), "b_enc": (32,)}
    expected = {f".params['{name}']": (shape, "float32") for name, shape in params.items()}
    expected[".adam[1].count"] = (), "int32"
    for moment in ("mu", "nu"):
        for name, shape in params.items():
            expected[f".adam[1].{moment}['{name}']"] = shape, "float32"
    expected |= {".steps_since_fired": ((32,), "int32"), ".threshold": ((), "float32")}
    found = {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype)) for path, leaf in leaves}
    assert found == {name: ((4, *shape), dtype) for name, (shape, dtype) in expected.items()}
    assert DictionaryState._fields == ("params", "adam", "steps_since_fired", "threshold")
