"""How fast is a grid of patches? The cone program against whole forward passes with edits.

    python experiments/benchmarks/patch_grid.py --rounds=15
    python experiments/benchmarks/patch_grid.py --layers=8 --width=768 --heads=12 --prompts=256

The grid: the residual of every (layer, position) of a corrupted run put into the clean run, layers
0 to depth, logits at the last position. The sides take turns in one run, on every core:
- `cones`: `analysis.patching.grids.patch_states`, one program, the clean and the corrupted run
  included;
- `forward`: one compiled `Transformer.forward` with masked edits, called for every cell, as tools
  do that patch with hooks; the corrupted run included.
Logits of all cells are held equal before anything is timed, compilation is timed apart. FLOPs are
of matrix products, by shapes. A side is `(run, flops)`; one for another package goes into `sides`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measure import spread

from implicit_reasoning.analysis.patching.grids import patch_states
from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.machine import provenance
from implicit_reasoning.model import Edit, Params, Spec, Transformer, mask
from implicit_reasoning.model.wirings import cache_sites
from implicit_reasoning.training.cost import block_flops

FLAGS = {
    "layers": 2,
    "width": 256,
    "heads": 4,
    "prompts": 64,
    "vocab": 110,
    "positions": 3,
    "rounds": 15,
    "out": "results/benchmarks/patch_grid.json",
}


class Side(NamedTuple):
    """One way to compute the grid.

    Attributes:
      run: from the prompts (clean, corrupted) to logits [layer, pos, prompt, d_vocab].
      flops: of a run, in matrix products.
    """

    run: Callable[[Any, Any], Any]
    flops: float


def main(argv: list[str]) -> None:
    """Take turns, then write seconds, FLOPs and ratios."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(f"no flag {next(iter(overrides))!r}; there are {', '.join(FLAGS)}")
    model = Transformer(
        Spec(
            d_vocab=flags["vocab"],
            n_ctx=flags["positions"],
            n_layers=flags["layers"],
            d_model=flags["width"],
            n_heads=flags["heads"],
            d_mlp=4 * flags["width"],
        )
    )
    params = jax.jit(model.init)(jax.random.key(0))
    prompts = np.random.default_rng(0).integers(
        flags["vocab"], size=(2, flags["prompts"], flags["positions"]), dtype=np.int32
    )
    clean, corrupted = jnp.asarray(prompts)
    sides = {
        "cones": Side(cones(model, params), cone_flops(model.spec, *clean.shape)),
        "forward": Side(forwards(model, params), forward_flops(model.spec, *clean.shape)),
    }
    seconds, first, logits = take_turns(sides, (clean, corrupted), flags["rounds"])
    np.testing.assert_allclose(logits["cones"], logits["forward"], atol=1e-4)
    result = {
        "sizes": {name: value for name, value in flags.items() if name not in ("rounds", "out")},
        "load_average": os.getloadavg()[0],
        "first_call_seconds": first,
        "milliseconds": {name: spread([1e3 * s for s in s_]) for name, s_ in seconds.items()},
        "gflop": {name: side.flops / 1e9 for name, side in sides.items()},
        "gflop_per_second": {
            name: spread([side.flops / s / 1e9 for s in seconds[name]])
            for name, side in sides.items()
        },
        "times_as_fast": {
            name: {
                "time": spread([b / a for a, b in zip(seconds["cones"], s_, strict=True)]),
                "flop": sides[name].flops / sides["cones"].flops,
            }
            for name, s_ in seconds.items()
            if name != "cones"
        },
        "made_with": provenance(),
    }
    write_json(flags["out"], result)
    print(result)


def take_turns(
    sides: dict[str, Side], prompts: tuple[Any, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, np.ndarray]]:
    """Seconds of every round, of the first call (with compilation), and the logits."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    first, logits = {}, {}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            found = jax.block_until_ready(side.run(*prompts))
            took = time.perf_counter() - began
            if turn:
                seconds[name].append(took)
            else:
                first[name], logits[name] = took, np.asarray(found)
    return seconds, first, logits


def cones(model: Transformer, params: Params) -> Callable[[Any, Any], Any]:
    """The cone program."""

    @jax.jit
    def grid(params: Params, clean: Any, corrupted: Any) -> Any:
        sites = cache_sites(model)
        _, base = model.forward(params, clean, sites=sites)
        _, donor = model.forward(params, corrupted, sites=sites)
        return patch_states(model, params, base, donor)

    return lambda clean, corrupted: grid(params, clean, corrupted)


def forwards(model: Transformer, params: Params) -> Callable[[Any, Any], Any]:
    """A whole forward pass for every cell, compiled once: the cell is a mask."""
    depth = model.spec.depth
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(depth)]
    sites.append(f"blocks.{depth - 1}.hook_resid_post")

    @jax.jit
    def donate(params: Params, corrupted: Any) -> Any:
        return model.forward(params, corrupted, sites=sites)[1]

    @jax.jit
    def patch(params: Params, clean: Any, donor: Any, layer: Any, pos: Any) -> Any:
        here = (jnp.arange(clean.shape[1]) == pos)[None, :, None]
        edits = {
            site: Edit(mask, (here & (layer == number), donor[site]))
            for number, site in enumerate(sites)
        }
        return model.forward(params, clean, edits=edits)[0][:, -1]

    def grid(clean: Any, corrupted: Any) -> Any:
        donor = donate(params, corrupted)
        cells = [
            [patch(params, clean, donor, layer, pos) for pos in range(clean.shape[1])]
            for layer in range(depth + 1)
        ]
        return jnp.stack([jnp.stack(row) for row in cells])

    return grid


def run_flops(spec: Spec, prompts: int, n_pos: int, *, logits_at: int) -> float:
    """A forward pass; logits at some positions only (a compiler drops the others)."""
    blocks = spec.depth * block_flops(spec, n_pos, n_pos)
    return float(prompts * (blocks + 2 * logits_at * spec.d_model * spec.d_vocab))


def forward_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """The corrupted run, and a run for every cell."""
    cells = (spec.depth + 1) * n_pos
    donor = run_flops(spec, prompts, n_pos, logits_at=0)
    return donor + cells * run_flops(spec, prompts, n_pos, logits_at=1)


def cone_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Both runs, and the cone of every cell."""
    flops = 2 * run_flops(spec, prompts, n_pos, logits_at=0)
    for pos in range(n_pos):
        for layer in range(spec.depth + 1):
            for block in range(layer, spec.depth):
                queries = 1 if block == spec.depth - 1 else n_pos - pos
                flops += prompts * suffix_flops(spec, n_pos - pos, queries, n_pos)
            flops += prompts * 2 * spec.d_model * spec.d_vocab
    return flops


def suffix_flops(spec: Spec, new_keys: int, queries: int, keys: int) -> float:
    """A block with new keys and values at some positions, and queries at some that see all."""
    attended = 2 * 2 * queries * spec.d_model * (keys - new_keys)
    return float(block_flops(spec, new_keys, queries) + attended)


if __name__ == "__main__":
    main(sys.argv[1:])
