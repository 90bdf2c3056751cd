r"""Benchmark of rank-one edits with all their scores.

    python experiments/benchmarks/fact_edits.py --workdir=runs/studies/pocket/composition_w0_i0

The instrument `knowledge_editing` edits facts of a trained run with the editor `rome` and scores
every edit beside its null controls: the consequences of the edit, and the locality on other
prompts. There are two jobs, each one compiled program on every core:

- `last checkpoint`: 1,000 edits of the last checkpoint, with 1,000 other prompts. Aim: 120 seconds.
- `checkpoints`: 200 edits of each of 20 checkpoints, evenly spaced in the schedule of the run, with
  300 other prompts, as in `editing.py`.

The model must be trained, because a search for a value ends when the new answer is certain. In an
untrained model, no prompt counts and every search has the maximum number of steps.

The first call, which includes compilation, is timed separately. FLOPs count the matrix products of
the scores. The products of the searches do not count, because their number of steps is not known
before. Mean scores stand beside the seconds and show that the edits were made.

Smoke test:
    python experiments/benchmarks/fact_edits.py --workdir=runs/smoke/run --edits=2 --others=5 \
        --checkpoints=2 --edits_each=2 --others_each=5 --rounds=1 --out=runs/smoke/fact_edits.json
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from default_set import evenly
from machines import keep
from measure import spread
from outfile import OUT
from product_flops import product_flops

from implicit_reasoning.analysis import Runner
from implicit_reasoning.analysis.editing.edited_models import prepare
from implicit_reasoning.analysis.editing.knowledge_editing import NULLS, ROME, KnowledgeEditing
from implicit_reasoning.analysis.editing.scores import SCORES
from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Run

FLAGS = {
    "workdir": Flag(kind=Path, default=Path("runs/studies/pocket/composition_w0_i0")),
    "edits": 1000,
    "others": 1000,
    "checkpoints": 20,
    "edits_each": 200,
    "others_each": 300,
    "rounds": 3,
    "out": OUT,
}
AIM = 120.0  # seconds for the edits of the last checkpoint


def main(argv: list[str]) -> None:
    """Time both jobs and write the results."""
    flags, _ = parse_flags(argv, FLAGS)
    jax.config.update("jax_enable_compilation_cache", False)
    run = Run(flags["workdir"])
    jobs = {
        "last checkpoint": (run.steps[-1:], flags["edits"], flags["others"]),
        "checkpoints": (
            evenly(run.steps, flags["checkpoints"]),
            flags["edits_each"],
            flags["others_each"],
        ),
    }
    result = {
        "sizes": {name: flags[name] for name in FLAGS if name not in ("workdir", "out")},
        "config": run.config.to_dict(),
        "load_average": os.getloadavg()[0],
        "aim_seconds": AIM,
        "jobs": {
            name: measure(run, list(steps), edits, others, flags["rounds"])
            for name, (steps, edits, others) in jobs.items()
        },
    }
    keep(result, flags["out"], "fact_edits")


def measure(run: Run, steps: list[int], edits: int, others: int, rounds: int) -> dict[str, Any]:
    """Time the edits of all checkpoints as one program.

    Args:
      run: a run with checkpoints.
      steps: steps of the checkpoints.
      edits: number of edits of each checkpoint.
      others: number of other prompts.
      rounds: number of calls after the first one.
    """
    instrument = KnowledgeEditing([ROME], edits=edits, others=others)
    runner = Runner(instrument, run.model)
    examples = instrument.examples(run.model, run.dataset)
    params, inputs = run.params(steps), runner.place(examples)
    seconds = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        found = runner(params, inputs)
        seconds.append(time.perf_counter() - began)
        print(f"{number}/{rounds}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    share, counted = (
        np.asarray(found[name])[-1, len(NULLS)] for name in ("share", "counted")
    )  # [score, edit]
    one = jax.tree.map(lambda leaf: leaf[0], params)
    gflop = len(steps) * flops_of_scores(run, instrument, one, inputs.inputs) / 1e9
    return {
        "steps": steps,
        "edits": share.shape[1],
        "first_call_seconds": seconds[0],
        "seconds": spread(seconds[1:]),
        "gflop_of_scores": gflop,
        "scores_at_last_step": {
            name: {"mean": float(of[there].mean()) if there.any() else None, "n": int(there.sum())}
            for name, of, there in zip(SCORES, share, counted.astype(bool), strict=True)
        },
    }


def flops_of_scores(run: Run, instrument: KnowledgeEditing, params: Params, inputs: Any) -> float:
    """Return the FLOPs of the scores of all edits of one checkpoint.

    Args:
      run: the run.
      instrument: the instrument.
      params: parameters of one checkpoint.
      inputs: inputs of the instrument, on a device.
    """
    model = run.model
    key = jax.random.key(0)
    made = jax.eval_shape(lambda: instrument.changes(model, params, inputs, key))

    def scores(params: Params, inputs: Any, made: Any) -> Any:
        parts = prepare(model, params, inputs["case"], inputs["others"], instrument.layer)
        return instrument.score(model, params, inputs, made, *parts)

    return product_flops(scores, params, inputs, made)


if __name__ == "__main__":
    main(sys.argv[1:])
