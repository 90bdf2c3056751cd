r"""What do attribution graphs say about two-hop models, and is it true?

    python experiments/attribution_graphs.py --scale=desk --out=results/graphs

The arms are `composition` and `relations_first_deep` (prompts r1 r2 e1, four blocks). In the first,
the hops are at two positions, so a cross-layer transcoder cannot skip the first hop. In the second,
both hops are at the last position. Each arm has one run, so the study shows cases. It supports no
claim about training.

`--scale=pocket` runs the same arms at a smaller scale, with a smaller `--width` and an `--out` of
its own. `pocket` is too small for claims about composition, because shortcuts answer its chains.

The MLPs are replaced by transcoders, skip transcoders and a cross-layer transcoder, with the same
number of features and of active features for each layer. They are BatchTopK dictionaries, which
have a threshold for each feature after training. (Features of a TopK cross-layer transcoder compete
with those of later layers, so no forward pass can compute them.) At the stages of a run
(`stages.py`), there is one dictionary of each kind, and each starts from that of the stage before.
At the end, there are three seeds from scratch. Questions 1 and 2 read the dictionaries of the
stages, and questions 3 to 5 those of the seeds. The width for each layer must be at most a quarter
of the number of distinct training prefixes. A wider dictionary could have one feature for each
prefix.

Decision rules
--------------
The rules were written before any run was measured. Intervals are 95% intervals clustered by bridge.
A mean over fewer than 20 bridges counts as missing, and a rule that reads a missing number has no
answer. A rule that reads three seeds holds if it holds for all of them, fails if it fails for all
of them, and is otherwise "open". Graphs are those of all test_ii chains, also of those that the
model answers wrongly; patching reads only chains that it answers correctly.

1. How much of the influence comes through features? The numbers are the replacement score and the
   completeness score on test_ii at every stage, beside the published .61 and .80 (Ameisen et al.
   2025). There is no rule.
2. Does the graph pass through the bridge where the model does? Cross-query patching says that the
   model uses a state that carries the bridge if, at some layer and position, the lower end of the
   followed answers of the group "another bridge" is at least .5 and above the upper end of its null
   (another answer). A graph passes through the bridge if the lower end of the bridge share on
   test_ii is at least .5 and above the upper ends of both nulls (the features of the bridge of
   another chain; as many random active features of the same positions and layers). It avoids the
   bridge if the upper end is at most .2. It has no features if fewer than half of the chains have
   an active feature that stands for the bridge; its share then says nothing about the route. A kind
   of dictionary agrees with patching at a stage if it passes where patching says "uses", and does
   not pass where patching does not. In `relations_first`, all hops are at the last position, and
   patching of that position also replaces the second relation, so it can miss a bridge there.
3. Does a cross-layer transcoder describe a two-hop model as a one-hop model? It does so at the end
   if patching says "uses" and the upper end of its bridge share is below the lower end of the share
   of transcoders, for each pair of seeds of equal number.
4. Do features do what the graph says? The number is the slope of observed on predicted changes of
   the logit difference after swaps of the features of the bridge. The prediction is "paths", and
   the observation is in the real model. The graph predicts the swaps if the interval of the slope
   is inside (.5, 2). The share of answers that follow, with both nulls, and the number of features
   that are set are shown beside it. Clusters are the old bridges.
5. Can a feature be read from its weights? The number is the share of active features whose blind
   guess (`case_study.py`) has an F1 of at least .5 on facts that the guess has not read, beside the
   null and beside the share that activity can label.

Smoke test:
    python experiments/attribution_graphs.py --scale=smoke --arms=composition --width=8 --active=2 \
        --training=2 --jobs=0 --runs=runs/smoke --out=runs/smoke/graphs
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import archive
import numpy as np
import xarray as xr
from archive import about, along_run, curves, run_arms
from attribution_graphs_figures import draw_all
from attribution_graphs_tables import SEEDS, SPLIT, write_tables
from reasoning_or_shortcut_arms import read_arms
from stages import chosen_steps, stages, steps_of_stages

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.dictionaries.graphs.case_study import measure_guesses
from implicit_reasoning.dictionaries.graphs.measure import measure_graphs
from implicit_reasoning.dictionaries.graphs.swaps import measure_swaps
from implicit_reasoning.dictionaries.states import split_states
from implicit_reasoning.dictionaries.store import Dictionaries, load
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run

FLAGS = {
    **archive.FLAGS,
    "scale": "desk",
    "out": Flag(kind=Path, default=Path("results/graphs")),
    "width": 2_048,
    "active": 16,
    "training": 2_000,
}
KINDS = ("transcoder", "skip_transcoder", "cross_layer")

PATCHING = "cross_query_patching"
AT_END: Mapping[str, Callable[[Run, Dictionaries], xr.Dataset]] = {
    "graphs": partial(measure_graphs, splits=(SPLIT,)),
    "swaps": measure_swaps,
    "guesses": measure_guesses,
}
"""What is measured of the seeds. Of the stages, only the graphs are measured."""


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then write the tables and draw the figures."""
    given, _ = parse_flags(argv, FLAGS)
    sets = {name: given[name] for name in ("width", "active", "training")}
    measure, keep = partial(measuring, **sets), partial(kept, scale=given["scale"], **sets)
    out = run_arms("attribution_graphs", argv, FLAGS, measure, keep)
    arms = read_arms(out)
    write_tables(out, arms)
    draw_all(out, arms)


def name_of(kind: str, part: str, width: int, active: int) -> str:
    """Return the name of a set of dictionaries; `part` is "stages" or "seeds"."""
    return f"graphs_{kind}_{part}_{width}_{active}"


def measuring(run: Run, *, width: int, active: int, training: int) -> list[list[str]]:
    """Return the commands that train the dictionaries of a run and patch it.

    Raises:
      InputError: the width is above a quarter of the number of distinct training states.
    """
    states = n_states(run)
    if 4 * width > states:
        raise InputError(
            f"--width is {width}; it must be at most a quarter of the {states} distinct states"
        )
    steps = at_stages(run)
    commands = []
    for kind in KINDS:
        for part, chosen in (("stages", steps), ("seeds", steps[-1:])):
            # Width and sparsity of a cross-layer transcoder are those of all layers together.
            layers = run.model.spec.depth if kind == "cross_layer" else 1
            wanted = {
                "name": name_of(kind, part, width, active),
                "activation_fn": "batch_topk",
                "sparsities": active * layers,
                "seeds": SEEDS if part == "seeds" else 1,
                "start": "cold" if part == "seeds" else "forwards",
                "width": width * layers,
                "steps": ",".join(map(str, chosen)),
                "training.steps": training,
                "baselines": "false",
                "progress": "false",
            }
            config = f"--config=implicit_reasoning.dictionaries.defaults:{kind}"
            changes = [f"--config.{key}={value}" for key, value in wanted.items()]
            words = [f"--workdir={run.files.workdir}", config, "--instruments=reconstruction"]
            commands.append(["dictionaries", *words, *changes])
    patching = [f"--instruments={PATCHING}", f"--steps={','.join(map(str, steps))}"]
    return [*commands, ["analyze", f"--workdir={run.files.workdir}", *patching]]


def n_states(run: Run) -> int:
    """Return the number of distinct prefixes that dictionaries of a run are trained on."""
    return int(split_states(run.dataset).trained.sum())


def at_stages(run: Run) -> list[int]:
    """Return the checkpoints of a run that are a stage."""
    return steps_of_stages(run, chosen_steps(run))


def kept(
    run: Run, world: int, init: int, *, scale: str, width: int, active: int, training: int
) -> xr.DataTree:
    """Return the curves, the stages, the patching and the measurements of all dictionaries."""
    found = stages(run, chosen_steps(run))
    settings = {"scale": scale, "width": width, "active": active, "dictionary_steps": training}
    patching = run.result(PATCHING)
    chosen = [f"fraction{end}" for end in ("", "_low", "_high", "_n")]
    nodes = {
        "/": about(run, world, init),
        "training": curves(run),
        "stages": found.assign({**settings, "n_states": n_states(run)}),
        "followed": by_stage(patching[chosen].drop_attrs(), found, "step"),
    }
    for kind in KINDS:
        over_training, seeds = (
            load(run, name_of(kind, part, width, active)) for part in ("stages", "seeds")
        )
        graphs = AT_END["graphs"](run, over_training)
        nodes[f"graphs_{kind}"] = by_stage(graphs, found, "group")
        for name, measure in AT_END.items():
            of_seeds = measure(run, seeds).swap_dims(group="seed")
            nodes[f"{name}_{kind}_seeds"] = of_seeds.drop_vars(("step", "sparsity"))
    return along_run(nodes)


def by_stage(found: xr.Dataset, at: xr.Dataset, dim: str) -> xr.Dataset:
    """Replace the checkpoints, along a dimension, by stages; a stage not reached has nan."""
    steps, wanted = found["step"].values, at["reached"].values
    known = np.isin(wanted, steps)
    places = [int(np.flatnonzero(steps == step)[0]) if step in steps else 0 for step in wanted]
    others = [name for name in ("step", "sparsity", "seed") if name in found.coords]
    chosen = found.isel({dim: places}).drop_vars(others).rename({dim: "stage"})
    chosen = chosen.assign_coords(stage=at["stage"].values)
    return chosen.where(xr.DataArray(known, dims="stage", coords={"stage": at["stage"].values}))


if __name__ == "__main__":
    main(sys.argv[1:])
