"""One update agrees with plain JAX; the loop is exact, needs no transfers, and stops at nan."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reasoning.model import Edit, HookContext, Spec, Transformer
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.training import optimizer
from implicit_reasoning.training.batches import rows_of_step
from implicit_reasoning.training.step import (
    RowTable,
    StepRecipe,
    TrainingRows,
    answer_loss,
    dropout_edits,
)
from tests.compiled import compiled

# One block keeps compilation short; tests/model/ tests deeper wirings.
MODEL = Transformer(Spec(d_vocab=11, n_ctx=4, n_layers=1, d_model=8, n_heads=2, d_mlp=16))
OPTIMIZER = optimizer.OptimizerSettings(
    learning_rate=1e-2,
    weight_decay=0.5,
    warmup_steps=2,
    schedule="constant",
    final_fraction=0.0,
    b1=0.9,
    b2=0.98,
    eps=1e-8,
    clip_norm=0.5,
)
HYPER, KEY, N_ROWS = optimizer.hyperparameters(OPTIMIZER), jax.random.key(7), 13
TRACES = []  # every trace of a step asks once for the relative rate


def relative_rate(step):
    TRACES.append(None)
    return optimizer.relative_rate(OPTIMIZER, 10)(step)


def recipe(**changes):
    fields = {
        "model": MODEL,
        "preconditioner": optimizer.preconditioner(OPTIMIZER),
        "relative_rate": relative_rate,
        "batch_size": 6,
        "order": "replacement",
        "dropout": 0.0,
        "log_every": 4,
    }
    return StepRecipe(**(fields | changes))


def make_rows():
    """Return rows, some with two supervised positions and some with one."""
    rng = np.random.default_rng(0)
    answers = rng.integers(11, size=(N_ROWS, 2), dtype=np.int32)
    answers[::3, 1] = -1
    positions = np.where(answers >= 0, [[2, 3]], [[2, 0]]).astype(np.int32)
    tokens = rng.integers(11, size=(N_ROWS, 4), dtype=np.int32)
    table = RowTable(*jax.device_put((tokens, positions, answers)))
    return TrainingRows(table, jnp.int32(0), jnp.int32(N_ROWS))


ROWS = make_rows()
run = jax.jit(recipe().run)


@pytest.fixture(scope="module")
def start():
    """Return a fresh state, with biases and norms moved away from their initial 0 and 1."""
    rng = np.random.default_rng(2)
    fresh = jax.eval_shape(recipe().init, jax.random.key(0))
    noise = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), fresh.params)
    state = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), fresh))
    return state._replace(params=jax.device_put(noise), finite=jnp.bool_(True))


def advance(state, *chunks, rows=ROWS, hyper=HYPER, key=KEY, run=run):
    for n_steps in chunks:
        state = run(state, rows, hyper, key, jnp.int32(n_steps))
    return state


def assert_same(a, b):
    """Check equality bit for bit; nan equals nan."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_loss_is_the_mean_over_supervised_slots():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 3, 7)).astype(np.float32)
    answers = rng.integers(7, size=(5, 3)).astype(np.int32)
    answers[[0, 0, 2, 4], [1, 2, 2, 0]] = -1
    wanted = [
        np.log(np.exp(logits[i, j].astype(np.float64)).sum()) - logits[i, j, answers[i, j]]
        for i in range(5)
        for j in range(3)
        if answers[i, j] >= 0
    ]
    loss, gradient = jax.jit(jax.value_and_grad(answer_loss))(logits, answers)
    assert loss == pytest.approx(np.mean(wanted), rel=1e-6)
    unsupervised = answers < 0
    gradient = np.asarray(gradient)
    assert not gradient[unsupervised].any() and gradient[~unsupervised].all()


def plain(state, n_steps):
    """Train some steps in plain JAX: the whole forward pass, and optax's AdamW."""
    adamw = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(
            lambda count: 1e-2 * jnp.minimum(count / 2, 1),
            b2=0.98,
            weight_decay=0.5,
            mask=optimizer.decay_mask(MODEL),
        ),
    )
    data_key, _ = jax.random.split(KEY)

    @jax.jit
    def update(params, moments, number):
        chosen = rows_of_step(data_key, number, ROWS.n_rows, batch_size=6, order="replacement")

        def loss_of(params):
            logits, _ = MODEL.forward(params, ROWS.table.tokens[chosen])
            of_token = jax.nn.log_softmax(logits)
            answers = ROWS.table.answers[chosen]
            where = jnp.arange(6)[:, None], ROWS.table.positions[chosen], answers
            return -(of_token[where] * (answers >= 0)).sum() / (answers >= 0).sum()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, moments = adamw.update(gradients, moments, params)
        seen = loss, jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
        return optax.apply_updates(params, updates), moments, seen

    params, moments, window = state.params, jax.jit(adamw.init)(state.params), []
    for number in range(n_steps):
        params, moments, seen = update(params, moments, jnp.int32(number))
        window.append(jax.device_get(seen))
    return params, np.array(window).T


def test_steps_equal_plain_jax(start):
    """The trimmed last block, traced hyperparameters and the loop do not change the result."""
    params, (losses, grad_norms) = plain(start, 4)
    state = advance(start, 4)
    for (path, ours), theirs, before in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)),
        jax.tree.leaves(jax.device_get(params)),
        jax.tree.leaves(jax.device_get(start.params)),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        # Adam divides by the size of a gradient, which amplifies rounding of gradients near 0. The
        # gradient of a key's bias is 0, because it does not change the softmax.
        if "b_K" not in name:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5, err_msg=name)
            assert np.abs(ours - before).max() > 5e-3, name
    np.testing.assert_allclose(state.window["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(state.window["grad_norm"], grad_norms, rtol=1e-5)
    assert (grad_norms > 0.5).any()  # clipping was active
    assert state.step == 4 and state.finite


def test_chunks_of_any_length_give_the_same_bits(start):
    once = advance(start, 10)
    assert_same(once, advance(start, 3, 7))
    assert_same(once, advance(start, *[1] * 10))
    assert once.step == 10 and not (np.asarray(once.window["loss"]) == 0).any()


def test_no_chunk_length_compiles_again(start):
    advance(start, 1)
    before = len(TRACES)
    advance(start, 2, 5, 0, 17)
    assert before > 0 and len(TRACES) == before


def test_nothing_waits_for_the_host(start):
    """An implicit transfer would stall every chunk on an accelerator."""
    state, n_steps = advance(start, 1), jnp.int32(3)
    with jax.transfer_guard("disallow"):
        state = run(state, ROWS, HYPER, KEY, n_steps)
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            run(state, ROWS, HYPER, KEY, np.int32(3))
    assert state.step == 4


@pytest.mark.parametrize("learning_rate", [np.inf, np.nan])
def test_an_update_that_is_not_finite_is_not_made(start, learning_rate):
    good = advance(start, 5)
    bad = advance(good, 3, hyper=HYPER._replace(learning_rate=jnp.float32(learning_rate)))
    assert not bad.finite and bad.step == 5
    assert_same(bad, good._replace(finite=jnp.bool_(False)))
    # Later finite steps change nothing.
    assert_same(advance(bad, 1, 4), bad)


def test_parameters_that_overflow_are_noticed_where_a_chunk_ends(start):
    """Loss, gradient and rates are finite, but the updated parameters are not, so they must be
    checked.
    """
    params = jax.tree.map(np.array, start.params)
    params["embed"]["W_E"][0, 0] = 100.0
    huge = HYPER._replace(learning_rate=jnp.float32(1e30), weight_decay=jnp.float32(1e8))
    large = advance(start._replace(params=params), 1)  # the first rate of the warm-up is 0
    assert large.finite
    assert not advance(large, 1, hyper=huge).finite


def test_a_loss_that_is_not_finite_stops_everything(start):
    good = advance(start, 6)
    broken = good._replace(params=jax.tree.map(lambda x: np.full_like(x, np.nan), good.params))
    assert_same(advance(broken, 2), broken._replace(finite=jnp.bool_(False)))


def test_a_gradient_that_is_not_finite_stops_everything(start):
    steep = jax.tree.map(np.array, start.params)
    for leaf in jax.tree.leaves(steep):
        leaf[0] = 1e30  # its square overflows
    update = jax.jit(recipe()._update)
    stopped = update(start, {"loss": jnp.float32(1)}, steep, HYPER)
    assert_same(stopped, start._replace(finite=jnp.bool_(False)))
    gentle = update(start, {"loss": jnp.float32(1)}, start.params, HYPER)
    assert gentle.finite and gentle.step == 1


DROPOUT = dropout_edits(MODEL, jax.random.key(3), 0.3)


def test_dropout_is_where_gpt2_has_it():
    """Dropout acts on embeddings, and in each block and loop on the pattern and both outputs."""
    looped = Transformer(
        Spec(d_vocab=5, n_ctx=3, n_layers=2, d_model=4, n_heads=1, d_mlp=4, n_loops=2)
    )
    per_block = ("attn.hook_pattern", "hook_attn_out", "hook_mlp_out")
    assert set(dropout_edits(looped, KEY, 0.1)) == {
        "blocks.0.hook_resid_pre",
        *(f"blocks.{layer}.{site}" for layer in range(4) for site in per_block),
    }
    assert set(DROPOUT) < set(MODEL.sites)


def test_dropout_acts_at_each_of_its_sites_and_not_at_rate_zero(start):
    """A site that the trimmed wiring does not pass would silently have no dropout."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def logits(params, rates):
        edits = {
            site: Edit(edit.fn, (edit.args[0], rate))
            for (site, edit), rate in zip(DROPOUT.items(), rates, strict=True)
        }
        return forward_at(MODEL, params, ROWS.table.tokens, ROWS.table.positions, edits=edits)[0]

    clean, _ = jax.jit(functools.partial(forward_at, MODEL))(start.params, *ROWS.table[:2])
    rates = np.vstack([np.zeros(4), 0.5 * np.eye(4)]).astype(np.float32)
    none, *one_each = np.asarray(logits(start.params, rates))
    np.testing.assert_allclose(none, clean, rtol=0, atol=1e-6)
    for site, dropped in zip(DROPOUT, one_each, strict=True):
        assert np.abs(dropped - clean).max() > 0.05, site


dropped = compiled(lambda edit, value: edit(value, HookContext()))


def test_dropout_keeps_and_rescales():
    kept = []
    for edit in DROPOUT.values():
        value = dropped(edit, np.ones(20_000, np.float32))
        np.testing.assert_allclose(np.unique(value), [0, 1 / 0.7], rtol=1e-6)
        assert (value > 0).mean() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 20_000))
        kept.append(value > 0)
    for one, other in itertools.pairwise(kept):  # sites are independent
        assert (one == other).mean() == pytest.approx(0.7**2 + 0.3**2, abs=0.02)


@pytest.mark.slow
def test_dropout_differs_from_step_to_step_and_repeats_with_its_key(start):
    # All rows are equal and nothing is learned, so losses differ only by dropout.
    same = jax.tree.map(
        lambda x: x if x.ndim == 0 else np.broadcast_to(np.asarray(x)[1], x.shape), ROWS
    )
    frozen = HYPER._replace(learning_rate=jnp.float32(0))
    go = functools.partial(advance, start, rows=same, hyper=frozen)
    clean = np.asarray(go(4).window["loss"])
    np.testing.assert_allclose(clean, clean[0], rtol=1e-6)
    other_run = jax.jit(recipe(dropout=0.5).run)
    losses = np.asarray(go(4, run=other_run).window["loss"])
    assert (np.abs(np.diff(np.sort(losses))) > 1e-3).all()
    np.testing.assert_array_equal(go(1, 3, run=other_run).window["loss"], losses)
    other = go(4, key=jax.random.key(8), run=other_run).window["loss"]
    assert (np.abs(other - losses) > 1e-3).all()


@pytest.mark.slow
def test_a_population_is_its_trials(start):
    """Mapped over hyperparameters, trials equal separate runs while rounding errors are small."""
    rates, decays = ([1e-3, 1e-2, 3e-2], [0.0, 0.5, 1.0])
    trials = optimizer.Hyperparameters(np.array(rates, np.float32), np.array(decays, np.float32))
    together = jax.device_get(
        jax.jit(jax.vmap(recipe().run, (None, None, 0, None, None)))(
            start, ROWS, trials, KEY, jnp.int32(6)
        )
    )
    for trial in range(3):
        alone = advance(start, 6, hyper=jax.tree.map(lambda x, i=trial: x[i], trials))
        embedding = together.params["embed"]["W_E"][trial]
        np.testing.assert_allclose(embedding, alone.params["embed"]["W_E"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(together.window["loss"][trial], alone.window["loss"], rtol=1e-4)
    assert np.std(together.params["embed"]["W_E"], axis=0).max() > 0.01


def test_rows_of_other_worlds_are_never_seen(start):
    """In a population, rows of other worlds stand before and after the rows of a trial."""
    some = ROWS._replace(first=jnp.int32(3), n_rows=jnp.int32(6))
    own = (np.arange(N_ROWS) >= 3) & (np.arange(N_ROWS) < 9)
    spoiled = some.table._replace(
        tokens=np.where(own[:, None], some.table.tokens, 0),
        answers=np.where(own[:, None], some.table.answers, -1),
    )
    assert_same(advance(start, 8, rows=some), advance(start, 8, rows=some._replace(table=spoiled)))
    answers = np.array(some.table.answers)
    answers[8] = 0
    used = some._replace(table=some.table._replace(answers=answers))
    losses = np.asarray(advance(start, 8, rows=some).window["loss"])
    assert not (losses == np.asarray(advance(start, 8, rows=used).window["loss"])).all()
