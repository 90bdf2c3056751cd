"""Immediate and full-run decoding agree with blocks run one by one; constructed cases are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.reading import decoding
from implicit_reasoning.analysis.reading.decoding import Decoding
from implicit_reasoning.analysis.states import residuals
from implicit_reasoning.model import HookContext
from tests.analysis.tiny_states import make_dataset, make_model, plant, random_subject, run


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def model(dataset):
    return make_model(dataset)


def first_params(model, dataset):
    return random_subject(model, dataset).checkpoints[0]


@functools.partial(jax.jit, static_argnums=0)
def by_hand(model, params, tokens, recipients):
    """Return the top-1 token of the full run, computed block by block: [layer, row]."""
    network = model.bind(params)

    def streams(tokens):
        found = [network.embedding(jnp.asarray(tokens), HookContext())]
        for layer in range(model.spec.depth):
            found.append(network.block(layer)(found[-1], HookContext()))
        return found

    source, target = streams(tokens), streams(recipients)
    tops = []
    for start in range(model.spec.depth + 1):
        mixed = jnp.concatenate([target[start][:, :1], source[start][:, 1:]], axis=1)
        for layer in range(start, model.spec.depth):
            mixed = network.block(layer)(mixed, HookContext())
        tops.append(network.readout(mixed, HookContext())[:, 1].argmax(-1))
    return jnp.stack(tops)


def measured(model, dataset, *wanted):
    """Return hits of the full run for given tails, one bool [layer, row] for each."""
    inputs = dict(Decoding().examples(model, dataset).inputs)
    params, program = first_params(model, dataset), jax.jit(Decoding().measure, static_argnums=0)
    found = []
    for tails in wanted:
        inputs["wanted"] = np.broadcast_to(tails, inputs["wanted"].shape)
        outputs = program(model, params, inputs, jax.random.key(0))
        found.append(np.asarray(outputs["top1"])[2, 0, 0])
    return found


def test_the_full_run_is_that_of_blocks_run_by_hand(model, dataset):
    inputs = Decoding().examples(model, dataset).inputs
    params = first_params(model, dataset)
    tops = np.asarray(by_hand(model, params, inputs["tokens"], inputs["recipients"]))
    assert (tops[0] != tops[-1]).any()  # otherwise one layer could be mistaken for another
    for layer, found in enumerate(measured(model, dataset, *tops)):
        assert found[layer].all()


@pytest.mark.slow
def test_off_by_one_block_is_seen(monkeypatch, model, dataset):
    """Published code puts a state one block later than the block that it came from."""
    inputs = Decoding().examples(model, dataset).inputs
    params = first_params(model, dataset)
    tops = np.asarray(by_hand(model, params, inputs["tokens"], inputs["recipients"]))
    true = jax.jit(residuals, static_argnums=0)(model, params, inputs["tokens"])
    plant(monkeypatch, decoding, true)
    late = (*model.resid_sites[1:], model.resid_sites[-1])
    monkeypatch.setattr(type(model), "resid_sites", property(lambda self: late))
    assert not measured(model, dataset, tops[0])[0][0].all()


@pytest.mark.slow
def test_a_planted_tail_is_decoded_and_the_null_is_not(monkeypatch, model, dataset):
    """States at (1, r1) are the tail's column of the unembedding."""
    inputs = Decoding().examples(model, dataset).inputs
    unembed = first_params(model, dataset)["unembed"]["W_U"]
    states = np.random.default_rng(0).normal(size=(3, len(inputs["tokens"]), 2, 48))
    columns = np.array(unembed).T
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    states[1, :, 1] = 40 * columns[inputs["wanted"][0, 0]]
    plant(monkeypatch, decoding, states.astype(np.float32))
    result, traces = run(Decoding(), dataset, model)
    assert traces == 1
    at = result.isel(step=0).sel(variable="e2", layer=1)["top1"]
    for reading in decoding.READINGS[:2]:
        assert (at.sel(reading=reading, truth="true") > 0.95).all()
        assert (at.sel(reading=reading, truth="another's") < 0.05).all()
    assert Decoding().claims(result.isel(step=0)) == {Claim("decodable", "e2", 1, "r1")}
    assert result["top1"].sel(reading="immediate", truth="true", layer=2).max() < 0.4
    names = [figure.name for figure in Decoding().figures(result)]
    assert names == ["decoding", "decoding_bottleneck", "decoding_table"]


def test_recipients_and_nulls_have_other_tails(model, dataset):
    inputs = Decoding().examples(model, dataset).inputs
    true, another, recipients = inputs["wanted"][:, 0]
    assert (true != another).all() and (true != recipients).all()
    assert (inputs["tokens"][:, 0] != inputs["recipients"][:, 0]).all()


@pytest.mark.parametrize(
    ("task", "other", "taught"),
    [
        ("composition", {}, {"id": True, "ood": True}),
        ("without_id_triples", {}, {"id": False, "ood": True}),
        ("held_out_id_triples", {"held_out_fraction": 0.2}, {"id": True, "held_out": False}),
        ("shadow", {}, {"id": False, "ood": False}),
    ],
)
def test_what_is_true_by_construction(task, other, taught):
    dataset = make_dataset(task, **other)
    examples = Decoding().examples(make_model(dataset), dataset)
    found = examples.inputs["by_construction"]
    assert not found[:, :-1].any()
    for group, value in taught.items():
        assert found[0, -1, examples.groups.index(group)] == value
    if task == "shadow":  # single facts teach the decoy, but chains follow e2
        assert examples.coords["variable"] == ["e2", "decoy"] and found[1, -1].all()


def test_prompts_that_begin_with_relations_are_refused(model):
    other = make_dataset(order="r r e")
    with pytest.raises(NotApplicable, match="r1, r2, e1"):
        Decoding().examples(make_model(other), other)


def test_a_world_without_another_fact_to_go_into_is_refused():
    with pytest.raises(NotApplicable, match="too small"):
        decoding._other(np.zeros((2, 3), int), np.arange(3), seed=0)
