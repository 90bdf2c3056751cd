r"""Comparison of transcoders and sparse autoencoders of the same MLPs, at equal sparsity.

    python experiments/transcoders_vs_saes.py --out=results/transcoders_vs_saes

This is the Pareto comparison of Dunefsky, Chlenski and Nanda 2024 (Fig. 2; Pythia-410M, one layer),
on a model whose world is known. Three kinds of dictionaries are trained for every block of the last
checkpoint: a TopK autoencoder of the MLP's output, a transcoder and a skip transcoder. They have
four sparsities, three seeds and one width. At equal L0, the script compares:

- the explained variance of the MLP's output on held-out prefixes;
- the cross-entropy on training and test chains if the output of the dictionary replaces the output
  of the MLP (also for the clean model, and with the mean output of the MLP);
- the F1 of bridge features;
- the share of answers that follow a swap of these features.

Baselines are neurons, k-means, linear codes, class means, frozen decoders and the untrained model.

The model is a run from the table in `arms.py`, which is trained if it is missing; `--run` names a
different run. The script checks that the width is at most a quarter of the number of distinct
training states. The script resumes with the first kind of dictionary whose results are missing.

Smoke test, of a run of `experiments/smoke.py`:
    python experiments/transcoders_vs_saes.py --run=runs/smoke/run --width=8 --sparsities=2 \
        --steps=2 --seeds=2 --jobs=0 --out=runs/smoke/transcoders
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import runs
import xarray as xr
from apart import Command, run_apart
from transcoders_vs_saes_figures import draw_all, write_table

from implicit_reasoning.config import Flag, parse_flags, to_json
from implicit_reasoning.dictionaries import load, measure_dictionaries
from implicit_reasoning.dictionaries.states import split_states
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run, load_arrays, save_arrays

FLAGS = {
    "run": Flag(kind=Path),
    "out": Flag(kind=Path, default=Path("results/transcoders_vs_saes")),
    "width": 768,
    "sparsities": Flag(kind=int, many=True, default=(4, 8, 16, 32)),
    "steps": 1_000,
    "seeds": 3,
    "jobs": 1,
}
KINDS = ("autoencoder", "transcoder", "skip_transcoder")
KEPT = (
    "explained_variance",
    "l0",
    "mse",
    "dead",
    "dense",
    "ce",
    "kl",
    "correct",
    "ce_loss_score_mean",
    "f1",
    "f1_null",
    "average_precision",
    "use",
    "use_low",
    "use_high",
    "role_active",
    "agreement",
    "agreement_null",
)


def main(argv: list[str]) -> None:
    """Train and measure the missing dictionaries, then draw the figures."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError(
            "this study takes no overrides: all compared dictionaries must have the same settings"
        )
    out, width = flags["out"], flags["width"]
    if flags["run"] is None:
        [run] = runs.restore(runs.needed("transcoders_vs_saes"), jobs=flags["jobs"])
    else:
        run = Run(flags["run"])
    states = int(split_states(run.dataset).trained.sum())
    if 4 * width > states:
        raise InputError(
            f"--width is {width}; it must be at most a quarter of the {states} distinct states"
        )

    def job(kind: str, command: Command) -> None:
        command(dictionaries(kind, run, flags))
        save_arrays(out / f"{kind}.nc", kept(run, kind, width, states))

    jobs = {kind: partial(job, kind) for kind in KINDS if not (out / f"{kind}.nc").exists()}
    os.makedirs(out, exist_ok=True)
    run_apart(jobs, flags["jobs"], run.files.workdir / "compiled")
    results = {kind: load_arrays(out / f"{kind}.nc") for kind in KINDS}
    draw_all(out, results)
    write_table(out / "table.md", results)


def dictionaries(kind: str, run: Run, flags: dict[str, Any]) -> list[str]:
    """Return the command that trains and measures the dictionaries of a kind."""
    blocks = range(run.model.spec.depth)
    read = ",".join(f"blocks.{block}.ln2.hook_normalized" for block in blocks)
    write = ",".join(f"blocks.{block}.hook_mlp_out" for block in blocks)
    wanted = {
        "name": f"mlp_{kind}",
        "read": write if kind == "autoencoder" else read,
        "write": write,
        "sparsities": ",".join(map(str, flags["sparsities"])),
        "seeds": flags["seeds"],
        "width": flags["width"],
        "steps": run.steps[-1],
        "training.steps": flags["steps"],
        "progress": "false",
    }
    changes = [f"--config.{key}={value}" for key, value in wanted.items()]
    config = f"--config=implicit_reasoning.dictionaries.defaults:{kind}"
    return ["dictionaries", f"--workdir={run.files.workdir}", config, *changes]


def kept(run: Run, kind: str, width: int, states: int) -> xr.Dataset:
    """Return the measurements of every dictionary and baseline, averaged over values.

    Args:
      run: the run.
      kind: kind of the dictionaries.
      width: width of the dictionaries.
      states: number of distinct training states.
    """
    made = load(run, f"mlp_{kind}")
    result = measure_dictionaries(run, made)
    found = result[[name for name in KEPT if name in result]]
    found["f1_null"] = found["f1_null"].max("draw")
    found["f1_values"] = found["f1"].notnull().sum("value")
    found = found.assign({name: found[name].mean("value") for name in ("f1", "average_precision")})
    numbers = {
        name: values.astype(np.float32)
        for name, values in found.items()
        if values.dtype.kind == "f"
    }
    about = {"run": to_json(run.config), "trained": run.starts, "width": width}
    return found.assign(numbers).assign_attrs(
        about=json.dumps(about), n_trained=states, n_states=result.attrs["n_states"]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
