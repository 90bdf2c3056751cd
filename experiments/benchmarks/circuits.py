r"""Benchmark of circuit discovery, against AutoCircuit.

    make .peers/auto_circuit/.installed
    python experiments/benchmarks/circuits.py

The model has the `pocket` shape and random weights. Every job scores all edges, each at all
positions together. The metric of the first two jobs is a logit difference:

- `exact`: the effects of patching each edge alone. Ours is `scores.exact`, one program. AutoCircuit
  has no function for it, so its masks are set one edge after another, and each run starts at the
  block of the edge's receiver, as in its ACDC.
- `integrated mask gradients`: gradients with respect to the mask at the shares 0, .2, .4, .6, .8
  and 1 (AutoCircuit's `mask_gradient_prune_scores` with 5 samples). Ours is
  `scores.mask_gradients`, which also separates positions and prompts.
- `ACDC`: one threshold and one order of the edges, with the KL divergence. Both visit the edges in
  the same order.

The sides of a job run in turns on every core: `ours` and `auto_circuit`, in a separate process
without progress bars. All times include the clean and the corrupt run. `--peer=none` omits
AutoCircuit. Before any timing, the script checks that the sides agree. Aims: 10 times as fast for
`exact` (at least 4 times), 3 times for `integrated mask gradients`, 5 times for `ACDC`.

In a fourth job, `checkpoints`, the exact scores of several checkpoints are computed by one program,
and by one call for each checkpoint. AutoCircuit takes no part in it.

The first calls, which include compilation, are timed separately. FLOPs count matrix products: ours
in the traced program, and AutoCircuit's by PyTorch's `FlopCounterMode` during one call.

Smoke test:
    python experiments/benchmarks/circuits.py --layers=1 --width=8 --heads=1 --prompts=2 \
        --vocab=11 --checkpoints=2 --rounds=1 --calls=1 --peer=none \
        --out=runs/smoke/circuits.json
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from outfile import OUT
from peer import Peer, start_fastest
from product_flops import product_flops
from shapes import POCKET, random_model
from turns import compared, take_turns, timed

from implicit_reasoning.analysis.circuits.acdc import acdc, visiting_orders
from implicit_reasoning.analysis.circuits.formats import auto_circuit_name
from implicit_reasoning.analysis.circuits.scores import Scores, exact, mask_gradients, two_runs
from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json, write_npz
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.exchange import save_weights
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.runtime.mapping import map_over_axis

FLAGS = {
    "checkpoints": 20,
    **POCKET,
    "rounds": 15,
    "calls": 1,
    "peer": ".peers/auto_circuit/bin/python",
    "name": "circuits",
    "out": OUT,
}
SIZES = ("checkpoints", *POCKET, "calls")
EXACT, GRADIENTS, ACDC = JOBS = ("exact", "integrated mask gradients", "ACDC")
OURS, PEER = "ours", "auto_circuit"
SAMPLES = 5  # AutoCircuit's `integrated_grad_samples`
POINTS = np.arange(SAMPLES + 1) / SAMPLES
TAU = 1e-4  # in nats; with random weights, some edges are patched and some are not
AS_CLOSE = 1e-3  # tolerance for the score of an edge, as a share of the largest score
AS_MANY = 0.02  # share of edges whose ACDC decision may differ, by rounding
Program = Callable[[Params], Any]


def main(argv: list[str]) -> None:
    """Check agreement, time the sides of every job in turns, and write seconds and FLOPs."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(f"no flag {next(iter(overrides))!r}; there are {', '.join(FLAGS)}")
    model, params = random_model(flags)
    inputs = make_inputs(flags)
    graph = EdgeGraph(model.spec, flags["positions"])
    order = visiting_orders(graph, 1, seed=0, by_position=False)
    jobs = our_jobs(model, graph, order, inputs)
    programs = {name: jax.jit(job) for name, job in jobs.items()}
    first = {name: timed(partial(program, params))() for name, program in programs.items()}
    sides = {name: {OURS: timed(partial(program, params))} for name, program in programs.items()}
    flops = {name: {OURS: product_flops(job, params)} for name, job in jobs.items()}
    versions: dict[str, Any] = {}
    turns = partial(take_turns, rounds=flags["rounds"], calls=flags["calls"])
    with tempfile.TemporaryDirectory() as folder:
        if flags["peer"] != "none":
            names = [auto_circuit_name(graph.edges[edge]) for edge in order[0]]
            peer = start_peer(flags["peer"], Path(folder), model, params, inputs, names)
            for name, program in programs.items():
                said = peer.ask(f"keep {name}")
                flops[name][PEER] = said["flops"]
                theirs = np.load(Path(folder) / "scores.npy")
                check_agreement(name, np.asarray(program(params))[order[0]], theirs)
                sides[name][PEER] = partial(their_seconds, peer, name)
            versions = peer.versions
        found = {name: compared(turns(sides[name]), flops[name], OURS) for name in JOBS}
    together = checkpoints(jobs[EXACT], programs[EXACT], model, flags["checkpoints"])
    first["checkpoints"] = together["one program"]()
    total = flags["checkpoints"] * flops[EXACT][OURS]
    found["checkpoints"] = compared(turns(together), dict.fromkeys(together, total), "one program")
    result = {
        "sizes": {name: flags[name] for name in SIZES},
        "edges": len(graph.edges),
        "load_average": os.getloadavg()[0],
        "first_call_seconds": first,
        "jobs": found,
        "versions": versions,
    }
    keep(result, flags["out"], flags["name"])


def make_inputs(flags: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return random clean and corrupt prompts, and the two answers of each prompt."""
    random = np.random.default_rng(0)
    shape = (flags["prompts"], flags["positions"])
    sizes = {"clean": shape, "corrupt": shape, "answers": (2, flags["prompts"])}
    return {
        name: random.integers(flags["vocab"], size=size, dtype=np.int32)
        for name, size in sizes.items()
    }


def our_jobs(
    model: Transformer,
    graph: EdgeGraph,
    order: np.ndarray,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, Program]:
    """Return the functions that are timed. They return a number for each edge.

    The numbers are the mean scores, or for ACDC whether an edge is part of the circuit.
    """
    clean, corrupt, answers = (jnp.asarray(value) for value in inputs.values())
    rows = np.arange(len(clean))

    def metric(logits: Any) -> Any:
        return logits[rows, answers[0]] - logits[rows, answers[1]]

    def scores(params: Params, score: Callable[..., Scores], **how: Any) -> Any:
        runs = two_runs(model, params, clean, corrupt)
        return score(model, params, graph, runs, metric, **how).sum(1).mean(1)

    def circuit(params: Params) -> Any:
        runs = two_runs(model, params, clean, corrupt)
        taus = np.array([TAU])
        found = acdc(model, params, graph, runs, None, taus, order, by_position=False)
        return found.circuit[0, 0, :, 0]

    return {
        EXACT: partial(scores, score=exact, by_position=False),
        GRADIENTS: partial(scores, score=mask_gradients, points=POINTS),
        ACDC: circuit,
    }


def checkpoints(
    job: Program, program: Program, model: Transformer, count: int
) -> dict[str, Callable[[], float]]:
    """Return the sides of the fourth job."""
    keys = jax.random.split(jax.random.key(1), count)
    stacked = jax.jit(jax.vmap(model.init))(keys)
    apart = [jax.tree.map(lambda leaf, n=n: leaf[n], stacked) for n in range(count)]
    together = jax.jit(partial(map_over_axis, job))
    return {
        "one program": timed(lambda: together(stacked)),
        "one call each": timed(lambda: [program(params) for params in apart]),
    }


def start_peer(
    python: str,
    folder: Path,
    model: Transformer,
    params: Params,
    inputs: Mapping[str, np.ndarray],
    names: list[str],
) -> Peer:
    """Start the AutoCircuit process, with the same weights, prompts and order of the edges."""
    save_weights(folder / "ours.safetensors", model, params)
    write_npz(folder / "inputs.npz", dict(inputs))
    write_json(folder / "edges.json", names)
    write_json(folder / "settings.json", {"tau": TAU, "samples": SAMPLES})
    return start_fastest(python, "auto_circuit_edges.py", folder, GRADIENTS)


def their_seconds(peer: Peer, job: str) -> float:
    """Return the seconds of a job of AutoCircuit."""
    return float(peer.ask(job)["seconds"])


def check_agreement(job: str, found: np.ndarray, theirs: np.ndarray) -> None:
    """Check that the scores are equal, or for ACDC that nearly all decisions are."""
    if job == ACDC:
        assert 0 < theirs.sum() < len(theirs), "the threshold decides nothing"
        assert (found != theirs).mean() <= AS_MANY
        return
    if job == GRADIENTS:  # AutoCircuit sums over the points, and its loss is minus the metric
        theirs = -theirs / len(POINTS)
    size = np.abs(theirs).max()
    np.testing.assert_allclose(found, theirs, rtol=0, atol=AS_CLOSE * size, err_msg=job)


if __name__ == "__main__":
    main(sys.argv[1:])
