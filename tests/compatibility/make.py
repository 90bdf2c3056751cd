"""Make the test data of this folder. Run it in a checkout of the commit that README.md names.

    PYTHONPATH=. JAX_PLATFORMS=cpu python .../tests/compatibility/make.py data FOLDER
    PYTHONPATH=. JAX_PLATFORMS=cpu python .../tests/compatibility/make.py reference FOLDER

`data` makes a run and a sweep that were stopped, results, dictionaries and weight files.
`reference` continues a copy of them to the end and prints what came out, as JSON. It is called once
for each set of XLA flags; the flags are part of what it prints. It imports modules of that commit.
"""
# mypy: ignore-errors
# ruff: noqa: I001

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import implicit_reasoning
from implicit_reasoning.analysis import analyze
from implicit_reasoning.config import apply_overrides
from implicit_reasoning.dictionaries import load, measured, train_dictionaries
from implicit_reasoning.dictionaries import train as train_module
from implicit_reasoning.machine import provenance
from implicit_reasoning.model.interchange import save_gpt2, save_weights
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import define, run_sweep
from implicit_reasoning.training import train
from tests.dictionaries.small import config as small
from tests.training.tiny import saved_state, tiny

HALF = 40  # of 60 steps
INSTRUMENTS = ("behaviour", "lens", "corruption")
STEPS = (0, 25)  # the measured checkpoints
SWEEP = "tests/sweeps/small.py"
FINISHED, STOPPED = "topk", "relu"  # names of sets of dictionaries


def dictionary_config(name):
    changes = {"name": name, "variant": name, "steps": STEPS}
    if name == "relu":
        changes |= {"sparsities": (0.1, 0.3), "training.sparsity_warm_up": 10}
    return apply_overrides(small(), changes)


class StopsAt:
    """A shutdown request that comes when training has reached a step."""

    number = 15

    def __init__(self, step):
        self.chunks = step // 10

    def __bool__(self):
        self.chunks -= 1
        return self.chunks < 0


def stopped_dictionaries(run):
    before = train_module.wishes
    train_module.wishes = lambda: contextlib.nullcontext(StopsAt(20))
    try:
        train_dictionaries(run, dictionary_config(STOPPED))
    except train_module.Interrupted as stop:
        print(stop)
    finally:
        train_module.wishes = before


def make_data(folder):
    run = train(tiny(), folder / "run", stop_at=HALF)
    for instrument in INSTRUMENTS:
        analyze(run, instrument, steps=STEPS, progress=False)
    measured(run, train_dictionaries(run, dictionary_config(FINISHED)))
    stopped_dictionaries(run)
    sweep = define(SWEEP, "seeds")
    run_sweep(sweep, folder / "sweep", only=["seed=0"])
    run_sweep(sweep, folder / "sweep", only=["seed=1", "seed=2"], stop_at=HALF)
    params = last(run)
    weights = folder / "weights"
    weights.mkdir()
    save_weights(weights / "model.npz", run.model, params)
    save_weights(weights / "model.safetensors", run.model, params)
    save_gpt2(weights / "gpt2", run.model, params)
    for note in folder.rglob("commit_success.txt"):  # orbax writes the absolute path into it
        note.write_text(note.read_text().replace(f"{folder}/", ""))


def norms(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in leaves
    }


def state_digest(workdir):
    digest = hashlib.sha256()
    for name, leaf in sorted(saved_state(workdir).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def last(run):
    return jax.tree.map(lambda leaf: leaf[0], run.params(run.steps[-1:]))


def about_run(run):
    return {
        "fingerprint": run.fingerprint(run.steps[-1]),
        "norms": norms(last(run)),
        "losses": {str(row["step"]): row["loss"] for row in run.metrics if "loss" in row},
    }


def make_reference(folder):
    copy = Path(tempfile.mkdtemp()) / "copy"
    shutil.copytree(folder, copy)
    run = train(tiny(), copy / "run")
    made = train_dictionaries(run, dictionary_config(STOPPED))
    sweep = define(SWEEP, "seeds")
    run_sweep(sweep, copy / "sweep")
    found = {
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "made_with": provenance(),
        "run": about_run(run) | {"state": state_digest(copy / "run")},
        "sweep": {t: about_run(Run(copy / "sweep" / "trials" / t)) for t in sweep.trials},
        "dictionaries": {"fingerprint": made.fingerprint, "norms": norms(made.params)},
        "finished": {"fingerprint": load(run, FINISHED).fingerprint},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    print(implicit_reasoning.__file__, file=sys.stderr)
    {"data": make_data, "reference": make_reference}[sys.argv[1]](Path(sys.argv[2]))
