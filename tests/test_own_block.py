"""A block that is not attention, added from outside the package, works like any other block."""

import shutil

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import NotApplicable, analyze
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, mask
from implicit_reasoning.model.blocks import Block, find_block
from implicit_reasoning.model.cones import cache_sites, patched_logits
from implicit_reasoning.model.exchange import save_gpt2, save_weights
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.runs import Run
from implicit_reasoning.training import train
from implicit_reasoning.training.cost import step_cost
from implicit_reasoning.training.optimizer import decay_mask
from implicit_reasoning.training.setup import mesh_axes
from tests import shared
from tests.model.exchange.models import filled
from tests.own_block import GatedRecurrence, PlainRecurrence
from tests.runtime.test_mesh import says
from tests.training.test_cost import traced_flops
from tests.training.tiny import tiny

NAME = "tests.own_block:GatedRecurrence"
SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=1, d_mlp=12, block=NAME)
MODEL = Transformer(SPEC)
TOKENS = np.array([[3, 7, 1, 9], [22, 0, 5, 5]])
OTHER = TOKENS[::-1, ::-1]


def config(**placement):
    """Return a configuration with a row for every step."""
    return tiny(log_every=1, model__block=NAME, **placement)


def finished():
    return shared.made_once("own-block", lambda folder: train(config(), folder))


def test_a_block_is_found_by_import_path():
    assert MODEL.block is GatedRecurrence
    of_file = find_block("tests/own_block.py:GatedRecurrence")
    assert issubclass(of_file, Block)
    assert of_file.sites(SPEC) == GatedRecurrence.sites(SPEC)
    assert find_block("tests/own_block.py:GatedRecurrence") is of_file  # it is imported only once


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt3", "unknown block 'gpt3'; did you mean 'gpt2'. Known names: gpt2. For a"),
        ("tests.no_block:Any", "there is no block 'tests.no_block'"),
        ("tests.own_block:Missing", "defines no subclass of Block named 'Missing'"),
        ("tests.own_block:HookContext", "defines no subclass of Block named 'HookContext'"),
        ("tests.own_block:Block", "does not define __call__, flops, parameters, sites"),
    ],
)
def test_what_is_no_complete_block_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        Transformer(Spec(d_vocab=2, n_ctx=1, n_layers=1, d_model=1, n_heads=1, d_mlp=1, block=name))


def test_its_parameters_are_those_of_its_table():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    made = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert made == {name: parameter.shape for name, parameter in MODEL.parameters.items()}
    mixer = decay_mask(MODEL)["blocks"]["1"]["mixer"]
    assert mixer == {"W_value": True, "W_gate": True, "b_gate": False, "W_out": True}
    assert mesh_axes(MODEL)["blocks.0.mixer.W_out"] == ("model", "fsdp")


def test_it_shows_its_sites():
    for layer in range(2):
        assert MODEL.sites[f"blocks.{layer}.mixer.hook_state"] == ("batch", "pos", "d_state")
    assert not [site for site in MODEL.sites if ".attn." in site or ".mlp." in site]
    sizes = MODEL.dims | {"batch": 2, "pos": 4}
    run = jax.eval_shape(
        lambda p: MODEL.forward(p, TOKENS, sites=tuple(MODEL.sites)), filled(MODEL)
    )
    for site, value in run[1].items():
        assert value.shape == tuple(sizes[dim] for dim in MODEL.sites[site]), site


def test_its_cost_is_that_of_the_traced_products():
    def forward(params, positions):
        return forward_at(MODEL, params, TOKENS, positions)[0]

    traced = jax.make_jaxpr(forward)(filled(MODEL), np.array([[1, 3], [2, 3]]))
    assert step_cost(SPEC, batch_size=2, n_pos=4, n_slots=2).forward == traced_flops(traced.jaxpr)


def test_patching_by_cones_equals_forward_with_edits():
    """Check every layer and position, with the block's own cones and with those that `Block`
    defines.
    """
    params = filled(MODEL)
    names = cache_sites(MODEL, inside=True)

    @jax.jit
    def edited(tokens, edits):
        logits, values = MODEL.forward(params, tokens, sites=names, edits=edits)
        return logits[:, -1], values

    def edit(layer, where, new):
        sites = [*(f"blocks.{n}.hook_resid_pre" for n in range(2)), "blocks.1.hook_resid_post"]
        nothing = np.zeros(new.shape, bool)
        return {
            site: Edit(mask, (where if n == layer else nothing, new))
            for n, site in enumerate(sites)
        }

    zeros = np.zeros((2, 4, 16), np.float32)
    clean, cache = edited(TOKENS, edit(0, zeros > 0, zeros))
    _, donor = jax.device_get(edited(OTHER, edit(0, zeros > 0, zeros)))
    states = [*(donor[f"blocks.{n}.hook_resid_pre"] for n in range(2))]
    states.append(donor["blocks.1.hook_resid_post"])
    starts = {(n, pos): states[n][None, :, pos] for n in range(3) for pos in range(4)}
    plain = Transformer(Spec(**{**vars(SPEC), "block": "tests.own_block:PlainRecurrence"}))
    assert plain.block is PlainRecurrence
    found = [
        jax.jit(lambda p, c, s, model=model: patched_logits(model, p, c, s))(params, cache, starts)
        for model in (MODEL, plain)
    ]
    for (layer, pos), own in starts.items():
        where = np.zeros((2, 4, 16), bool)
        where[:, pos] = True
        wanted, _ = edited(
            TOKENS, edit(layer, where, np.broadcast_to(own[0][:, None], where.shape))
        )
        for logits in found:
            np.testing.assert_allclose(logits[layer, pos][0], wanted, atol=1e-5)
        assert (np.abs(wanted - clean).max() > 1e-3) == (layer < 2 or pos == 3)


@pytest.mark.slow
def test_it_trains_and_its_checkpoints_reopen():
    run = Run(finished())
    assert run.model.block is GatedRecurrence
    losses = shared.losses(finished())
    assert len(losses) == 60 and np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05
    first, last = (jax.tree.map(lambda x, n=n: x[n], run.params([0, 60])) for n in (0, 1))
    made = jax.eval_shape(run.model.init, jax.random.key(0))
    assert jax.tree.structure(last) == jax.tree.structure(made)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (first, last)), strict=True)]
    assert min(moved) > 0


PROGRAM = """
import json, sys
from implicit_reasoning.training import train
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.setup import make_program
from tests.test_own_block import config

placed = config(mesh__data=4, mesh__model=2, mesh__fsdp=True)
run = train(placed, sys.argv[1])
program = make_program(TrainingSettings.from_config(placed), run.dataset)
mixer = program.like.params["blocks"]["0"]["mixer"]
split = {name: list(leaf.sharding.spec) for name, leaf in mixer.items()}
print(json.dumps({"losses": [row["loss"] for row in run.metrics[1:]], "split": split}))
"""


@pytest.mark.slow
def test_it_trains_the_same_run_on_eight_devices(tmp_path):
    """Its state is split over `model`, and its weights also over `data`."""
    said = says(PROGRAM, str(tmp_path / "run"))
    np.testing.assert_allclose(said["losses"], shared.losses(finished()), rtol=1e-5)
    both, only = ["data", "model"], ["model"]
    assert said["split"] == {"W_value": both, "W_gate": both, "b_gate": only, "W_out": both[::-1]}


@pytest.mark.slow
def test_instruments_of_the_residual_stream_read_it(tmp_path):
    run = Run(shutil.copytree(finished(), tmp_path / "run"))
    lens = analyze(run, "lens", steps=[60], progress=False)
    assert lens.sizes["layer"] == 3


@pytest.mark.slow
def test_activation_patching_has_one_part_for_its_block(tmp_path):
    run = Run(shutil.copytree(finished(), tmp_path / "run"))
    patching = analyze(run, "activation_patching", steps=[60], progress=False)
    assert list(patching.part.values) == ["block"]
    # At the end of the query, the output of the last block is the state that the model reads.
    by_part = patching.part_fraction.sel(part="block", block=1)
    assert np.isfinite(by_part).any()


@pytest.mark.parametrize("name", ["parameter_patching", "probes"])
def test_instruments_of_attention_and_mlp_refuse_it(name, tmp_path):
    run = Run(finished())
    with pytest.raises(NotApplicable, match="needs the attention and MLP of model"):
        analyze(run, name, steps=[60], progress=False)


def test_formats_of_other_packages_refuse_it(tmp_path):
    for save, where in ((save_weights, tmp_path / "w.npz"), (save_gpt2, tmp_path / "gpt2")):
        with pytest.raises(InputError, match=f"of this model is '{NAME}'"):
            save(where, MODEL, {})
    assert not list(tmp_path.iterdir())
