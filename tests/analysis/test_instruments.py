"""Guarantees that every built-in instrument gives."""

from types import SimpleNamespace

import jax
import pytest

from implicit_reasoning.analysis import INSTRUMENTS, Runner, find_instrument
from implicit_reasoning.analysis.editing.knowledge_editing import KnowledgeEditing
from implicit_reasoning.analysis.editing.value_search import ValueSearch
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import build
from tests.analysis.subjects import random_checkpoints
from tests.analysis.test_runner import Probabilities
from tests.analysis.tiny_states import make_dataset, make_model, random_subject
from tests.precision import assert_exact

instruments = pytest.mark.parametrize("name", INSTRUMENTS)
chosen = {}  # the examples of every instrument, because choosing them takes seconds


@pytest.fixture(scope="module")
def chains():
    dataset = make_dataset()
    return random_subject(make_model(dataset), dataset, n_checkpoints=3)


@pytest.fixture
def subject(name, chains):
    """Return a subject of the task that the instrument is for."""
    if name != "fourier_progress":
        return chains
    task = {"modulus": 7, "train_fraction": 0.4, "probes": 20, "world_seed": 0}
    dataset = build(SimpleNamespace(name="modular_addition", **task))
    return random_subject(make_model(dataset), dataset, n_checkpoints=3)


def instrument_of(name):
    """Return an instrument. Random weights answer no fact, so a default search takes all steps."""
    if name == "knowledge_editing":
        return KnowledgeEditing(edits=6, search=ValueSearch(steps=3))
    return find_instrument(name)


def examples_of(name, subject):
    if name not in chosen:
        chosen[name] = instrument_of(name).examples(subject.model, subject.dataset)
    return chosen[name]


@instruments
def test_one_program_has_all_its_cells_and_checkpoints(subject, name):
    """The program is traced once (`lax.map` may trace twice), not once per cell or checkpoint."""
    instrument, model = instrument_of(name), subject.model
    inputs = examples_of(name, subject).inputs
    if instrument.reference:
        inputs = inputs | {"reference": subject.checkpoints[0]}
    runner = Runner(instrument, model)
    # Products are float32, even where a GPU would round.
    found = assert_exact(runner.program(), subject.params((0, 1, 2)), inputs, jax.random.key(0))
    assert found.keys() == instrument.outputs.keys()
    assert {leaf.shape[0] for leaf in found.values()} == {3}
    assert 1 <= runner.traces <= 2


@instruments
def test_it_has_a_null_that_is_in_its_results(subject, name):
    instrument, dataset = instrument_of(name), subject.dataset
    labels = examples_of(name, subject).coords
    instrument.check_nulls({**instrument.coords(subject.model, dataset), **labels})
    assert instrument.nulls


@pytest.mark.parametrize(
    ("null", "missing"), [("chance", "output 'chance'"), ({"pos": "r9"}, "output with pos='r9'")]
)
def test_a_null_that_is_not_there_is_said_before_anything_is_measured(null, missing):
    class Odd(Probabilities):
        nulls = {"by chance": null}

    with pytest.raises(InputError, match=rf"'by chance' needs \w+ {missing}"):
        measure(Odd(), random_checkpoints(1), progress=False)
