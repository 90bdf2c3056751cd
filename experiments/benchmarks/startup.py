r"""Benchmark of the time from process start to the first training step, with and without a cache.

    python experiments/benchmarks/startup.py --rounds=5

Each start is a separate process that imports the package, builds the `pocket` world, and takes one
training step. The parts are timed inside the process. Three cases alternate: no compilation cache,
an empty compilation cache, and a filled compilation cache.

Smoke test:
    python experiments/benchmarks/startup.py --config=experiments/smoke.py --rounds=1 \
        --out=runs/smoke/startup.json
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

from measure import spread

import implicit_reasoning.runtime.sharding

FLAGS = {"config": "configs/composition.py:pocket", "rounds": 5, "once": False}


def main(argv: list[str]) -> None:
    """Measure and write the results. With `--once`, run as one of the measured processes."""
    began = time.perf_counter()
    from outfile import OUT

    from implicit_reasoning.config import parse_flags

    flags, _ = parse_flags(argv, FLAGS | {"out": OUT})
    if flags["once"]:
        print(json.dumps(first_step(flags["config"], began)))
        return
    from machines import keep

    starts: dict[str, list[dict[str, float]]] = {"no cache": [], "empty cache": [], "cache": []}
    for _ in range(flags["rounds"]):
        with tempfile.TemporaryDirectory() as cache:
            for name, folder in (("no cache", None), ("empty cache", cache), ("cache", cache)):
                starts[name].append(start(flags["config"], folder))
    result = {
        "load_average": os.getloadavg()[0],
        "seconds": {
            name: {part: spread([one[part] for one in parts]) for part in parts[0]}
            for name, parts in starts.items()
        },
    }
    keep(result, flags["out"], "startup")


def start(config: str, cache: str | None) -> dict[str, float]:
    """Run one process, and return its duration in total and by part."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    if cache is not None:
        clean["JAX_COMPILATION_CACHE_DIR"] = cache
        # By default, JAX caches only programs whose compilation takes at least a second.
        clean["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.perf_counter()
    command = [sys.executable, __file__, "--once", f"--config={config}"]
    said = subprocess.run(command, env=clean, check=True, capture_output=True, text=True)
    return {"process": time.perf_counter() - began, **json.loads(said.stdout)}


def first_step(name: str, began: float) -> dict[str, float]:
    """Return the seconds of each part, in order. The first part, the import, begins at `began`."""
    times = [began]
    import jax

    from implicit_reasoning.config import load_config
    from implicit_reasoning.training import setup
    from implicit_reasoning.training.settings import TrainingSettings
    from implicit_reasoning.worlds import build

    times.append(time.perf_counter())
    config = load_config(name)
    dataset = build(config.task)
    times.append(time.perf_counter())
    program = setup.make_program(TrainingSettings.from_config(config), dataset)
    state = jax.block_until_ready(program.init(program.init_key))
    times.append(time.perf_counter())
    one = implicit_reasoning.runtime.sharding.put_scalar(1, program.whole)
    arguments = (state, program.rows, program.hyper, program.stream_key, one)
    jax.block_until_ready(program.advance(*arguments))
    times.append(time.perf_counter())
    names = ("import", "world", "initialise", "first step")
    return dict(zip(names, [b - a for a, b in itertools.pairwise(times)], strict=True))


if __name__ == "__main__":
    main(sys.argv[1:])
