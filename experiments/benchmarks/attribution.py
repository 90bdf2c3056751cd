r"""Benchmark of attribution patching at every checkpoint, against TransformerLens.

    make .peers/transformer_lens_2/.installed
    python experiments/benchmarks/attribution.py

The models are checkpoints of the `pocket` shape with random weights. For every checkpoint, the
effects of all cells are estimated: the difference of the values in the corrupt run and in the clean
run, times the gradient of a logit difference in the clean run. Cells are states, block parts
(attention, MLP, heads), queries, keys and values of heads, and neurons, in all layers and at all
positions. The result has the mean effect of every cell over the prompts, as in Nanda 2022,
"Attribution patching". The variants run in turns on every core:

- `ours`: one program for all checkpoints (`forward_at`, `site_gradients`, `effects_of`).
- `transformer_lens`: TransformerLens 2, one checkpoint after another, in a separate process without
  progress bars. All models are in memory. Hooks cache the values of the corrupt run without
  gradients, and the values and the gradients of the clean run. Parameters are frozen, so that the
  backward pass computes no gradients of weights.
- `transformer_lens, all gradients`: the same, and the backward pass computes the gradients of all
  weights, which is the default of PyTorch.

With `--clock=cpu`, the processor's seconds of each process count, not those of the wall. On a
machine with other work, this is the fair clock, if the script runs on one core (`taskset -c 0`).

`--peer=none` omits the last two. Aim: 3 times as fast as `transformer_lens`; at least 2 times.
Before any timing, the script checks that the effects are equal. The first call, which includes
compilation, is timed separately. FLOPs count matrix products, computed from shapes.

Smoke test:
    python experiments/benchmarks/attribution.py --layers=2 --width=8 --heads=1 --prompts=2 \
        --vocab=11 --checkpoints=2 --rounds=1 --calls=1 --peer=none \
        --out=runs/smoke/attribution.json
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from outfile import OUT
from patch_flops import gradient_flops, run_flops, trimmed_flops, trimmed_gradient_flops
from peer import Peer, start_fastest
from shapes import POCKET, random_model
from turns import compared, take_turns, timed

from implicit_reasoning.analysis.components.estimates import cell_sites, effects_of
from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_npz
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.exchange import save_weights
from implicit_reasoning.model.gradients import site_gradients
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.runtime.mapping import map_over_axis

FLAGS = {
    "checkpoints": 20,
    **POCKET,
    "rounds": 15,
    "calls": 3,
    "clock": "wall",
    "peer": ".peers/transformer_lens_2/bin/python",
    "name": "attribution",
    "out": OUT,
}
SIZES = ("checkpoints", *POCKET, "calls")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
KINDS = ("states", "parts", "projections", "neurons")
OURS, FROZEN, ALL = "ours", "transformer_lens", "transformer_lens, all gradients"
AS_CLOSE = 1e-3  # tolerance for the effect of a cell, as a share of the largest effect
Effects = dict[str, np.ndarray]


def main(argv: list[str]) -> None:
    """Check equality, time the variants in turns, and write seconds, FLOPs and ratios."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(f"no flag {next(iter(overrides))!r}; there are {', '.join(FLAGS)}")
    if flags["clock"] not in CLOCKS:
        raise InputError(f"--clock is {flags['clock']!r}; it must be one of {', '.join(CLOCKS)}")
    model, _ = random_model(flags)
    keys = jax.random.split(jax.random.key(0), flags["checkpoints"])
    params = jax.jit(jax.vmap(model.init))(keys)
    inputs = make_inputs(flags)
    run = ours(model, params, inputs)
    first = timed(run)()
    sides, versions = {OURS: partial(our_seconds, run, CLOCKS[flags["clock"]])}, {}
    with tempfile.TemporaryDirectory() as folder:
        if flags["peer"] != "none":
            peer = start_peer(flags["peer"], Path(folder), model, params, inputs)
            check_equal(jax.device_get(run()), their_effects(peer, Path(folder)))
            sides |= {
                name: partial(their_seconds, peer, name, flags["clock"]) for name in (FROZEN, ALL)
            }
            versions = peer.versions
        seconds = take_turns(sides, flags["rounds"], calls=flags["calls"])
    result = {
        "sizes": {name: flags[name] for name in SIZES},
        "clock": flags["clock"],
        "load_average": os.getloadavg()[0],
        "first_call_seconds": first,
        **compared(seconds, flops_of(model, flags), OURS),
        "versions": versions,
    }
    keep(result, flags["out"], flags["name"])


def make_inputs(flags: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return random clean and corrupt prompts, and the two answers of each prompt."""
    random = np.random.default_rng(0)
    shape = (flags["prompts"], flags["positions"])
    sizes = {"clean": shape, "corrupted": shape, "answers": (2, flags["prompts"])}
    return {
        name: random.integers(flags["vocab"], size=size, dtype=np.int32)
        for name, size in sizes.items()
    }


def ours(
    model: Transformer, params: Params, inputs: Mapping[str, np.ndarray]
) -> Callable[[], dict[str, Any]]:
    """Return a function that estimates all mean effects at all checkpoints, in one program."""
    clean, corrupted, answers = (jnp.asarray(value) for value in inputs.values())
    rows, sites = np.arange(len(clean)), cell_sites(model, KINDS)

    def metric(logits: Any) -> Any:
        return logits[rows, -1, answers[0]] - logits[rows, -1, answers[1]]

    def effects(params: Params) -> dict[str, Any]:
        base = site_gradients(partial(forward_at, model, params, clean), metric, sites)
        _, donor = forward_at(model, params, corrupted, sites=sites)
        differences = {site: donor[site] - base.values[site] for site in sites}
        found = effects_of(model, differences, base.gradients, KINDS)
        return {kind: by_prompt.mean(-1) for kind, by_prompt in found.items()}

    program = jax.jit(lambda params: map_over_axis(effects, params))
    return lambda: program(params)


def start_peer(
    python: str,
    folder: Path,
    model: Transformer,
    params: Params,
    inputs: Mapping[str, np.ndarray],
) -> Peer:
    """Start the TransformerLens process, with the same weights and prompts."""
    for number in range(jax.tree.leaves(params)[0].shape[0]):
        (folder / str(number)).mkdir()
        one = jax.tree.map(lambda leaf, number=number: leaf[number], params)
        save_weights(folder / str(number) / "ours.safetensors", model, one)
    write_npz(folder / "inputs.npz", dict(inputs))
    return start_fastest(python, "transformer_lens_attribution.py", folder, FROZEN)


def our_seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the seconds of one call."""
    began = clock()
    jax.block_until_ready(run())
    return clock() - began


def their_seconds(peer: Peer, variant: str, clock: str) -> float:
    """Return the seconds of a variant of TransformerLens."""
    said = peer.ask(variant)
    return float(said["seconds" if clock == "wall" else "cpu_seconds"])


def their_effects(peer: Peer, folder: Path) -> Effects:
    """Return the effects of TransformerLens at all checkpoints, by kind of cells."""
    peer.ask("effects")
    with np.load(folder / "effects.npz") as file:
        return dict(file)


def check_equal(found: Effects, theirs: Effects) -> None:
    """Check that the effects of all cells are equal."""
    assert found.keys() == theirs.keys()
    for kind, effects in found.items():
        size = np.abs(theirs[kind]).max()
        np.testing.assert_allclose(
            effects, theirs[kind], rtol=0, atol=AS_CLOSE * size, err_msg=kind
        )


def flops_of(model: Transformer, flags: Mapping[str, Any]) -> dict[str, float]:
    """Return the FLOPs of each variant, for all checkpoints."""
    spec, shape = model.spec, (flags["prompts"], flags["positions"])
    ours = 2 * trimmed_flops(spec, *shape) + trimmed_gradient_flops(spec, *shape)
    whole = {"logits_at": shape[1]}
    run, gradients = run_flops(spec, *shape, **whole), gradient_flops(spec, *shape, **whole)
    of_weights = 2 * run - gradients  # one product for each product with a weight
    theirs = 2 * run + gradients
    sides = {OURS: ours, FROZEN: theirs, ALL: theirs + of_weights}
    return {name: flags["checkpoints"] * flops for name, flops in sides.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
