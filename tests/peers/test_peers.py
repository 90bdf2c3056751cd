"""Logits against those of the packages themselves, both ways; run by `make test-peers`.

Each package has an environment of its own, and files are all that passes between them and us.
"""

import dataclasses
import shutil

import numpy as np
import pytest

from implicit_reasoning.model import Transformer
from implicit_reasoning.model.interchange import load_gpt2, load_weights, save_gpt2, save_weights
from tests.model.interchange.models import assert_same_logits, logits_of
from tests.peers.cases import NOT_GPT2, RANDOM, TRAINED, models
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

SCRIPTS = {
    "huggingface": "huggingface",
    "transformer_lens_2": "hooked_transformer",
    "sae_lens": "hooked_transformer",  # on TransformerLens 3
    "transformer_lens_4": "transformer_bridge",
}
CASES = [*RANDOM, *TRAINED]
PAIRS = [
    (peer, case)
    for peer in SCRIPTS
    for case in CASES
    if not (peer == "huggingface" and case in NOT_GPT2)
]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return models(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def exchanged(made, tmp_path_factory):
    """`exchanged(peer)`: the folder of cases after the peer has seen it; once a session."""
    folders = {}

    def visit(peer):
        if peer not in folders:
            folders[peer] = tmp_path_factory.mktemp(peer)
            for case, (model, params, tokens) in made.items():
                if (peer, case) in PAIRS:
                    folder = folders[peer] / case
                    folder.mkdir()
                    np.save(folder / "tokens.npy", tokens)
                    if peer == "huggingface":
                        save_gpt2(folder / "ours", model, params)
                    else:
                        save_weights(folder / "ours.safetensors", model, params)
            run_in(peer, SCRIPTS[peer], folders[peer])
        return folders[peer]

    return visit


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


@pytest.mark.parametrize(("peer", "case"), [pair for pair in PAIRS if pair[0] != "huggingface"])
def test_every_hook_has_the_value_that_it_has_there(made, exchanged, peer, case):
    model, params, tokens = made[case]
    with np.load(exchanged(peer) / case / "hooks.npz") as file:
        theirs = dict(file)
    shared = [site for site in model.sites if site in theirs]
    if peer == "transformer_lens_4":  # its native bridge has most of them, under the same names
        assert len(shared) > len(model.sites) / 2
        # There this one stands before weight and bias, in 2 and 3 after them, as ours.
        shared = [site for site in shared if not site.endswith("hook_normalized")]
    else:
        assert shared == list(model.sites)
    exact = Transformer(dataclasses.replace(model.spec, precision="highest"))
    _, ours = exact.forward(params, tokens, sites=shared)
    for site in shared:
        np.testing.assert_allclose(ours[site], theirs[site], rtol=1e-4, atol=1e-4, err_msg=site)


@pytest.mark.parametrize("case", ["tied", "trained"])
def test_a_pytorch_file_holds_the_same_as_a_safetensors(exchanged, case, tmp_path, monkeypatch):
    """Torch reads it there, with our reader; what that gave is put in its place here."""
    folder = exchanged("huggingface") / case
    with np.load(folder / "pickled.npz") as file:
        arrays = dict(file)
    monkeypatch.setattr("implicit_reasoning.model.interchange.gpt2.read_arrays", lambda _: arrays)
    shutil.copytree(folder / "pickled", tmp_path / "pickled")
    theirs = np.load(folder / "their_logits.npy")
    tokens = np.load(folder / "tokens.npy")
    assert_same_logits(logits_of(*load_gpt2(tmp_path / "pickled"), tokens), theirs)


def test_a_pytorch_file_that_would_run_code_is_refused(tmp_path):
    said = run_in("huggingface", "refuse_pickle", tmp_path)
    assert said.startswith("InputError") and "is not a whole weights file" in said
    assert not (tmp_path / "ran").exists()
