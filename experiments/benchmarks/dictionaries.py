r"""Benchmark of TopK dictionary training against SAELens's trainer, on the same states.

    make .peers/sae_lens/.installed
    python experiments/benchmarks/dictionaries.py
    taskset -c 0 python experiments/benchmarks/dictionaries.py     # one core, the basis of the aims

There are three cases: a dictionary 256 -> 2,048 with k 16 and batch size 1,024 (aim: 1.3 times as
fast as SAELens); a dictionary 64 -> 512 (aim: 2 times as fast); and eight dictionaries 64 -> 512,
which are one program here and eight sequential trainings in SAELens (aim: 2 times as fast). States
are sparse sums of directions (`dictionaries/synthetic.py`), and each side draws random batches from
them. Learning rate, Adam and clipping are set as in SAELens. The sides run in turns, each on every
core:

- `ours`: calls of `Population.advance`, with each core as a device (`jax_num_cpu_devices`).
- `SAELens`: steps of its `SAETrainer` with dense activations, because its option
  `use_sparse_activations` fails on a CPU (6.54.12 with torch 2.13: no `view` of sparse tensors).
  `--peer=none` omits this side.

Times are comparable only if both sides reach the same quality. The squared error and the number of
active features are therefore measured on the same states after the same number of steps, and
reported with the times.

FLOPs count matrix products, computed from shapes. A dense step has five products of batch x width x
features (encoder, decoder, and the gradients of both weights and of the activations). In a sparse
step, only the product of the encoder is dense; the other products have k features.

Smoke test:
    python experiments/benchmarks/dictionaries.py --cases=smoke --states=64 --steps=2 --rounds=1 \
        --peer=none --out=runs/smoke/dictionaries.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from machines import keep
from measure import spread
from outfile import OUT
from peer import Peer
from turns import compared, take_turns

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.dictionaries.activations import TopK
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import Dictionary
from implicit_reasoning.dictionaries.population import Population, make_members, stack_pools
from implicit_reasoning.dictionaries.steps import DictionaryRecipe, DictionaryTrainingSettings
from implicit_reasoning.dictionaries.synthetic import Synthetic
from implicit_reasoning.runtime.machine import one_device_per_core
from implicit_reasoning.runtime.mapping import fitting_mesh

FLAGS = {
    "rounds": 5,
    "steps": 100,
    "cases": Flag(many=True, default=("large", "small", "eight")),
    "states": 65_536,
    "peer": ".peers/sae_lens/bin/python",
    "out": OUT,
}
CHECKED = 8_192
RATE = 3e-4


class Case(NamedTuple):
    """One comparison; `aim` is the speedup over SAELens that our training should reach."""

    width: int
    d_sae: int
    k: int
    batch: int
    members: int
    aim: float


CASES = {
    "large": Case(256, 2048, 16, 1024, 1, 1.3),
    "small": Case(64, 512, 16, 1024, 1, 2.0),
    "eight": Case(64, 512, 16, 1024, 8, 2.0),
    "smoke": Case(8, 16, 2, 32, 2, 0.0),
}


def main(argv: list[str]) -> None:
    """Measure all cases and write the results."""
    one_device_per_core()
    flags, _ = parse_flags(argv, FLAGS)
    found = {name: measure(CASES[name], flags) for name in flags["cases"]}
    keep(found, flags["out"], "dictionaries")


def measure(case: Case, flags: dict[str, Any]) -> dict[str, Any]:
    """Measure one case."""
    source = Synthetic(n_directions=case.d_sae, width=case.width, mean_active=float(case.k))
    keys = jax.random.split(jax.random.key(0))
    draw = jax.jit(lambda one, two: source.states(one, source.directions(two), flags["states"]))
    pool = draw(*keys)
    ours = Ours(case, pool)
    with tempfile.TemporaryDirectory() as folder:
        count = flags["steps"]
        sides = {"ours": lambda: ours.steps(count)}
        peer = None if flags["peer"] == "none" else start(case, pool, flags["peer"], Path(folder))
        if peer:
            sides["SAELens"] = lambda: float(peer.ask(f"steps {count}")["seconds"])
        seconds = take_turns(sides, flags["rounds"])
        reached = {"ours": ours.quality()}
        if peer:
            reached["SAELens"] = peer.ask("quality")
            peer.close()
    per_side = dict(zip(("SAELens", "ours"), flops(case), strict=True))
    steps = count * case.members
    return {
        "case": case._asdict(),
        "load_average": os.getloadavg()[0],
        "milliseconds_a_step": {
            name: spread([1e3 * s / steps for s in times]) for name, times in seconds.items()
        },
        "reached_after": count * (flags["rounds"] + 1),
        "reached": reached,
        "ours_over_theirs": {
            key: reached["ours"][key] / theirs[key]
            for theirs in (reached[name] for name in reached if name != "ours")
            for key in ("mse", "l0")
        },
        **compared(seconds, {name: steps * per_side[name] for name in seconds}, "ours"),
        "versions": peer.versions if peer else {},
    }


class Ours:
    """A population and its training state."""

    def __init__(self, case: Case, pool: jax.Array):
        settings = DictionaryTrainingSettings(
            steps=10**6, batch_size=case.batch, learning_rate=RATE
        )
        members = make_members(
            [0] * case.members, [float(case.k)] * case.members, range(case.members)
        )
        dictionary = Dictionary(Autoencoder(case.width, case.width, case.d_sae), TopK(max_k=case.k))
        pools = stack_pools(pool[None], pool[None])
        mesh = fitting_mesh(case.members)
        recipe = DictionaryRecipe(dictionary, settings)
        self.population = Population(recipe, pools, members, mesh=mesh)
        self.state, self.at, self.pool = self.population.begin(), 0, pool

    def steps(self, count: int) -> float:
        """Train all members for `count` steps, and return the seconds."""
        began = time.perf_counter()
        self.state, window = self.population.advance(self.state, self.at, count)
        jax.block_until_ready(window)
        self.at += count
        return time.perf_counter() - began

    def quality(self) -> dict[str, float]:
        """Return squared error and L0 of the first member."""
        dictionary = self.population.recipe.dictionary
        finished = dictionary.for_inference()

        @jax.jit
        def measure(stacked: Any, k: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            first = jax.tree.map(lambda leaf: leaf[0], stacked)
            params = dictionary.finish(first, jnp.float32(0), k)
            acts = finished.encode(params, x)
            mse = ((finished(params, x) - x) ** 2).sum(-1).mean()
            return mse, (acts > 0).sum(-1).mean()

        k = self.population.members.sparsity[0]
        mse, l0 = measure(self.state.params, k, self.pool[:CHECKED])
        return {"mse": float(mse), "l0": float(l0)}


def start(case: Case, pool: jax.Array, python: str, folder: Path) -> Peer:
    """Start SAELens in its own process."""
    np.save(folder / "pool.npy", np.asarray(pool))
    settings = {**case._asdict(), "learning_rate": RATE}
    (folder / "case.json").write_text(json.dumps(settings))
    return Peer(python, "sae_lens_training.py", folder)


def flops(case: Case) -> tuple[float, float]:
    """Return the FLOPs of a dense step and of a sparse step, per dictionary."""
    product = 2.0 * case.batch * case.width * case.d_sae
    few = 2.0 * case.batch * case.width * case.k
    return 5 * product, product + 6 * few


if __name__ == "__main__":
    main(sys.argv[1:])
