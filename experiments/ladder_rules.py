r"""Accuracies of rules that use no single facts, in the worlds of `ladder` at every scale.

    python experiments/ladder_rules.py --seeds=20 --out=results/ladder_rules

Worlds are built with the world seeds 0, 1, ... No model is trained. The script writes the accuracy
of every shortcut on every test split by world (`raw/rules.json`), and a table of row completion and
cluster oracle. The table has means over the first three worlds and means over all worlds. It also
has the numbers of an earlier implementation, from the design of the task.

Smoke test:
    python experiments/ladder_rules.py --seeds=2 --scales=pocket --out=runs/smoke/ladder_rules
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.worlds import build, coverage, shortcuts

FLAGS = {
    "seeds": 20,
    "scales": Flag(many=True, default=("pocket", "desk", "bench")),
    "out": Flag(kind=Path, default=Path("results/ladder_rules")),
}
SPLITS = ("test_ii", "test_c0", "test_c1", "test_c2", "test_private", "test_oi")
RULES = ("row_completion", "cluster_oracle")
FIRST = 3
NOTED = {
    "pocket": {"test_ii": ".99", "test_c0": ".03 / .07", "test_c1": ".84 / .88"},
    "desk": {"test_ii": "1.0", "test_c0": ".02 / .03", "test_c1": ".90 / .91"},
    "bench": {"test_ii": "1.0", "test_c0": ".01 / .02", "test_c1": ".82 / .89"},
}
NOTED["pocket"] |= {"test_c2": ".96 / 1.0", "test_oi": ".05"}
NOTED["desk"] |= {"test_c2": ".97 / 1.0", "test_oi": ".03"}
NOTED["bench"] |= {"test_c2": ".93 / 1.0", "test_oi": ".02"}
"""Row completion / oracle in three worlds, from the prototype of the task."""


def main(argv: list[str]) -> None:
    """Build the worlds, and write the accuracies of the rules."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides: its worlds are those of configs/ladder.py")
    found = {scale: worlds(scale, flags["seeds"]) for scale in flags["scales"]}
    result = {"scales": found, "made_with": provenance()}
    write_json(flags["out"] / "raw" / "rules.json", result, indent=None)
    text = "".join(table(scale, of_scale["worlds"]) for scale, of_scale in found.items())
    (flags["out"] / "table.md").write_text(text, encoding="utf-8")


def worlds(scale: str, seeds: int) -> dict[str, Any]:
    """Return the task's settings and, for every world, the accuracy of every rule by split."""
    config, found = load_config(f"configs/ladder.py:{scale}"), []
    for seed in range(seeds):
        task = apply_overrides(config, {"task.world_seed": seed}).task
        began = time.perf_counter()
        dataset = build(task)
        found.append(
            {
                "world_seed": seed,
                "seconds": round(time.perf_counter() - began, 3),
                "coverage": round(coverage(dataset) or 0.0, 4),
                "rows": dataset.sizes(),
                "accuracy": shortcuts(dataset),
            }
        )
    return {"task": to_json(config)["task"], "worlds": found}


def table(scale: str, found: list[dict[str, Any]]) -> str:
    """Return a Markdown table of `row completion / cluster oracle` by split."""
    task = load_config(f"configs/ladder.py:{scale}").task
    size = f"{task.n_entities}/{task.n_relations}/{task.out_degree}, phi {task.phi:g}"
    lines = [
        f"## {scale}: {size}, {task.facts_per_rung} facts a rung",
        "",
        "| worlds | " + " | ".join(SPLITS) + " |",
        "|---" * (len(SPLITS) + 1) + "|",
        f"| first {FIRST} | " + " | ".join(cell(found[:FIRST], split) for split in SPLITS) + " |",
        f"| all {len(found)} | " + " | ".join(cell(found, split) for split in SPLITS) + " |",
        "| deviation between worlds | "
        + " | ".join(cell(found, split, deviation=True) for split in SPLITS)
        + " |",
        "| prototype, 3 | " + " | ".join(NOTED[scale].get(split, "-") for split in SPLITS) + " |",
        "| rows, world 0 | " + " | ".join(f"{found[0]['rows'][s]:,}" for s in SPLITS) + " |",
    ]
    return "\n".join(lines) + "\n\n"


def cell(found: list[dict[str, Any]], split: str, deviation: bool = False) -> str:
    """Format row completion / cluster oracle as mean or standard deviation over worlds."""
    shown = []
    for rule in RULES:
        values = [world["accuracy"][rule][split] for world in found]
        shown.append(f"{np.std(values, ddof=1) if deviation else np.mean(values):.3f}")
    return " / ".join(shown)


if __name__ == "__main__":
    main(sys.argv[1:])
