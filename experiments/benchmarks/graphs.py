r"""Benchmark of attribution graphs, against circuit-tracer.

    make .peers/circuit_tracer/.installed
    python experiments/benchmarks/graphs.py

The model has the `pocket` shape and random weights, and the transcoders of its MLPs have random
weights and a bias with which about 3% of the features are active. Both sides make the attribution
graph of every prompt: all active features, errors, embeddings, and the logits that have 95% of the
probability. Ours is one compiled program for all prompts. circuit-tracer makes one graph after
another, with the fastest of several batch sizes. Pruning is not included.

The sides run in turns on every core, circuit-tracer in a separate process. Before any timing, the
script checks that the sides agree. The first call, which includes compilation, is timed separately.
Aim: 20 times as fast. FLOPs count matrix products: ours in the traced program, and circuit-tracer's
by PyTorch's `FlopCounterMode` during one call.

Smoke test:
    python experiments/benchmarks/graphs.py --layers=1 --width=8 --heads=1 --prompts=2 --vocab=11 \
        --features=6 --rounds=1 --peer=none --out=runs/smoke/graphs.json
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from outfile import OUT
from peer import Peer
from product_flops import product_flops
from shapes import POCKET, random_model
from turns import compared, take_turns, timed

from implicit_reasoning.config import parse_flags
from implicit_reasoning.dictionaries.architectures import Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.exchange import save_transcoder_set
from implicit_reasoning.dictionaries.graphs.attribution import Graph, attribute
from implicit_reasoning.dictionaries.replacement import Replacement, mlp_sites
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_npz
from implicit_reasoning.model import Params
from implicit_reasoning.model.exchange import save_weights

FLAGS = {
    **POCKET,
    "prompts": 100,
    "features": 512,
    "places": 160,
    "rounds": 9,
    "calls": 1,
    "peer": ".peers/circuit_tracer/bin/python",
    "name": "graphs",
    "out": OUT,
}
SIZES = (*POCKET, "features", "places", "calls")
BATCH_SIZES = (32, 128, 512)
BIAS = -1.88  # of features whose pre-activation has a standard deviation of 1: 3% are active
OURS, PEER = "ours", "circuit_tracer"
AS_CLOSE = 1e-4  # tolerance for the weight of an edge, as a share of the largest one


def main(argv: list[str]) -> None:
    """Check agreement, time both sides in turns, and write seconds and FLOPs."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(f"no flag {next(iter(overrides))!r}; there are {', '.join(FLAGS)}")
    model, params = random_model(flags)
    random = np.random.default_rng(0)
    shape = flags["prompts"], flags["positions"]
    tokens = random.integers(flags["vocab"], size=shape, dtype=np.int32)
    dictionary, own = random_transcoders(flags, random)
    replacement = Replacement((dictionary,) * flags["layers"], mlp_sites(model))

    def job(params: Params, own: list[Params]) -> Graph:
        return attribute(model, params, replacement, own, tokens, max_features=flags["places"])

    program = jax.jit(job)
    run = timed(partial(program, params, own))
    first, graphs = run(), program(params, own)
    most = int(graphs.n_active.max())
    if most > min(flags["places"], graphs.layer.shape[1]):
        raise InputError(f"{most} features are active, more than --places={flags['places']}")
    sides = {OURS: run}
    flops = {OURS: product_flops(job, params, own)}
    versions: dict[str, Any] = {}
    best = None
    with tempfile.TemporaryDirectory() as folder:
        if flags["peer"] != "none":
            save_weights(Path(folder) / "ours.safetensors", model, params)
            save_transcoder_set(
                Path(folder) / "transcoders", [(dictionary, layer) for layer in own]
            )
            write_npz(Path(folder) / "inputs.npz", {"tokens": tokens})
            peer = Peer(flags["peer"], "circuit_tracer_attribution.py", Path(folder))
            seconds = {size: peer.ask(f"time {size}")["seconds"] for size in BATCH_SIZES}
            best = min(seconds, key=lambda size: seconds[size])
            flops[PEER] = peer.ask(f"keep {best}")["flops"]
            check_agreement(graphs, np.load(Path(folder) / "graph.npz"))
            sides[PEER] = lambda: float(peer.ask(f"time {best}")["seconds"])
            versions = peer.versions
        seconds_of = take_turns(sides, flags["rounds"], calls=flags["calls"])
    result = {
        "sizes": {name: flags[name] for name in SIZES},
        "active_features": {"mean": float(graphs.n_active.mean()), "most": most},
        "batch_size": best,
        "load_average": os.getloadavg()[0],
        "first_call_seconds": first,
        "graphs": compared(seconds_of, flops, OURS),
        "versions": versions,
    }
    keep(result, flags["out"], flags["name"])


def random_transcoders(
    flags: Mapping[str, Any], random: np.random.Generator
) -> tuple[InferenceDictionary, list[Params]]:
    """Return a transcoder, and the parameters of one for each layer."""
    width, features = flags["width"], flags["features"]
    dictionary = InferenceDictionary(Transcoder(width, width, features), "standard")

    def weights(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape) / width**0.5, jnp.float32)

    own = [
        {
            "W_enc": weights(width, features),
            "b_enc": jnp.full(features, BIAS, jnp.float32),
            "W_dec": weights(features, width),
            "b_dec": weights(width),
        }
        for _ in range(flags["layers"])
    ]
    return dictionary, own


def check_agreement(graphs: Graph, theirs: Mapping[str, np.ndarray]) -> None:
    """Check that the graph of the first prompt is the same on both sides."""
    graph = jax.tree.map(lambda leaf: np.asarray(leaf[0]), graphs)
    places = {
        (int(layer), int(pos), int(feature)): at
        for at, (layer, pos, feature) in enumerate(
            zip(graph.layer, graph.pos, graph.feature, strict=True)
        )
        if graph.counts[at]
    }
    features = [places[layer, pos, feature] for layer, pos, feature in theirs["features"].tolist()]
    n_logits = len(theirs["tokens"])
    n_rest = len(theirs["adjacency"]) - len(features) - n_logits  # errors and embeddings
    order = np.array([*features, *(len(graph.layer) + np.arange(n_rest + n_logits))])
    scale = np.abs(theirs["adjacency"]).max()
    np.testing.assert_array_equal(graph.token[:n_logits], theirs["tokens"])
    np.testing.assert_allclose(
        graph.adjacency[np.ix_(order, order)], theirs["adjacency"], rtol=0, atol=AS_CLOSE * scale
    )


if __name__ == "__main__":
    main(sys.argv[1:])
