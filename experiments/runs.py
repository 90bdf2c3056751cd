r"""The runs of all studies. Each run is trained once and used by all studies.

    python experiments/runs.py --list
    python experiments/runs.py --study=composition_phases --dry
    python experiments/runs.py --jobs=2

The first command lists every run with its state, the duration of its training, and the studies that
read it. The second command lists the runs that would be trained. The third command trains missing
runs and resumes interrupted ones; `make studies-runs` does the same.

A run is an arm of the table in `arms.py` at a scale, with a world seed and an initialization seed.
Its folder is `runs/studies/<scale>/<arm>_w<world>_i<init>`. Runs in folders that earlier versions
of the studies used are found and used there.

Smoke test:
    python experiments/runs.py --smoke --study=grokking --jobs=0 --runs=runs/smoke
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from apart import Command, run_apart
from arms import ARMS, EPYC, SMOKE_WORLDS, STUDIES, Seeds
from ml_collections import ConfigDict
from smoke import CHANGES, SMOKE, of_scale, words

from implicit_reasoning.config import (
    Flag,
    apply_overrides,
    flatten,
    load_config,
    parse_flags,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training.directory import check_same
from implicit_reasoning.training.estimate import duration
from implicit_reasoning.training.saved_states import newest

ROOT = Path("runs/studies")
SMOKE_SECONDS = 10.0

_in_training: dict[Path, Lock] = {}


@dataclass(frozen=True)
class StudyRun:
    """One run of an arm.

    Attributes:
      arm: key of `ARMS`.
      scale: `smoke`, or a scale that the file of the arm defines, such as `pocket` or `desk`.
      world: world seed.
      init: initialization seed.
      changes: additional overrides by the user of a study; empty for runs of the table.
    """

    arm: str
    scale: str
    world: int
    init: int
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Folder of the run, relative to the root of all runs."""
        return f"{self.scale}/{self.arm}_w{self.world}_i{self.init}"

    @property
    def file(self) -> str:
        """Configuration, as argument for `--config`."""
        arm = ARMS[self.arm]
        return f"configs/{arm.file}.py:{of_scale(self.scale)[0]}{arm.suffix}"

    @property
    def source(self) -> StudyRun | None:
        """The run whose last checkpoint is the start of this run; None if there is none."""
        arm = ARMS[self.arm].continues
        return StudyRun(arm, self.scale, self.world, self.init) if arm else None

    def overrides(self, root: Path = ROOT) -> dict[str, Any]:
        """Return all overrides of the configuration file, including the seeds.

        Args:
          root: root folder of all runs, which contains the run that this run continues.
        """
        arm, smaller = ARMS[self.arm], of_scale(self.scale)[1]
        seeds = {"seed": self.init, "task.world_seed": self.world}
        start = {"init_from.workdir": str(root / self.source.name)} if self.source else {}
        if self.scale == SMOKE:
            world = SMOKE_WORLDS.get(ARMS[arm.continues].file if arm.continues else arm.file, {})
            known = flatten(load_config(self.file)).keys()
            smaller = {**smaller, **{key: world[key] for key in world.keys() & known}}
        return {**arm.changes, **smaller, **dict(self.changes), **seeds, **start}

    def config(self, root: Path = ROOT) -> ConfigDict:
        """Return the configuration of the run."""
        return apply_overrides(load_config(self.file), self.overrides(root))

    @property
    def took(self) -> tuple[float, str]:
        """Seconds of training, and the hardware. The seconds are nan if no run was timed."""
        if self.scale == SMOKE:
            return SMOKE_SECONDS, EPYC
        minutes, hardware = ARMS[self.arm].took.get(self.scale, (float("nan"), "no hardware yet"))
        return 60 * minutes, hardware

    @property
    def studies(self) -> list[str]:
        """Studies that read the run."""
        return [study for study in STUDIES if self in needed(study)]


def needed(study: str, scale: str | None = None) -> list[StudyRun]:
    """Return the runs of a study at all scales, or at one scale.

    Raises:
      InputError: there is no such study.
    """
    if study not in STUDIES:
        raise InputError(f"there is no study {study!r}; there are {', '.join(STUDIES)}")
    return [
        run
        for need in STUDIES[study]
        if scale in (None, need.scale)
        for run in of_arms(need.arms, need.scale, need.seeds)
    ]


def chosen(
    study: str, scale: str, arms: Sequence[str] = (), seeds: Seeds | None = None
) -> list[StudyRun]:
    """Return the runs of a study at a scale, with arms and seeds from the table or from the user.

    Args:
      study: key of `STUDIES`.
      scale: the scale. If the table does not list this scale for the study, arms and seeds are
        taken from the first scale of the study.
      arms: arms to use instead of the arms in the table.
      seeds: seeds to use instead of the seeds in the table.

    Raises:
      InputError: there is no such arm.
    """
    needs = [need for need in STUDIES[study] if need.scale == scale] or STUDIES[study][:1]
    known = {arm for need in needs for arm in need.arms}
    others = [arm for arm in arms if arm not in known]
    parts = [([arm for arm in arms or need.arms if arm in need.arms], need) for need in needs]
    return [
        run
        for part, need in [*parts, (others, needs[0])]
        for run in of_arms(part, scale, need.seeds if seeds is None else seeds)
    ]


def of_arms(arms: Sequence[str], scale: str, seeds: Seeds) -> list[StudyRun]:
    """Return all combinations of arms and seeds.

    Arms vary fastest, so that all arms progress evenly.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise InputError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    return [StudyRun(arm, scale, *pair) for pair in seeds for arm in arms]


def all_runs(studies: Sequence[str] = ()) -> list[StudyRun]:
    """Return every run of some studies (by default all), without duplicates."""
    return list(dict.fromkeys(run for study in studies or STUDIES for run in needed(study)))


def smallest_runs(studies: Sequence[str] = ()) -> list[StudyRun]:
    """Return one run at scale `smoke` for every arm whose task has the fields of that scale."""
    arms = dict.fromkeys(run.arm for run in all_runs(studies))
    runs = [StudyRun(arm, SMOKE, 0, 0) for arm in arms]
    return [run for run in runs if CHANGES.keys() <= flatten(load_config(run.file)).keys()]


@dataclass(frozen=True)
class State:
    """State of a run on disk.

    Attributes:
      run: the run.
      root: root folder of all runs.
      folder: existing or future folder of the run.
      step: step of the newest saved state; None if the run has not started.
      steps: number of steps of the complete run.
      finished: whether no training is left.
    """

    run: StudyRun
    root: Path
    folder: Path
    step: int | None
    steps: int
    finished: bool

    def __str__(self) -> str:
        if self.finished:
            return "finished"
        return "missing" if self.step is None else f"stopped at step {self.step:,}"

    @property
    def seconds_left(self) -> float:
        """Expected duration of the remaining training on one core."""
        left = 0 if self.finished else self.steps - (self.step or 0)
        return self.run.took[0] * left / self.steps


def state_of(run: StudyRun, root: Path = ROOT) -> State:
    """Return the state and the folder of a run.

    Raises:
      InputError: the folder contains a run with a different configuration.
    """
    config, folder = run.config(root), root / run.name
    if not Layout(folder).config.exists():
        earlier = (path for path in _earlier(run, root) if Layout(path).config.exists())
        found = next((path for path in earlier if not _refusal(path, config)), None)
        if found is None:
            return State(run, root, folder, None, config.steps, False)
        folder = found
    if refusal := _refusal(folder, config):
        raise InputError(f"{run.name} of the table of runs: {refusal}")
    opened = Run(folder)
    finished = config.steps in opened.steps and opened.files.first_correct.exists()
    saved = newest(opened.files)
    return State(run, root, folder, saved.step if saved else 0, config.steps, finished)


def _refusal(folder: Path, config: ConfigDict) -> str:
    """Return the reason why training cannot continue in a folder; empty if it can."""
    try:
        check_same(Layout(folder), config)
    except InputError as error:
        return str(error).replace("--workdir", "--runs")  # the flag of studies
    return ""


def _earlier(run: StudyRun, root: Path) -> list[Path]:
    """Return the folders in which earlier versions of studies and commands saved such a run."""
    seeds = f"{run.scale}/{run.arm}_{run.init}"
    same_seed, composition = run.world == run.init, run.arm == "composition"
    names = [root / seeds] if same_seed else []
    names += [root / f"seed_{run.init}"] if same_seed and composition else []
    if root != ROOT:
        return names
    above = root.parent
    names.append(above / "composition_phases" / run.name)
    if same_seed:
        names.append(above / "worlds" / seeds)
    if same_seed and composition:
        folder = {"pocket": "3"}.get(run.scale, run.scale)
        names.append(above / folder / f"seed_{run.init}")
    if (run.world, run.init) == (0, 0):  # runs of `make demo` and of the command `score`
        names.append(above / run.scale if composition else above / "known" / run.arm)
    return names


def train_missing(state: State, command: Command, progress: bool = False) -> Run:
    """Train a missing run or resume an interrupted run, and return the run.

    If the run continues another run, that run is trained first. Jobs that need the same run wait
    for each other.

    Args:
      state: state of the run.
      command: function that runs a command of the package, as `run_apart` passes it to jobs.
      progress: whether to show a progress bar.
    """
    if state.finished:
        return Run(state.folder)
    if state.run.source:
        train_missing(state_of(state.run.source, state.root), command, progress)
    with _in_training.setdefault(state.folder, Lock()):
        if not state_of(state.run, state.root).finished:  # by another job
            command(training(state, progress))
    return Run(state.folder)


def training(state: State, progress: bool = False) -> list[str]:
    """Return the command that trains or resumes a run."""
    run = state.run
    writers = {"writers.progress": str(progress).lower(), "writers.tensorboard": "false"}
    changes = words(run.overrides(state.root) | writers)
    return ["train", f"--config={run.file}", f"--workdir={state.folder}", *changes]


def restore(wanted: Sequence[StudyRun], root: Path = ROOT, jobs: int = 2) -> list[Run]:
    """Train missing runs, resume interrupted runs, and open all of them.

    Args:
      wanted: the runs.
      root: root folder of all runs.
      jobs: number of runs trained in parallel, each with a share of the cores; 0 trains in this
        process.

    Returns:
      The runs, in the order of `wanted`.

    Raises:
      InputError: a folder contains a run with a different configuration. No run was trained.
    """
    states = [state_of(run, root) for run in wanted]

    def job(state: State, command: Command) -> None:
        train_missing(state, command, progress=jobs == 0)

    missing = {state.run.name: partial(job, state) for state in states if not state.finished}
    run_apart(missing, jobs, root / "compiled")
    return [Run(state.folder) for state in states]


FLAGS = {
    "list": False,
    "dry": False,
    "smoke": False,
    "study": Flag(many=True, default=()),
    "jobs": 2,
    "runs": Flag(kind=Path, default=ROOT),
}


def main(argv: list[str]) -> None:
    """List runs, or train missing runs."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("the runs of studies take no overrides: the table says how they are made")
    runs = smallest_runs(flags["study"]) if flags["smoke"] else all_runs(flags["study"])
    states = [state_of(run, flags["runs"]) for run in runs]
    left = [state for state in states if not state.finished]
    for line in table(states if flags["list"] else left):
        print(line)
    print(summary(states, max(flags["jobs"], 1)), flush=True)
    if not (flags["list"] or flags["dry"]):
        restore(runs, flags["runs"], flags["jobs"])


def table(states: Sequence[State]) -> list[str]:
    """Return one line per run, with name, state, expected duration, hardware and studies."""
    rows = []
    for state in states:
        seconds, hardware = state.run.took
        time = f"{duration(seconds)} on {hardware}" if seconds == seconds else "not timed yet"
        rows.append((state.run.name, str(state), time, ", ".join(state.run.studies)))
    widths = [max(map(len, column)) for column in itertools.islice(zip(*rows, strict=True), 3)]
    return ["  ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows]


def summary(states: Sequence[State], jobs: int) -> str:
    """Summarize the number of runs by state, and the remaining time."""
    finished = sum(state.finished for state in states)
    missing = sum(state.step is None for state in states)
    stopped = len(states) - finished - missing
    counts = f"{len(states)} runs: {finished} finished, {stopped} stopped, {missing} missing"
    lefts = [left for state in states if (left := state.seconds_left) == left]
    if finished == len(states):
        return counts
    # Parallel training takes at least as long as the longest run.
    expected = max(sum(lefts) / jobs, max(lefts, default=0.0))
    untimed = " without those that are not timed yet" * (len(lefts) < len(states))
    return f"{counts}; {duration(expected)} to expect with {jobs} at a time{untimed}"


if __name__ == "__main__":
    main(sys.argv[1:])
