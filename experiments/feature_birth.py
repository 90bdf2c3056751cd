r"""When do features of bridge entities appear, and does the model use them?

    python experiments/feature_birth.py --out=results/feature_birth

The dictionaries are sparse autoencoders of the residual stream after the first block (TopK, k 8,
width 512, two seeds), trained from scratch at ten checkpoints of each run. There are three arms.
`composition` is the base task. In `shadow`, chains follow a second table of facts, so the bridge
that single facts teach at r1 is irrelevant to chains. In `scrambled`, chains have random answers,
so there is nothing to compose. The runs come from the table in `arms.py`. Missing runs are trained.
A feature of an entity is born when the best feature for the entity has an F1 of at least .5, as
mean over seeds, on facts that were not used to choose the feature. The script resumes run by run.

Smoke test:
    python experiments/feature_birth.py --scale=smoke --worlds=1 --inits=1 --arms=composition \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/feature_birth
"""

from __future__ import annotations

import sys
from pathlib import Path

import archive
import numpy as np
import xarray as xr
from archive import about, along_run, curves, run_arms, spaced
from arms import ARMS
from feature_birth_figures import CONCEPTS, draw_all, write_table

from implicit_reasoning.config import Flag
from implicit_reasoning.dictionaries import load, measure_dictionaries
from implicit_reasoning.dictionaries.evolution import births
from implicit_reasoning.runs import Run

FLAGS = {**archive.FLAGS, "out": Flag(kind=Path, default=Path("results/feature_birth"))}
NAME, SITE, SPARSITY, SEEDS, CHECKPOINTS = "birth", "blocks.0.hook_resid_post", 8, 2, 10


def main(argv: list[str]) -> None:
    """Train and measure the missing runs, then draw the figures."""
    out = run_arms("feature_birth", argv, FLAGS, dictionaries, kept)
    paths = {arm: out / f"{arm}.nc" for arm in ARMS}
    studies = {arm: xr.load_datatree(path) for arm, path in paths.items() if path.exists()}
    draw_all(out, studies)
    write_table(out / "table.md", studies)


def dictionaries(run: Run) -> list[list[str]]:
    """Return the command that trains and measures the dictionaries of a run, in a list."""
    steps = ",".join(map(str, spaced(run, CHECKPOINTS)))
    wanted = {
        "name": NAME,
        "read": SITE,
        "sparsities": SPARSITY,
        "seeds": SEEDS,
        "steps": steps,
        "baselines": "false",
        "progress": "false",
    }
    changes = [f"--config.{key}={value}" for key, value in wanted.items()]
    return [["dictionaries", f"--workdir={run.files.workdir}", *changes]]


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the data of a run for the figures, by step, with the F1 of every entity and seed."""
    result = measure_dictionaries(run, load(run, NAME))
    found = births(result).isel(site=0, sparsity=0, drop=True)
    by_step = result.set_index(member=["step", "seed"]).unstack("member")
    names = ["f1", "f1_null", "use", "use_low", "use_high", "explained_variance", "l0"]
    names += ["role_active", "silent", "absorbed", "absorbed_null", "kept", "kept_null"]
    names += ["agreement", "agreement_null", "feature_overlap", "effective_dims"]
    features = by_step[[name for name in names if name in by_step]]
    features["f1_null"] = features["f1_null"].max("draw")
    features = features.merge(found.rename(kept="value_kept"))
    bridges = [name for name in features["concept"].values if name in CONCEPTS]
    features = features.sel(concept=bridges)
    size = {"n_states": result.attrs["n_states"], "n_trained": result.attrs["n_trained"]}
    features = features.assign({name: ((), np.int32(count)) for name, count in size.items()})
    return along_run(
        {"/": about(run, world, init), "training": curves(run), "features": features.drop_attrs()}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
