"""The cases and the output of each peer, made once per session, because every peer is slow."""

import numpy as np
import pytest

from implicit_reasoning.model.exchange import save_gpt2, save_weights
from tests.peers.cases import PAIRS, SCRIPTS, models
from tests.peers.environment import run_in


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Return `{case: (model, params, tokens)}`."""
    return models(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def exchanged(made, tmp_path_factory):
    """Return `exchanged(peer)`: the folder of cases after the peer has processed it."""
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
