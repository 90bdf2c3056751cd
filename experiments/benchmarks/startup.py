"""How long from starting Python to the first step? With and without the persistent cache.

    python experiments/benchmarks/startup.py --rounds=5

Each start is a process of its own that imports the lab, builds the `pocket` world, and makes one
training step; the parts are timed inside. Alternately: without a cache, with an empty one that is
filled, and with the one just filled.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

FLAGS = {"rounds": 5, "out": "results/benchmarks/startup.json"}


def main(argv: list[str]) -> None:
    """Measure and write; with `--once` be one of the measured processes."""
    if argv == ["--once"]:
        print(json.dumps(first_step()))
        return
    from implicit_reasoning.config import parse_flags
    from implicit_reasoning.files import write_json
    from implicit_reasoning.machine import provenance

    flags, _ = parse_flags(argv, FLAGS)
    starts: dict[str, list[dict[str, float]]] = {"no cache": [], "empty cache": [], "cache": []}
    for _ in range(flags["rounds"]):
        with tempfile.TemporaryDirectory() as cache:
            for name, folder in (("no cache", None), ("empty cache", cache), ("cache", cache)):
                starts[name].append(start(folder))
    result = {
        "load_average": os.getloadavg()[0],
        "seconds": {name: summary(parts) for name, parts in starts.items()},
        "provenance": {"time": time.time(), **provenance()},
    }
    write_json(flags["out"], result)
    print(json.dumps(result, indent=2))


def start(cache: str | None) -> dict[str, float]:
    """One process, from outside."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    if cache is not None:
        clean["JAX_COMPILATION_CACHE_DIR"] = cache
        # By default only programs that took a second to compile are kept.
        clean["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.perf_counter()
    said = subprocess.run(
        [sys.executable, __file__, "--once"], env=clean, check=True, capture_output=True, text=True
    )
    return {"process": time.perf_counter() - began, **json.loads(said.stdout)}


def first_step() -> dict[str, float]:
    """Seconds of each part, in the order they come."""
    times = [time.perf_counter()]
    import jax
    import jax.numpy as jnp

    from implicit_reasoning.config import load_config
    from implicit_reasoning.training import setup, sharding
    from implicit_reasoning.training.optimizer import hyper
    from implicit_reasoning.worlds import build

    times.append(time.perf_counter())
    config = load_config("configs/composition.py:pocket")
    dataset = build(config.task)
    times.append(time.perf_counter())
    mesh = sharding.make_mesh(config.mesh)
    recipe, rows = setup.make_recipe(config, dataset, mesh), setup.training_rows(dataset, mesh)
    init_key, stream_key = setup.keys(config.seed)
    state = jax.block_until_ready(jax.jit(recipe.init)(init_key))
    times.append(time.perf_counter())
    arguments = (state, rows, hyper(config.optimizer), stream_key, jnp.int32(1))
    jax.block_until_ready(jax.jit(recipe.run)(*arguments))
    times.append(time.perf_counter())
    names = ("import", "world", "initialise", "first step")
    return dict(zip(names, [b - a for a, b in itertools.pairwise(times)], strict=True))


def summary(parts: list[dict[str, float]]) -> dict[str, Any]:
    """Median and range of every part."""
    table = {name: sorted(part[name] for part in parts) for name in parts[0]}
    return {
        name: {"median": values[len(values) // 2], "low": values[0], "high": values[-1]}
        for name, values in table.items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
