"""Dictionaries agree with SAELens and circuit-tracer: encoding, decoding and training losses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.activations import (
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
)
from implicit_reasoning.dictionaries.architectures import (
    Autoencoder,
    CrossLayer,
    SkipTranscoder,
    Transcoder,
)
from implicit_reasoning.dictionaries.exchange import (
    load_saelens,
    save_cross_layer,
    save_saelens,
    save_transcoder_set,
)
from tests.dictionaries.parameters import at_random
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

D, F, BATCH, TOLERANCE = 16, 40, 32, 1e-4
FINISHED = {
    "relu": (Autoencoder(D, D, F), ReLU()),
    "gated": (Autoencoder(D, D, F), Gated()),
    "topk": (Autoencoder(D, D, F), TopK(max_k=4)),
    "batch_topk": (Autoencoder(D, D, F), BatchTopK()),
    "matryoshka": (Autoencoder(D, D, F), Matryoshka(widths=(8,))),
    "jumprelu": (Autoencoder(D, D, F), JumpReLU(threshold=0.3)),
    "transcoder": (Transcoder(D, 12, F), ReLU()),
    "skip_transcoder": (SkipTranscoder(D, 12, F), ReLU()),
    "jumprelu_transcoder": (Transcoder(D, 12, F), JumpReLU(threshold=0.3)),
    "jumprelu_skip_transcoder": (SkipTranscoder(D, 12, F), JumpReLU(threshold=0.3)),
}


def finished(architecture, activation_fn):
    """Return a finished dictionary with random parameters, and a batch."""
    dictionary, params, x, *_ = at_random(architecture, activation_fn, batch=BATCH)
    params = dictionary.finish(params, jnp.float32(0.4), jnp.float32(4), 1.5, 1.5)
    return dictionary.for_inference(), params, x


@pytest.fixture(scope="module")
def seen_by_sae_lens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    made = {name: finished(*parts) for name, parts in FINISHED.items()}
    for name, (whole, params, x) in made.items():
        save_saelens(folder / name / "ours", whole, params, read="a", write="b")
        np.save(folder / name / "x.npy", x)
    run_in("sae_lens", "sae_lens_finished", folder)
    return folder, made


@pytest.mark.parametrize("name", FINISHED)
def test_sae_lens_encodes_and_decodes_the_same(seen_by_sae_lens, name):
    folder, made = seen_by_sae_lens
    whole, params, x = made[name]
    acts = whole.encode(params, x)
    assert 0 < (acts > 0).mean() < 1
    np.testing.assert_allclose(acts, np.load(folder / name / "acts.npy"), atol=TOLERANCE)
    np.testing.assert_allclose(whole(params, x), np.load(folder / name / "out.npy"), atol=TOLERANCE)


@pytest.mark.parametrize("name", FINISHED)
def test_what_sae_lens_writes_is_read(seen_by_sae_lens, name):
    folder, made = seen_by_sae_lens
    whole, params, x = made[name]
    theirs, their_params, _ = load_saelens(folder / name / "theirs")
    assert theirs == whole
    np.testing.assert_allclose(theirs(their_params, x), whole(params, x), atol=TOLERANCE)


# Losses ------------------------------------------------------------------------------------------

LOSSES = {
    # activation_fn: (ours, our sparsity, their class, their config, their coefficients, names)
    "relu": (ReLU(), 0.2, "StandardTrainingSAE", {}, {"l1": 0.2}, {"l1": "l1_loss"}),
    "gated": (
        Gated(),
        0.2,
        "GatedTrainingSAE",
        {},
        {"l1": 0.2},
        {"l1": "l1_loss", "gate": "auxiliary_reconstruction_loss"},
    ),
    "topk": (
        TopK(max_k=4),
        4,
        "TopKTrainingSAE",
        {"k": 4},
        {},
        {"aux": "auxiliary_reconstruction_loss"},
    ),
    "batch_topk": (
        BatchTopK(),
        4,
        "BatchTopKTrainingSAE",
        {"k": 4},
        {},
        {"aux": "auxiliary_reconstruction_loss"},
    ),
    "matryoshka": (
        Matryoshka(widths=(8, 20)),
        4,
        "MatryoshkaBatchTopKTrainingSAE",
        {"k": 4, "matryoshka_widths": [8, 20, F]},
        {},
        {
            "aux": "auxiliary_reconstruction_loss",
            "inner_8": "inner_mse_loss_8",
            "inner_20": "inner_mse_loss_20",
        },
    ),
    "jumprelu": (
        JumpReLU(revive=0.1),
        0.2,
        "JumpReLUTrainingSAE",
        {"pre_act_loss_coefficient": 0.1},
        {"l0": 0.2},
        {"l0": "l0_loss", "revive": "pre_act_loss"},
    ),
    "jumprelu tanh": (
        JumpReLU(mode="tanh"),
        0.2,
        "JumpReLUTrainingSAE",
        {"jumprelu_sparsity_loss_mode": "tanh"},
        {"l0": 0.2},
        {"l0": "l0_loss"},
    ),
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("losses"), {}
    for name, (activation_fn, _, theirs, config, coefficients, _) in LOSSES.items():
        dictionary, params, x, _, dead = at_random(Autoencoder(D, D, F), activation_fn, batch=BATCH)
        dead = dead.at[jnp.array([1, 7, 8, 30])].set(True)
        made[name] = dictionary, params, x, dead
        (folder / name).mkdir()
        np.savez(folder / name / "params.npz", **params)
        np.savez(folder / name / "batch.npz", x=x, dead=dead)
        case = {
            "class": theirs,
            "config": {"d_in": D, "d_sae": F, **config},
            "coefficients": coefficients,
        }
        (folder / name / "case.json").write_text(json.dumps(case))
    run_in("sae_lens", "sae_lens_losses", folder)
    return folder, made


@pytest.mark.parametrize("name", LOSSES)
def test_sae_lens_has_the_same_loss(losses, name):
    folder, made = losses
    dictionary, params, x, dead = made[name]
    _, sparsity, *_, names = LOSSES[name]
    loss, seen = dictionary.loss(params, x, x, jnp.float32(sparsity), dead)
    theirs = json.loads((folder / name / "losses.json").read_text())
    for ours, their_name in {"mse": "mse_loss", **names}.items():
        np.testing.assert_allclose(
            seen.terms[ours], theirs[their_name], rtol=TOLERANCE, err_msg=ours
        )
    np.testing.assert_allclose(loss, theirs["loss"], rtol=TOLERANCE)


# circuit-tracer ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen_by_circuit_tracer(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("sets"), {}
    for name, make, activation_fn in (
        ("relu", Transcoder, ReLU()),
        ("jumprelu", Transcoder, JumpReLU(threshold=0.3)),
        ("skip", SkipTranscoder, JumpReLU(threshold=0.3)),
    ):
        parts = [finished(make(D, D, F), activation_fn) for _ in range(2)]
        made[name] = parts
        save_transcoder_set(folder / name / "ours", [part[:2] for part in parts])
        np.save(folder / name / "x.npy", np.stack([part[2] for part in parts]))
    for name, activation_fn in (("clt relu", ReLU()), ("clt jumprelu", JumpReLU(threshold=0.3))):
        whole, params, x = finished(CrossLayer(2 * D, 2 * D, 2 * F, n_layers=2), activation_fn)
        made[name] = [(whole, params, x)]
        save_cross_layer(folder / name / "ours", whole, params)
        np.save(folder / name / "x.npy", np.stack(np.split(np.asarray(x), 2, axis=1)))
    run_in("circuit_tracer", "circuit_tracer_sets", folder)
    return folder, made


@pytest.mark.parametrize("name", ["relu", "jumprelu", "skip", "clt relu", "clt jumprelu"])
def test_circuit_tracer_encodes_and_decodes_the_same(seen_by_circuit_tracer, name):
    folder, made = seen_by_circuit_tracer
    acts, out = (np.load(folder / name / f"{part}.npy") for part in ("acts", "out"))
    if name.startswith("clt"):
        ((whole, params, x),) = made[name]
        ours = whole.encode(params, x), whole(params, x)
        theirs = [np.concatenate(list(part), axis=1) for part in (acts, out)]
    else:
        parts = [(w.encode(p, x), w(p, x)) for w, p, x in made[name]]
        ours, theirs = [np.stack(both) for both in zip(*parts, strict=True)], (acts, out)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=TOLERANCE)
