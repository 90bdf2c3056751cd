"""Early supervision adds the loss of facts that are read after earlier blocks, and nothing else."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import HookContext, Spec, Transformer
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import estimate, setup, train
from implicit_reasoning.training.early import NO_EARLY, EarlySettings, early_targets
from implicit_reasoning.training.population import train_population
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.worlds import build
from tests.training.test_population import trials
from tests.training.tiny import tiny

EARLY = {
    "loss__early_supervision__weight": 0.5,
    "loss__early_supervision__rows": "all",
    "log_every": 1,
    "steps": 12,
}


def settings_of(**changes):
    return TrainingSettings.from_config(tiny(**changes))


def by_enumeration(dataset, rows):
    """Return `{(row, position): token}` of the early answers, found row by row."""
    truth = {name: column.tolist() for name, column in dataset.truth.items()}
    atomic = {
        truth["fact1"][row]: (dataset.tokens[row, : position + 1].tolist(), token)
        for row, (position, token) in enumerate(
            zip(truth["position"], truth["answer"], strict=True)
        )
        if row < dataset.n_train and truth["fact2"][row] < 0
    }
    found = {}
    for row in range(dataset.n_train):
        is_chain = truth["fact2"][row] >= 0
        if rows not in ("all", "chains" if is_chain else "atomic"):
            continue
        prompt, token = atomic.get(truth["fact1"][row], ([], None))
        if prompt and dataset.tokens[row, : len(prompt)].tolist() == prompt:
            found[row, len(prompt) - 1] = token
    return found


@pytest.mark.parametrize("rows", ["atomic", "chains", "all"])
def test_targets_are_those_found_row_by_row(rows):
    dataset = build(tiny().task)
    targets = early_targets(dataset, rows)
    slots = zip(targets.positions.tolist(), targets.answers.tolist(), strict=True)
    found = {
        (row, position): token
        for row, columns in enumerate(slots)
        for position, token in zip(*columns, strict=True)
        if token >= 0
    }
    wanted = by_enumeration(dataset, rows)
    assert found == wanted and len(wanted) > 20
    assert len(targets.answers) == dataset.n_train


def test_a_chain_that_does_not_begin_with_its_first_fact_has_no_early_answer():
    dataset = build(tiny(task__order="r r e").task)
    assert (early_targets(dataset, "atomic").answers >= 0).any()
    np.testing.assert_array_equal(
        early_targets(dataset, "all").answers, early_targets(dataset, "atomic").answers
    )
    with pytest.raises(InputError, match="rows is 'chains', but no training row of this kind"):
        early_targets(dataset, "chains")


@pytest.mark.parametrize(
    ("layers", "read"), [((), (0, 1)), pytest.param((1,), (1,), marks=pytest.mark.slow)]
)
def test_the_loss_is_that_of_the_whole_forward_pass(layers, read):
    """The trimmed last block and the shared readout change neither the loss nor the gradient."""
    early = EarlySettings(0.5, layers, "all")
    dataset = build(tiny().task)
    settings = settings_of(model__n_layers=3, loss__early_supervision__weight=0.5)
    settings = TrainingSettings(**{**vars(settings), "early": early})
    recipe = setup.make_recipe(settings, dataset, sharding.make_mesh(settings.mesh))
    assert recipe.early is not None and recipe.early.layers == read
    model, some = recipe.model, slice(60, 76)
    table = setup.training_rows(dataset, early).table
    batch = jax.tree.map(lambda column: column[some], table)
    wanted = by_enumeration(dataset, "all")
    picked = [
        (row - some.start, position, token)
        for (row, position), token in wanted.items()
        if some.start <= row < some.stop
    ]
    where, tokens = jnp.array([p[:2] for p in picked]).T, jnp.array([p[2] for p in picked])

    def by_hand(params):
        sites = {f"blocks.{layer}.hook_resid_post" for layer in read}
        logits, states = model.forward(params, batch.tokens, sites=sites)
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(dataset.targets[some], 0)[..., None], axis=-1
        )[..., 0]
        supervised = dataset.targets[some] >= 0
        total = jnp.where(supervised, losses, 0).sum()
        network = model.bind(params)
        for state in states.values():
            normed = network.ln_final(state, HookContext())
            said = jax.nn.log_softmax(network.unembedding(normed))
            total -= 0.5 * said[where[0], where[1], tokens].sum()
        return total / supervised.sum()

    params = jax.jit(lambda key: jax.tree.map(lambda x: x + 0.1, model.init(key)))(
        jax.random.key(1)
    )
    ours = jax.jit(jax.value_and_grad(lambda p: recipe.loss(p, batch, None), has_aux=True))
    (loss, parts), gradient = ours(params)
    theirs, its_gradient = jax.jit(jax.value_and_grad(by_hand))(params)
    np.testing.assert_allclose(loss, theirs, rtol=1e-5)
    assert parts["early_loss"] > 0.1
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(its_gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


PROGRAM = """
import json, sys
from implicit_reasoning.training import train
from tests.training.test_early import losses
from tests.training.tiny import tiny
run = train(tiny(**json.loads(sys.argv[2]), mesh__data=2, mesh__model=2), sys.argv[1])
print(json.dumps(losses(run)))
"""
WORLDS = ({}, {"task__world_seed": 2, "task__phi": 1.2})


def losses(run):
    return [[row["loss"], row["early_loss"]] for row in run.metrics[1:]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    made = trials(tmp_path_factory.mktemp("alone"), WORLDS, **EARLY)
    found = [losses(train(trial.config, trial.files.workdir)) for trial in made]
    assert np.shape(found) == (2, 12, 2) and np.min(found) > 0.1
    return found


@pytest.mark.slow
def test_a_population_has_the_losses_of_runs_alone(alone, tmp_path):
    made = trials(tmp_path, WORLDS, **EARLY)
    train_population(made, Layout(tmp_path / "population"), 12, ShutdownRequest())
    together = [losses(Run(trial.files.workdir)) for trial in made]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.slow
def test_rows_and_heads_on_four_devices_have_the_losses_of_one(alone, tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), json.dumps(EARLY)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    np.testing.assert_allclose(json.loads(said.stdout), alone[0], rtol=1e-5)


def test_without_a_weight_nothing_is_added():
    dataset, settings = build(tiny().task), settings_of()
    assert settings.early == NO_EARLY
    recipe = setup.make_recipe(settings, dataset, sharding.make_mesh(settings.mesh))
    assert recipe.early is None and recipe.logged == ("loss", "grad_norm")
    assert setup.training_rows(dataset, settings.early).table.early is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__n_layers": 1}, "the model has one block; early supervision needs at least two"),
        ({"loss__early_supervision__layers": (1,)}, "contains 1; all layers must be"),
        ({"loss__early_supervision__layers": ("a",)}, "contains 'a'; all layers must be"),
    ],
)
def test_layers_that_cannot_be_read_are_refused(changes, message):
    settings, dataset = settings_of(**EARLY | changes), build(tiny().task)
    with pytest.raises(InputError, match=message):
        setup.make_recipe(settings, dataset, sharding.make_mesh(settings.mesh))


def test_the_estimate_counts_the_additional_products():
    spec = Transformer(Spec(d_vocab=16, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=16)).spec
    plain, early = (estimate.plan(tiny(**c), measure=False).cost for c in ({}, EARLY))
    vocab = build(tiny().task).n_vocab
    assert early.forward - plain.forward == 16 * 2 * spec.d_model * vocab
