"""Measurements of dictionaries use float32 matrix products, even where a GPU would round.

`tests/analysis/test_instruments.py` tests the other instruments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import baselines, measure
from implicit_reasoning.dictionaries.activations import ACTIVATIONS
from implicit_reasoning.dictionaries.api import choose_instruments
from implicit_reasoning.dictionaries.architectures import ARCHITECTURES, CrossLayer, SkipTranscoder
from implicit_reasoning.dictionaries.dashboards import feature_statistics
from implicit_reasoning.dictionaries.dictionary import Dictionary, InferenceDictionary
from implicit_reasoning.dictionaries.instrument import ExampleSource
from implicit_reasoning.dictionaries.states import split_states
from implicit_reasoning.dictionaries.store import Member
from tests.analysis.subjects import DATASET, random_checkpoints
from tests.dictionaries.small import SITE
from tests.precision import assert_exact, products


@pytest.mark.slow
def test_the_instruments_of_dictionaries():
    """All instruments are in one program."""
    subject = random_checkpoints(1)
    architecture = ARCHITECTURES["autoencoder"](8, 8, 12)
    finished = InferenceDictionary(architecture, "topk", 2)
    member = Member((0,), (SITE,), (SITE,), 2.0, 0)
    source = ExampleSource(
        FakeRun.of(subject), split_states(DATASET), (member,), np.ones(len(DATASET.positions), bool)
    )
    chosen = choose_instruments(source)
    assert len(chosen) >= 5
    program = measure._program(subject.model, chosen, source.split)
    params = architecture.init(jax.random.key(0), jnp.ones((3, 8)), jnp.ones((3, 8)))
    params |= {"b_enc": jnp.zeros(12), "k": jnp.int32(2)}
    items = jnp.zeros(1, jnp.int32), jax.tree.map(lambda leaf: leaf[None], params)
    stacked = jax.tree.map(lambda leaf: leaf[None], subject.params([0]))
    assert_exact(
        lambda params, items: program(params, items, member.sites, finished),
        stacked,
        items,
        at_least=20,
    )


class FakeRun(measure.Run):
    """The part of a run from which examples are chosen."""

    @classmethod
    def of(cls, subject):
        run = object.__new__(cls)
        run.__dict__.update(model=subject.model, dataset=subject.dataset)
        return run


SHAPES = [
    *(
        InferenceDictionary(ARCHITECTURES["transcoder"](4, 4, 6), arch)
        for arch in ("standard", "gated", "jumprelu")
    ),
    InferenceDictionary(ARCHITECTURES["autoencoder"](4, 4, 6), "topk", 2),
    InferenceDictionary(SkipTranscoder(4, 4, 6), "standard"),
    InferenceDictionary(CrossLayer(4, 4, 6, n_layers=2), "standard"),
    baselines.NearestCentroid(ARCHITECTURES["transcoder"](4, 4, 6), "standard"),
    baselines.Neurons(ARCHITECTURES["transcoder"](4, 4, 6), "topk", 2),
]


@pytest.mark.parametrize(
    "finished", SHAPES, ids=lambda f: f"{type(f.architecture).__name__} {f}"[:40]
)
def test_a_finished_dictionary(finished):
    x = jnp.ones((3, 4))
    params = finished.architecture.init(jax.random.key(0), x, x)
    own = {name: jnp.zeros(6) for name in ("b_enc", "b_gate", "b_mag", "r_mag", "threshold")}
    assert_exact(finished, params | own | {"k": jnp.int32(2)}, x, at_least=2)


def test_dashboards():
    acts, pos = jnp.ones((5, 3)), jnp.zeros(5, jnp.int32)
    half = (np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32))
    assert_exact(lambda acts, pos: feature_statistics._look(acts, pos, 2), acts, pos)
    assert_exact(
        lambda acts: feature_statistics._matches(acts, jnp.ones((1, 3)), (half, half), 2), acts
    )
    subject = random_checkpoints(1)
    params = jax.tree.map(lambda leaf: leaf[0], subject.params([0]))
    assert_exact(
        lambda *given: feature_statistics._tokens(subject.model, params, *given),
        *(jnp.ones((3, 8)), acts, jnp.ones(5)),
    )
    finished = InferenceDictionary(ARCHITECTURES["autoencoder"](4, 4, 6), "standard")
    made = finished.architecture.init(jax.random.key(0), jnp.ones((3, 4)), jnp.ones((3, 4)))
    assert_exact(
        lambda x: feature_statistics._encoded(finished, made | {"b_enc": jnp.zeros(6)}, x),
        jnp.ones((3, 4)),
    )


@pytest.mark.parametrize("name", ["relu", "topk"])
def test_training_keeps_the_precision_that_the_configuration_asks_for(name):
    """Training may use TF32 on a GPU, because the loss of a batch is not a measurement."""
    dictionary = Dictionary(ARCHITECTURES["autoencoder"](4, 4, 6), ACTIVATIONS[name]())
    x = jnp.ones((3, 4))
    params = dictionary.init(jax.random.key(0), x, x)
    jaxpr = jax.make_jaxpr(
        lambda params: dictionary.loss(params, x, x, jnp.float32(1), jnp.zeros(6, bool))[0]
    )(params)
    assert {precision for precision, _ in products(jaxpr.jaxpr)} == {None}
