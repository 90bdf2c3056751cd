r"""Does a model compose single facts, or does it follow the evidence from training chains?

    python experiments/reasoning_or_shortcut.py --out=results/reasoning_or_shortcut

In the task `ladder`, a cold fact begins exactly two training chains. Of these chains, 0, 1 or 2
give evidence about the bridge (rungs c0, c1, c2), and the single fact states the bridge at every
rung. The arms with four worlds and two initializations each are:

- `ladder`: the usual loss and the usual answers (the implicit arm).
- `ladder_early`: early supervision of single facts with weight 6. About one of six training rows is
  a single fact, so these facts count as in a mean over single facts.
- `ladder_chain_of_thought`: the answer of a chain is the bridge and then the last entity.
- `ladder_looped`: two blocks that are applied twice.
- `cue_conflict_long`: the triple of a fact contradicts its training chains.

Arms with fewer runs are shown as curves and support no claim: `ladder_identity` (identity rows of
both kinds), `like_ladder_without_id_triples` and `like_ladder_scrambled` with three runs each, and
`ladder_early_1` (early supervision with weight 1) with one run.

The runs are those of `arms.py`. Runs are trained and measured in separate processes, `--jobs` in
parallel. The script resumes run by run: runs with results of the present version in `--out` are not
measured again. `--arms` restricts the arms. The tables and figures show all results in `--out`.

Decision rules
--------------
The rules were written before the first run. Three settings and one condition were changed after it
began. The first run of `ladder_early` had weight 1 and is now `ladder_early_1`. Runs are evaluated
every 250 steps instead of every 50, to save time. Runs of `ladder_chain_of_thought` have 3,000
steps instead of 10,000, because the first run had no error from step 2,250 to its end. The second
condition for "not grounded" first compared the upper end of c0 with .8 c2. It now has the interval
of the difference, as `by_answers.grounded` computes it, so fewer runs are "not grounded" and more
are open.

Accuracies are of all probe rows of a split. Intervals of one run are 95% intervals clustered by
bridge. Intervals over runs are 95% t intervals over the means of the four worlds. No p value is
corrected for the number of questions.

Stages of a run: `memorised` is the first checkpoint with train_ii >= .99. `half` is the first with
test_ii >= .5. `end` is the last checkpoint. There is a checkpoint every 250 steps, and there are
more of them before step 250.

1. Grounded. A run is grounded at a stage if the lower end of c0 is at least the accuracy of the
   best rule on c0 plus .05, and c0 >= .8 c2. It is not grounded if the upper end of c0 is below the
   best rule plus .05, or if the upper end of the interval of c0 - .8 c2 is below 0. Otherwise the
   run is open. An arm is grounded if at least 7 of its 8 runs are, not grounded if at least 7 runs
   are not, and otherwise open.
2. Evidence. The accuracy of an arm is a function of the evidence if the intervals over worlds of
   c1 - c0 and of c2 - c0 are above 0 and the interval of c0 - oi contains a value between -.1 and
   .1. It goes by the fact if the interval of c2 - c0 contains 0 and c2 - c0 < .1. In all other
   cases the question is open.
3. Instruments. Cross-query patching and the mean swap at S[1, r1] agree with the answers at a stage
   if, over runs and rungs, the Spearman correlation between the share of answers that follow the
   state and the accuracy of the rung is at least .7, and no run has the claim `grounded` while the
   rule of question 1 says that it is not grounded, or the reverse.
4. Cue conflict. For n training chains, the chains win at a stage if the interval over worlds of the
   share of answers that follow the chains minus the share that follow the fact is above 0. The fact
   wins if the interval is below 0. Neither wins if more than half of the answers follow neither.
5. Grokking and grounding. In a run, both come together if c0 reaches .5 at a step at most twice as
   late as the step at which test_ii reaches .5. An arm has them together if this holds in at least
   7 of 8 runs, apart if it holds in at most 1 run. Kaplan-Meier curves show the steps at which
   test_ii and c0 reach .5; runs that do not reach .5 are censored at the last step.
6. Chain of thought and early supervision, each compared with the implicit arm: the difference of a
   split's accuracy at the end, and of the step at which test_ii reaches .5, paired by world and
   initialization. A difference counts if its interval over worlds excludes 0.
7. Memorize-only phase. An arm has none if test_ii >= .5 at the stage `memorised` in at least 7 of 8
   runs.
8. The gap of the second hop. It remains if the interval over worlds of io - test_ii at the end is
   below -.1.
9. Teaching cold facts later. Each run of the implicit arm is continued for 2,000 steps on the task
   `composition` of the same world, in which the cold facts are ordinary facts. Teaching repairs
   rung 0 if, at the end, the accuracy on its chains that neither task trains on is at least .8
   times that on held-out chains of other facts, in at least 7 of 8 runs.

Smoke test:
    python experiments/reasoning_or_shortcut.py --scale=smoke --arms=ladder --worlds=1 --inits=1 \
        --jobs=0 --runs=runs/smoke --out=runs/smoke/reasoning_or_shortcut
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import archive
import numpy as np
import xarray as xr
from archive import about, along_run, analyses, curves, run_arms
from reasoning_or_shortcut_arms import RUNGS, read_arms
from reasoning_or_shortcut_figures import draw_all
from reasoning_or_shortcut_tables import write_tables

from implicit_reasoning.analysis.api import find_instrument
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.truth.by_answers import correct_probes, factors, grounded
from implicit_reasoning.config import Flag
from implicit_reasoning.model import Transformer
from implicit_reasoning.runs import Run
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.training.estimate import plan
from implicit_reasoning.training.thoughts import ThoughtOutcome
from implicit_reasoning.worlds import ROLES, Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.dataset import world_of

FLAGS = {**archive.FLAGS, "out": Flag(kind=Path, default=Path("results/reasoning_or_shortcut"))}
STAGES = {"memorised": ("train_ii", 0.99), "half": ("test_ii", 0.5), "end": ("train_ii", 0.0)}
"""The split and the accuracy that a checkpoint must reach, by stage; `end` is the last one."""

INSTRUMENTS = {
    "cross_query_patching": ("fraction",),
    "mean_swap": ("counterfactual", "unchanged"),
}
KINDS = ("factors", "grounded")
VERSION = 2
"""Version of the saved data. Version 1 has no claims of instruments."""

MAX_EVIDENCE = 12  # chains with more evidence are counted with those that have this evidence


def main(argv: list[str]) -> None:
    """Train and measure what is missing, then write the tables and draw the figures."""
    out = run_arms("reasoning_or_shortcut", argv, FLAGS, measuring, kept, VERSION)
    arms = read_arms(out)
    write_tables(out, arms)
    draw_all(out, arms)


def measuring(run: Run) -> list[list[str]]:
    """Return the command that measures a run, in a list that is empty for some arms."""
    if run.config.init_from.workdir or not _has_instruments(run):
        return []
    steps = sorted({0, *(step for step in stage_steps(run).values() if step is not None)})
    return analyses(run, {tuple(steps): tuple(INSTRUMENTS)})


def _has_instruments(run: Run) -> bool:
    return "test_c0" in run.dataset.splits and "thought" not in run.dataset.truth


def stage_steps(run: Run) -> dict[str, int | None]:
    """Return the checkpoint of each stage; None if the run does not reach the stage.

    Only checkpoints at which the run was evaluated count, because they have intervals.
    """
    rows = [row for row in run.metrics if "accuracy_low/train_ii" in row]
    found: dict[str, int | None] = {
        stage: next((row["step"] for row in rows if row[f"accuracy/{split}"] >= least), None)
        for stage, (split, least) in STAGES.items()
    }
    return found | {"end": rows[-1]["step"]}


def kept(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the curves and the stages of a run, and the parts of results at S[1, r1]."""
    if run.config.init_from.workdir:
        return taught(run, world, init)
    steps, dataset = stage_steps(run), run.dataset
    reached = sorted({step for step in steps.values() if step is not None})
    correct = dict(zip(reached, correct_probes(run, reached), strict=True))
    nodes = {
        "/": about(run, world, init),
        "training": training(run),
        "stages": stages(run, steps, correct),
        "facts": by_fact(dataset, correct[reached[-1]]),
    }
    if _has_instruments(run):
        nodes |= {name: part_of(run, name, steps) for name in INSTRUMENTS}
        nodes["claims"] = claims(run, steps)
        nodes["evidence"] = by_evidence(dataset, correct[reached[-1]])
    return along_run(nodes)


class Asked(NamedTuple):
    """Checkpoints of one run, asked the questions of another dataset with the same tokens."""

    model: Transformer
    dataset: Dataset
    steps: tuple[int, ...]
    params: Callable[..., Any]


def taught(run: Run, world: int, init: int) -> xr.DataTree:
    """Return the accuracies of a run that learns the cold facts of an earlier run through chains.

    The questions are those of the earlier run that neither task trains on.
    """
    dataset, steps = Run(run.config.init_from.workdir).dataset, run.steps
    correct = correct_probes(Asked(run.model, dataset, steps, run.params), steps)
    probes = np.flatnonzero(dataset.probe)
    trained = run.dataset.tokens[: run.dataset.n_train]
    known = {tuple(row) for row in trained[run.dataset.truth["r2"][: len(trained)] >= 0].tolist()}
    new = np.array([tuple(row) not in known for row in dataset.tokens[probes].tolist()])
    splits = ("test_ii", *RUNGS, "test_oi")
    ends = ("", "_low", "_high", "_clusters")
    found = {f"accuracy{end}": np.full((len(steps), len(splits)), np.nan) for end in ends}
    for column, split in enumerate(splits):
        rows = np.flatnonzero((dataset.split[probes] == dataset.splits.index(split)) & new)
        interval = ClusterIntervals(clusters_of(dataset, probes[rows])).interval(correct[:, rows])
        parts = (interval.mean, interval.low, interval.high, interval.n_clusters)
        for values, part in zip(found.values(), parts, strict=True):
            values[:, column] = part
    arrays = {name: (("step", "split"), values) for name, values in found.items()}
    coords = {"step": list(steps), "split": list(splits)}
    nodes = {"/": about(run, world, init), "taught": xr.Dataset(arrays, coords)}
    return along_run(nodes)


def training(run: Run) -> xr.Dataset:
    """Return the curves, those of the parts of a chain of thought, and the cost of a step."""
    found = curves(run)
    rows = [row for row in run.metrics if row["step"] in set(found["evaluation"].values.tolist())]
    for name in ThoughtOutcome._fields:
        if any(f"{name}/{split}" in rows[0] for split in run.dataset.splits):
            table = [
                [row.get(f"{name}/{s}", np.nan) for s in found["split"].values] for row in rows
            ]
            found[name] = ("evaluation", "split"), np.asarray(table, np.float32)
    operations = plan(run.config, measure=False).cost.step
    return found.assign(flops_per_step=((), float(operations)))


def stages(run: Run, steps: dict[str, int | None], correct: dict[int, np.ndarray]) -> xr.Dataset:
    """Return, at every stage, accuracies with intervals, and the verdicts of the answers.

    A verdict is 1 for true, 0 for false and nan for open or for a stage that is not reached.
    """
    dataset, rows = run.dataset, {row["step"]: row for row in run.metrics}
    names = (
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "accuracy_clusters",
        "accuracy_unanswered",
    )
    splits = [split for split in dataset.splits if len(dataset.probes(split))]
    found = {name: np.full((len(steps), len(splits)), np.nan) for name in names}
    verdicts = {name: np.full(len(steps), np.nan) for name in ("grounded", "factors")}
    for place, step in enumerate(steps.values()):
        if step is None:
            continue
        for name in names:
            found[name][place] = [rows[step].get(f"{name}/{split}", np.nan) for split in splits]
        if "test_c0" in dataset.splits:
            for name, rule in (("grounded", grounded), ("factors", factors)):
                holds = rule(dataset, correct[step]).holds
                verdicts[name][place] = np.nan if holds is None else float(holds)
    at = [np.nan if step is None else step for step in steps.values()]
    return xr.Dataset(
        {name: (("stage", "split"), values) for name, values in found.items()}
        | {name: (("stage",), values) for name, values in verdicts.items()}
        | {
            "reached": (("stage",), at),
            "n": (("split",), [len(dataset.probes(s)) for s in splits]),
        },
        {"stage": list(steps), "split": splits},
    )


def by_evidence(dataset: Dataset, correct: np.ndarray) -> xr.Dataset:
    """Count the test chains and the correct answers by role of the first fact and by evidence.

    The last facts of the chains have roles that training chains use. The chains of `test_private`
    are not counted, because no training chain has their bridge and last relation, except for those
    of a cold fact. `rule_right` counts the chains that row completion answers correctly.
    """
    probes, truth = np.flatnonzero(dataset.probe), dataset.truth
    usual = np.isin(truth["role2"][probes], [ROLES.index(role) for role in "IC"])
    private = dataset.split[probes] == dataset.splits.index("test_private")
    held_out = (probes >= dataset.n_train) & usual & ~private
    roles = ("I", "C", "O")
    shape = (len(roles), MAX_EVIDENCE + 1)
    found = {name: np.zeros(shape) for name in ("chains", "right", "rule_right")}
    evidence = np.minimum(truth["evidence1"][probes], MAX_EVIDENCE)
    for place, role in enumerate(roles):
        rows = held_out & (truth["role1"][probes] == ROLES.index(role))
        weights = (np.ones(rows.sum()), correct[rows], truth["row_completion_right"][probes][rows])
        for name, weight in zip(found, weights, strict=True):
            found[name][place] = np.bincount(evidence[rows], weight, MAX_EVIDENCE + 1)
    counts = {name: (("role", "evidence"), values) for name, values in found.items()}
    return xr.Dataset(counts, {"role": list(roles), "evidence": range(MAX_EVIDENCE + 1)})


def by_fact(dataset: Dataset, correct: np.ndarray) -> xr.Dataset:
    """Return the accuracy of the held-out chains of every first fact that is not an `I` fact.

    Facts are padded to the number of facts of the world, so that runs have equal shapes.
    """
    facts, probes, truth = world_of(dataset).facts, np.flatnonzero(dataset.probe), dataset.truth
    rows = (probes >= dataset.n_train) & (truth["r2"][probes] >= 0) & (truth["fact1"][probes] >= 0)
    first = truth["fact1"][probes]
    count, right = (
        np.bincount(first[rows], weight, len(facts.role))
        for weight in (np.ones(rows.sum()), correct[rows])
    )
    others = np.flatnonzero((count > 0) & (facts.role != ROLES.index("I")))
    size = len(facts.role)
    columns: dict[str, Any] = {"role": facts.role[others], "n": count[others]}
    columns["accuracy"] = right[others] / count[others]
    padded = {
        name: (("fact",), np.concatenate([values, np.full(size - len(others), np.nan)]))
        for name, values in columns.items()
    }
    return xr.Dataset(padded)


def part_of(run: Run, name: str, steps: dict[str, int | None]) -> xr.Dataset:
    """Return the part of a result at S[1, r1], by stage instead of by step."""
    result = run.result(name)
    ends = ("", "_low", "_high", "_n")
    names = [f"{variable}{end}" for variable in INSTRUMENTS[name] for end in ends]
    found = result[names].sel(layer=1, pos="r1", drop=True).drop_attrs()
    if "variable" in found.dims:
        found = found.sel(variable="e2", drop=True)
    first = found.isel(step=0, drop=True)
    parts = [
        first.where(False) if step is None else found.sel(step=step, drop=True)
        for step in steps.values()
    ]
    untrained = found.sel(step=0, drop=True)
    return xr.concat([untrained, *parts], "stage").assign_coords(stage=["untrained", *steps])


def claims(run: Run, steps: dict[str, int | None]) -> xr.Dataset:
    """Return which claims about the whole model each instrument makes at every stage.

    A value is 1 if the instrument makes the claim, 0 if it does not, and nan at a stage that is not
    reached.
    """
    at = {"untrained": 0, **steps}
    found = np.full((len(INSTRUMENTS), len(KINDS), len(at)), np.nan)
    for row, name in enumerate(INSTRUMENTS):
        instrument, result = find_instrument(name), run.result(name)
        for column, step in enumerate(at.values()):
            if step is not None:
                made = instrument.claims(result.sel(step=step, drop=True))
                found[row, :, column] = [Claim(kind, "e2") in made for kind in KINDS]
    coords = {"instrument": list(INSTRUMENTS), "kind": list(KINDS), "stage": list(at)}
    return xr.Dataset({"claimed": (("instrument", "kind", "stage"), found)}, coords)


if __name__ == "__main__":
    main(sys.argv[1:])
