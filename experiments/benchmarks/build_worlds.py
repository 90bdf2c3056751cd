r"""Benchmark of building worlds, against plain Python loops and at larger sizes than published.

    python experiments/benchmarks/build_worlds.py --rounds=5

1. The task of the published notebook (Wang et al. 2024, composition): generate the world
   2000/200/20 (entities, relations, out-degree), enumerate its 800,000 chains, classify and split
   them, and choose the probes. Three implementations run in turns, in one process on one core:
   - `as_published`: a reimplementation of the published loop, with the same order of operations.
     Facts are tuples of text, every chain is written as text immediately, numpy draws one random
     number per chain, and `O` facts are found by a search in a list.
   - `lean`: plain Python that is written for speed, with tuples of ints, sets and no text.
   - `build`: the whole dataset, which also includes token arrays, the truth of every row, and a
     check for leaks.
   The notebook contains a time of 7.4 s, measured on a different machine. Aim: 30 times as fast as
   `as_published`.
2. `build` alone. Each size runs in its own process, so that its peak memory can be measured. Aims:
   2000/200/20 with all chains (phi 18) in at most 1 s; 50,000/200/20 (20 million chains, phi 7.2)
   in at most 25 s and 3 GB.

Smoke test:
    python experiments/benchmarks/build_worlds.py --rounds=1 --sizes=none \
        --config.task.n_entities=100 --config.task.n_relations=20 --config.task.out_degree=10 \
        --out=runs/smoke/build_worlds.json
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import spread
from outfile import OUT

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags
from implicit_reasoning.worlds import build

SIZES: dict[str, dict[str, Any]] = {
    "2000/200/20, all chains": {"task.phi": 18.0, "task.holdout": 0.005},
    "50000/200/20, 20 million chains": {"task.n_entities": 50_000, "task.phi": 7.2},
}
FLAGS = {"rounds": 5, "sizes": Flag(many=True, default=tuple(SIZES)), "size": "", "out": OUT}
AIMS = {
    "2000/200/20, all chains": {"seconds": 1.0},
    "50000/200/20, 20 million chains": {"seconds": 25.0, "peak_gb": 3.0},
}


def main(argv: list[str]) -> None:
    """Measure and write the results; with `--size`, build only that size and print its cost."""
    flags, overrides = parse_flags(argv, FLAGS)
    if flags["size"]:
        print(json.dumps(built({**SIZES[flags["size"]], **overrides})))
        return
    from machines import keep  # imports jax, which must not be in the timed processes

    result = {
        "load_average_before": os.getloadavg()[0],  # other work on the machine makes it slower
        "against_plain_loops": {"aim": 30.0, **against_plain_loops(flags["rounds"], overrides)},
        "sizes": {
            name: {"aim": AIMS[name], "rounds": [in_own_process(name) for _ in range(3)]}
            for name in flags["sizes"]
            if name != "none"
        },
    }
    keep(result, flags["out"], "build_worlds")


def against_plain_loops(rounds: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Return seconds of all implementations by round, and the speedup of `build`."""
    task = apply_overrides(load_config("configs/composition.py:paper_wang"), changes).task
    sides: dict[str, Callable[[Any], dict[str, int]]] = {
        "as_published": as_published,
        "lean": lean,
        "build": lambda task: build(task).sizes(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    # CPU time is robust to other work on the machine.
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(rounds + 1):
        one = apply_overrides(task, {"world_seed": seed})
        for name, job in sides.items():
            gc.collect()
            began, cpu = time.perf_counter(), time.process_time()
            sizes = job(one)
            took, cpu = time.perf_counter() - began, time.process_time() - cpu
            check_job(task, sizes)
            if seed:  # the first round is a warm-up
                seconds[name].append(took)
                cpu_seconds[name].append(cpu)
    ratios = {
        f"{clock} ratio to {name}": spread(
            [a / b for a, b in zip(of[name], of["build"], strict=True)]
        )
        for clock, of in (("wall", seconds), ("cpu", cpu_seconds))
        for name in ("as_published", "lean")
    }
    return {**ratios, "seconds": seconds, "cpu_seconds": cpu_seconds}


def check_job(task: Any, sizes: dict[str, int]) -> None:
    """Check the number of rows of every split, with a tolerance if the number is random.

    The world 2000/200/20 has 38,000 `I` and 2,000 `O` facts, 273,600 training chains, about 3,600
    held-out chains of which 3,000 are probes, and about 2,000 chains of two `O` facts.
    """
    facts = task.n_entities * task.out_degree
    outside = round(task.ood_fraction * facts)
    assert sizes["id_triples"] == facts - outside and sizes["ood_triples"] == outside
    assert sizes["train_ii"] == round(task.phi * (facts - outside))
    chains, share = facts * task.out_degree, outside / facts
    held_out = task.holdout * (1 - share) ** 2 * chains
    for name, expected in (("test_ii", held_out), ("test_oo", share**2 * chains)):
        wide = max(0.15 * expected, 5 * expected**0.5)
        assert min(expected - wide, task.probes) <= sizes[name] <= min(expected + wide, task.probes)


def as_published(task: Any) -> dict[str, int]:
    """Build the splits as the published loop does."""
    rng = np.random.default_rng(task.world_seed)

    def written(prompt: tuple[str, ...], answer: str) -> dict[str, str]:
        text = "".join(prompt)
        return {"input_text": text, "target_text": f"{text}{answer}</a>"}

    def chosen(rows: list[Any], count: int) -> list[Any]:
        places = rng.choice(len(rows), min(count, len(rows)), replace=False)
        return [rows[place] for place in places.tolist()]

    outgoing: dict[str, list[tuple[str, str]]] = {}
    for number in range(task.n_entities):
        relations = rng.choice(task.n_relations, task.out_degree, replace=False)
        outgoing[f"<e_{number}>"] = [
            (f"<r_{r}>", f"<e_{rng.integers(task.n_entities)}>") for r in relations.tolist()
        ]
    atomic = [(head, r, tail) for head, facts in outgoing.items() for r, tail in facts]
    places = rng.choice(len(atomic), round(task.ood_fraction * len(atomic)), replace=False).tolist()
    # The search in a list is deliberate, as in the published loop.
    outside = {fact for place, fact in enumerate(atomic) if place in places}
    id_triples = [written((h, r), t) for h, r, t in atomic if (h, r, t) not in outside]
    ood_triples = [written((h, r), t) for h, r, t in outside]
    pool: list[Any] = []
    held_out: list[Any] = []
    test_oo: list[Any] = []
    for head, facts in outgoing.items():
        for r1, bridge in facts:
            for r2, tail in outgoing[bridge]:
                n_outside = ((head, r1, bridge) in outside) + ((bridge, r2, tail) in outside)
                if n_outside == 2:
                    test_oo.append(written((head, r1, r2), tail))
                elif n_outside == 0:
                    side = held_out if rng.uniform() < task.holdout else pool
                    side.append(written((head, r1, r2), tail))
    train = chosen(pool, round(task.phi * len(id_triples)))
    splits = [id_triples, ood_triples, train, held_out, test_oo]
    return sizes_of([*splits[:3], *([chosen(rows, task.probes) for rows in splits][3:])])


def lean(task: Any) -> dict[str, int]:
    """Build the splits in efficient plain Python."""
    rng = random.Random(task.world_seed)
    outgoing = [
        [
            (r, rng.randrange(task.n_entities))
            for r in rng.sample(range(task.n_relations), task.out_degree)
        ]
        for _ in range(task.n_entities)
    ]
    atomic = [(head, r, tail) for head, facts in enumerate(outgoing) for r, tail in facts]
    outside = set(rng.sample(atomic, round(task.ood_fraction * len(atomic))))
    id_triples = [fact for fact in atomic if fact not in outside]
    pool, held_out, test_oo = [], [], []
    for head, facts in enumerate(outgoing):
        for r1, bridge in facts:
            first_outside = (head, r1, bridge) in outside
            for r2, tail in outgoing[bridge]:
                if ((bridge, r2, tail) in outside) != first_outside:
                    continue
                row = (head, r1, r2, tail)
                if first_outside:
                    test_oo.append(row)
                elif rng.random() < task.holdout:
                    held_out.append(row)
                else:
                    pool.append(row)
    train = rng.sample(pool, round(task.phi * len(id_triples)))
    splits: list[list[Any]] = [id_triples, list(outside), train, held_out, test_oo]
    probes = [rng.sample(rows, min(task.probes, len(rows))) for rows in splits]
    return sizes_of([*splits[:3], *probes[3:]])


def sizes_of(splits: list[list[Any]]) -> dict[str, int]:
    """Return the number of rows by name of the split."""
    names = ("id_triples", "ood_triples", "train_ii", "test_ii", "test_oo")
    return {name: len(rows) for name, rows in zip(names, splits, strict=True)}


def built(changes: dict[str, Any]) -> dict[str, float]:
    """Build one size in this process and return its cost."""
    config = apply_overrides(load_config("configs/composition.py:paper"), changes)
    began, cpu = time.perf_counter(), time.process_time()
    dataset = build(config.task)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "rows": len(dataset),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def in_own_process(name: str) -> dict[str, float]:
    """Run `built` for a size in a separate process, and return the result."""
    command = [sys.executable, __file__, f"--size={name}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
