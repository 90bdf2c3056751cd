r"""Benchmark of patching grids: the cone program, full forward passes, and TransformerLens.

    make .peers/transformer_lens_2/.installed
    python experiments/benchmarks/patch_grid.py --rounds=15
    python experiments/benchmarks/patch_grid.py --rounds=5 --calls=1 --layers=8 --width=768 \
        --heads=12 --prompts=256 --name=patch_grid_wide

In each cell of the grid, the clean run gets the residual stream of the corrupted run at one (layer,
position), and the logits at the last position are computed. The variants run in turns on every
core:

- `cones`: `analysis.patching.grids.patch_states`, one program that includes the clean and the
  corrupted run, for layers 0 to depth. TransformerLens's grid lacks the last of these layers.
- `forward`: one compiled `Transformer.forward` with masked edits, called for every cell, as in
  tools that patch with hooks. The time includes the corrupted run.
- `transformer_lens`: `transformer_lens.patching.get_act_patch_resid_pre` of TransformerLens 2 with
  our weights, for layers 0 to depth - 1, in a separate process without gradients and progress bars.
  The run that fills its cache stores only the states that are patched, and its metric reads one
  logit. `--peer=none` omits this variant. Aim: `cones` is 4 times as fast with 2 layers of width
  256, and 2.5 times as fast with 8 layers of width 768.

In each turn, a variant computes the grid `--calls` times, and the median counts. Before any timing,
the script checks that the logits of all cells are equal. Compilation is timed separately. FLOPs
count matrix products, computed from shapes. A variant is a `Side(seconds, logits, flops)`.

Smoke test:
    python experiments/benchmarks/patch_grid.py --layers=1 --width=8 --heads=1 --prompts=2 \
        --vocab=11 --rounds=1 --calls=1 --peer=none --out=runs/smoke/patch_grid.json
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from outfile import OUT
from patch_flops import cone_flops, run_flops
from peer import Peer, start_fastest
from shapes import POCKET, random_model
from turns import compared, take_turns, timed

from implicit_reasoning.analysis.patching.grids import patch_states
from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_npz
from implicit_reasoning.model import Edit, Params, Spec, Transformer, mask
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.model.exchange import save_weights
from implicit_reasoning.model.wirings import forward_at

FLAGS = {
    **POCKET,
    "rounds": 15,
    "calls": 5,
    "peer": ".peers/transformer_lens_2/bin/python",
    "name": "patch_grid",
    "out": OUT,
}
SIZES = (*POCKET, "calls")
AS_CLOSE = 1e-3  # tolerance for the logits of a cell


class Side(NamedTuple):
    """One way to compute the grid.

    Attributes:
      seconds: function that computes the grid and returns the duration.
      logits: function that returns the logits [layer, pos, prompt, d_vocab], from layer 0 to the
        last layer of the variant.
      flops: FLOPs of all matrix products of the grid.
    """

    seconds: Callable[[], float]
    logits: Callable[[], np.ndarray]
    flops: float


def main(argv: list[str]) -> None:
    """Time the variants in turns, then write seconds, FLOPs and ratios."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(f"no flag {next(iter(overrides))!r}; there are {', '.join(FLAGS)}")
    model, params = random_model(flags)
    prompts = np.random.default_rng(0).integers(
        flags["vocab"], size=(2, flags["prompts"], flags["positions"]), dtype=np.int32
    )
    with tempfile.TemporaryDirectory() as folder:
        sides, versions = make_sides(model, params, prompts, flags["peer"], Path(folder))
        first = {name: side.seconds() for name, side in sides.items()}
        check_equal({name: side.logits() for name, side in sides.items()})
        seconds = take_turns(
            {name: side.seconds for name, side in sides.items()},
            flags["rounds"],
            calls=flags["calls"],
        )
    result = {
        "sizes": {name: flags[name] for name in SIZES},
        "load_average": os.getloadavg()[0],
        "first_call_seconds": first,
        **compared(seconds, {name: side.flops for name, side in sides.items()}, "cones"),
        "versions": versions,
    }
    keep(result, flags["out"], flags["name"])


def make_sides(
    model: Transformer, params: Params, prompts: np.ndarray, python: str, folder: Path
) -> tuple[dict[str, Side], dict[str, Any]]:
    """Return all variants, and the package versions of the TransformerLens process."""
    clean, corrupted = jnp.asarray(prompts)
    spec, shape = model.spec, clean.shape
    sides = {
        "cones": ours(cones(model, params), clean, corrupted, cone_flops(spec, *shape)),
        "forward": ours(forwards(model, params), clean, corrupted, forward_flops(spec, *shape)),
    }
    if python == "none":
        return sides, {}
    peer = start_peer(python, folder, model, params, prompts)
    return sides | {"transformer_lens": theirs(peer, folder, spec, shape)}, peer.versions


def check_equal(logits: dict[str, np.ndarray]) -> None:
    """Check that the logits of every variant equal the logits of `cones`."""
    for name, found in logits.items():
        same = logits["cones"][: len(found)]
        np.testing.assert_allclose(found, same, rtol=0, atol=AS_CLOSE, err_msg=name)


def ours(run: Callable[[Any, Any], Any], clean: Any, corrupted: Any, flops: float) -> Side:
    """Return a variant that runs in this process."""
    return Side(
        timed(lambda: run(clean, corrupted)), lambda: np.asarray(run(clean, corrupted)), flops
    )


def start_peer(
    python: str, folder: Path, model: Transformer, params: Params, prompts: np.ndarray
) -> Peer:
    """Start the TransformerLens process, with the same weights and prompts."""
    save_weights(folder / "ours.safetensors", model, params)
    write_npz(folder / "prompts.npz", dict(zip(("clean", "corrupted"), prompts, strict=True)))
    return start_fastest(python, "transformer_lens_grid.py", folder, "time")


def theirs(peer: Peer, folder: Path, spec: Spec, shape: tuple[int, int]) -> Side:
    """Return the TransformerLens variant.

    The variant takes one run for the states and one run per cell.
    """

    def logits() -> np.ndarray:
        peer.ask("logits")
        return np.load(folder / "logits.npy")

    cells = spec.depth * shape[1]
    flops = (1 + cells) * run_flops(spec, *shape, logits_at=shape[1])
    return Side(lambda: peer.ask("time")["seconds"], logits, flops)


def cones(model: Transformer, params: Params) -> Callable[[Any, Any], Any]:
    """Return a function that runs the cone program."""

    @jax.jit
    def grid(params: Params, clean: Any, corrupted: Any) -> Any:
        sites = cache_sites(model)
        _, base = forward_at(model, params, clean, sites=sites)
        _, donor = forward_at(model, params, corrupted, sites=sites)
        return patch_states(model, params, base, donor)

    return lambda clean, corrupted: grid(params, clean, corrupted)


def forwards(model: Transformer, params: Params) -> Callable[[Any, Any], Any]:
    """Return a function that runs one forward pass per cell, compiled once with cell masks."""
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


def forward_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Return the FLOPs of the corrupted run and of one run per cell."""
    cells = (spec.depth + 1) * n_pos
    donor = run_flops(spec, prompts, n_pos, logits_at=0)
    return donor + cells * run_flops(spec, prompts, n_pos, logits_at=1)


if __name__ == "__main__":
    main(sys.argv[1:])
