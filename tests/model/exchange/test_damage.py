"""Whatever the files contain, a reader returns a model or raises an error of one sentence."""

import contextlib
import dataclasses
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import load_gpt2, load_weights, save_gpt2, save_weights
from tests import shared
from tests.model.exchange.models import SPEC, filled

# Large numbers are excluded, because a model that is too large for the machine is another case.
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.floats(-2, 2)
    | st.text(max_size=3)
    | st.lists(st.integers(0, 1), max_size=1)
    | st.dictionaries(st.text(max_size=1), st.none(), max_size=1)
)
EXTRA = ("normalization_type", "attn_only", "add_recurrence", "no_ln", "n_params")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a model in every format; return `{path of the weights: (its reader, its config)}`."""
    folder = tmp_path_factory.mktemp("saved")
    model = Transformer(dataclasses.replace(SPEC, tied=True))
    params = filled(model)
    save_gpt2(folder / "gpt2", model, params)
    files = {
        folder / "gpt2" / "model.safetensors": (
            lambda: load_gpt2(folder / "gpt2"),
            folder / "gpt2" / "config.json",
        )
    }
    for path in (folder / "v.safetensors", folder / "w.npz"):
        save_weights(path, model, params)
        files[path] = (lambda path=path: load_weights(path)), path.with_suffix(".json")
    return files


@contextlib.contextmanager
def restored(path):
    """Yield the bytes of a file, and restore them afterwards."""
    before = path.read_bytes()
    try:
        yield before
    finally:
        path.write_bytes(before)


@hypothesis.settings(max_examples=100 if shared.THOROUGH else 15)
@hypothesis.given(data=st.data())
def test_of_configs(saved, data):
    read, path = saved[data.draw(st.sampled_from(sorted(saved)))]
    with restored(path) as before:
        config = json.loads(before)
        changes = st.dictionaries(st.sampled_from([*config, *EXTRA]), VALUES, max_size=2)
        path.write_text(json.dumps(config | data.draw(changes)))
        with contextlib.suppress(InputError):
            read()


@hypothesis.settings(max_examples=100 if shared.THOROUGH else 15)
@hypothesis.given(data=st.data())
def test_of_weights(saved, data):
    path = data.draw(st.sampled_from(sorted(saved)))
    with restored(path) as before:
        damaged = bytearray(before)
        for _ in range(data.draw(st.integers(0, 3))):
            # Headers are at the front in one format and at the end in the other.
            place = data.draw(st.integers(0, 400) | st.integers(-400, -1))
            damaged[place] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.none() | st.integers(0, len(damaged)))])
        with contextlib.suppress(InputError):
            saved[path][0]()


@pytest.mark.parametrize(
    "array",
    [np.array(["one"]), np.array([(1, 2)], [("a", int), ("b", int)]), np.array([None])],
    ids=["text", "records", "objects"],
)
def test_arrays_that_are_no_numbers(tmp_path, array):
    model = Transformer(SPEC)
    save_weights(tmp_path / "w.npz", model, filled(model))
    with np.load(tmp_path / "w.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "w.npz", **arrays | {"ln_final.w": array})
    with pytest.raises(InputError, match="not a complete weights file"):
        load_weights(tmp_path / "w.npz")
