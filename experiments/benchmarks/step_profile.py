r"""Profile of a training step: the time of each kind of operation, from a trace.

    taskset -c 0 python experiments/benchmarks/step_profile.py    # one core: times add up

With several cores, operations overlap, and their times add up to more than the step. Kinds:

- products: matrix products of the forward and backward pass;
- layout: copies and transpositions that change the memory order of a factor or a gradient;
- sums: reductions (norms, gradients of biases, softmax, attention without matrix products);
- update: clipping, Adam, the new parameters;
- elementwise: the rest (activations, norms, embeddings, dropout).

Smoke test:
    python experiments/benchmarks/step_profile.py --config=experiments/smoke.py --steps=2 \
        --out=runs/smoke/step_profile.json
"""

from __future__ import annotations

import collections
import gzip
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import jax
from machines import keep
from outfile import OUT
from train_step import Ours

from implicit_reasoning.config import apply_overrides, load_config, parse_flags
from implicit_reasoning.runtime.machine import available_cores

FLAGS = {
    "config": "configs/composition.py:pocket",
    "steps": 50,
    "top": 12,
    "out": OUT,
}


def main(argv: list[str]) -> None:
    """Trace some steps, and write milliseconds per step by kind, and the largest operations."""
    flags, overrides = parse_flags(argv, FLAGS)
    ours = Ours(apply_overrides(load_config(flags["config"]), overrides))
    steps = flags["steps"]
    program = ours.compiled_text()
    ours.run(steps)
    seconds = min(ours.run(steps) for _ in range(3)) / steps
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            ours.run(steps)
        spent = durations(Path(folder))
    rows = [
        (spent[name] / steps / 1e3, kind_of(definition), name, definition)
        for name, definition in instructions(program).items()
        if name in spent
    ]
    by_kind: dict[str, float] = collections.defaultdict(float)
    for milliseconds, kind, _, _ in rows:
        by_kind[kind] += milliseconds
    result = {
        "config": flags["config"],
        "cores": len(available_cores()),
        "load_average": os.getloadavg()[0],
        "milliseconds_a_step": 1e3 * seconds,
        "gflop_a_step": ours.flops / 1e9,
        "milliseconds_by_kind": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "largest_beside_products": [
            {"milliseconds": ms, "kind": kind, "operation": describe(name, definition)}
            for ms, kind, name, definition in sorted(rows, reverse=True)
            if kind != "products"
        ][: flags["top"]],
    }
    keep(result, flags["out"], "step_profile")


def durations(folder: Path) -> dict[str, float]:
    """Return the microseconds of each operation, by name."""
    spent: dict[str, float] = collections.defaultdict(float)
    path = next(folder.rglob("*.trace.json.gz"))
    with gzip.open(path, "rt") as file:
        for event in json.load(file)["traceEvents"]:
            if event.get("ph") == "X":
                spent[event["name"]] += event["dur"]
    return spent


def instructions(program: str) -> dict[str, str]:
    """Return the definition of every instruction of a compiled program by name.

    The definition of a fusion includes the instructions that it fuses.
    """
    bodies = dict(re.findall(r"^%?([\w.-]+) \(.*?\{\n(.*?)^\}", program, re.M | re.S))
    found = {}
    for name, text in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$", program, re.M):
        fused = re.search(r"calls=%?([\w.-]+)", text)
        found[name] = text + (bodies.get(fused[1], "") if fused else "")
    return found


def kind_of(definition: str) -> str:
    """Return the kind of an instruction, one of the kinds in the module docstring."""
    if re.search(r"\bdot\(", definition):
        return "products"
    name = re.search(r'op_name="([^"]*)"', definition)
    if not name or "jvp" not in name[1]:
        return "update"
    if re.search(r"\breduce\(", definition):
        return "sums"
    return "layout" if re.search(r"\b(copy|transpose)\(", definition) else "elementwise"


def describe(name: str, definition: str) -> str:
    """Describe an instruction by its name, its shape and its place in the program."""
    source = re.search(r'op_name="([^"]*)"', definition)
    return f"{name} {definition.split('{')[0]} {source[1].split('body/')[-1] if source else ''}"


if __name__ == "__main__":
    main(sys.argv[1:])
