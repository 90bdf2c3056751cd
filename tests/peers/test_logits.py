"""Logits agree with other packages in both directions; `make test-peers` runs these tests.

Each package has its own environment, which exchanges only files with this package.
"""

import shutil

import numpy as np
import pytest

from implicit_reasoning.model.exchange import load_gpt2, load_weights
from tests.model.exchange.models import assert_same_logits, logits_of
from tests.peers.cases import PAIRS
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_they_compute_our_logits_from_our_file(made, exchanged, peer, case):
    folder = exchanged(peer) / case
    assert_same_logits(logits_of(*made[case]), np.load(folder / "logits.npy"))


@pytest.mark.parametrize(("peer", "case"), PAIRS)
def test_we_compute_their_logits_from_their_file(made, exchanged, peer, case):
    folder = exchanged(peer) / case
    if peer == "huggingface":
        model, params = load_gpt2(folder / "theirs")
    else:
        model, params = load_weights(folder / "theirs.safetensors")
    tokens, theirs = np.load(folder / "tokens.npy"), np.load(folder / "their_logits.npy")
    assert_same_logits(logits_of(model, params, tokens), theirs)


@pytest.mark.parametrize("case", ["tied", "trained"])
def test_a_pytorch_file_holds_the_same_as_a_safetensors(exchanged, case, tmp_path, monkeypatch):
    """Torch reads the file in that environment, with this package's reader; the test uses the
    result.
    """
    folder = exchanged("huggingface") / case
    with np.load(folder / "pickled.npz") as file:
        arrays = dict(file)
    monkeypatch.setattr(
        "implicit_reasoning.model.exchange.gpt2.read_arrays", lambda _, **__: arrays
    )
    shutil.copytree(folder / "pickled", tmp_path / "pickled")
    theirs = np.load(folder / "their_logits.npy")
    tokens = np.load(folder / "tokens.npy")
    assert_same_logits(logits_of(*load_gpt2(tmp_path / "pickled"), tokens), theirs)


def test_a_pytorch_file_that_would_run_code_is_refused(tmp_path):
    said = run_in("huggingface", "refuse_pickle", tmp_path)
    assert said.startswith("InputError") and "is not a complete weights file" in said
    assert not (tmp_path / "ran").exists()
