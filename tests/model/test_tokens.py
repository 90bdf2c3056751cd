"""Numbers that are not tokens are refused at every entry point."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, measure
from implicit_reasoning.analysis.behaviour import Behaviour
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.hooks import Hooked
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.training.evaluation import make_evaluator
from implicit_reasoning.worlds import Dataset, build
from tests.training.tiny import tiny

DATASET = build(tiny().task)
MODEL = Transformer(
    Spec(d_vocab=DATASET.n_vocab, n_ctx=DATASET.n_ctx, n_layers=1, d_model=8, n_heads=2, d_mlp=16)
)
SMALLER = Transformer(dataclasses.replace(MODEL.spec, d_vocab=DATASET.n_vocab - 1))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def wrong(number, kind):
    tokens = np.zeros((3, 2), np.int32)
    tokens[1, 1] = number
    return kind(tokens)


ENTRIES = {
    "forward": lambda params, tokens: MODEL.forward(params, tokens),
    "forward_at": lambda params, tokens: forward_at(MODEL, params, tokens),
    "hooked": lambda params, tokens: Hooked(MODEL, params)(tokens),
    "run_with_cache": lambda params, tokens: Hooked(MODEL, params).run_with_cache(tokens),
    "run_with_hooks": lambda params, tokens: Hooked(MODEL, params).run_with_hooks(tokens),
    "jit with constants": lambda params, tokens: jax.jit(lambda p: MODEL.forward(p, tokens))(
        params
    ),
}


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("number", [-1, DATASET.n_vocab, 2**31 - 1])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_token_that_does_not_exist_is_refused(entry, number, kind, params):
    said = rf"token {number} \(first at row 1, position 1\) does not exist: the model has"
    with pytest.raises(InputError, match=said):
        ENTRIES[entry](params, wrong(number, kind))


def test_a_compiled_program_does_not_look(params):
    """The check would have to wait for the device, and traced values have no numbers."""
    jax.make_jaxpr(MODEL.forward)(params, wrong(DATASET.n_vocab, jnp.asarray))


def test_a_dataset_of_other_tokens_is_refused(params):
    with pytest.raises(InputError, match="does not exist"):
        make_evaluator(SMALLER, DATASET)
    with pytest.raises(InputError, match="does not exist"):
        measure(Behaviour(), InMemory(SMALLER, DATASET, [params]), progress=False)


@pytest.mark.parametrize("number", [-2, -7, DATASET.n_vocab, 2**31 - 1])
@pytest.mark.parametrize("name", ["tokens", "targets", "answer", "position"])
def test_a_dataset_with_such_numbers_cannot_be_made(name, number):
    if name in DATASET.truth:
        column = DATASET.truth[name].copy()
        column[-1] = number
        change = {"truth": DATASET.truth | {name: column}}
    else:
        change = {name: getattr(DATASET, name).copy()}
        change[name][-1, -1] = number
    with pytest.raises(InputError, match=f"{name}.* contains the value {number}; with"):
        dataclasses.replace(DATASET, **change)


def test_none_of_these_numbers_is_an_empty_dataset():
    empty = {name: getattr(DATASET, name)[:0] for name in ("tokens", "targets", "split", "probe")}
    assert len(dataclasses.replace(DATASET, **empty, truth={})) == 0


def test_a_file_with_such_numbers_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "__post_init__", lambda self: None)
        tokens = DATASET.tokens.copy()
        tokens[0, 0] = DATASET.n_vocab
        dataclasses.replace(DATASET, tokens=tokens).save(tmp_path / "world.npz")
    with pytest.raises(InputError, match=r"world\.npz.*invalid dataset: tokens contains the value"):
        Dataset.load(tmp_path / "world.npz")
