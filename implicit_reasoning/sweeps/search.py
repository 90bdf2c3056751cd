"""Adaptive search by Optuna, whichever launcher trains: ask for trials, train them, tell.

A configuration's file has `space_<name>()`, which gives a `Space`. Trials come in batches: those of
one batch are asked for together, so that they can be a population. With successive halving a batch
is trained to the first rung, the best half of it goes on to the next, and so on; as trials resume
bit for bit, a rung is a `stop_at`.

What is known is in `optuna.log` of the sweep's directory: the same call goes on after any stop, and
asks for what it would have asked for without.

Sources: Optuna 5, "Ask-and-tell interface"; Jamieson and Talwalkar 2016, "Non-stochastic best arm
identification and hyperparameter optimization" (successive halving, here batch by batch).
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.config import apply_overrides, choose, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import check_path, read_metrics
from implicit_reasoning.sweeps.definition import functions, make_sweep
from implicit_reasoning.sweeps.directory import (
    DONE,
    PRUNED,
    Journal,
    Status,
    SweepLayout,
    exclusive,
    load,
    read_journal,
)
from implicit_reasoning.sweeps.grids import Overrides
from implicit_reasoning.sweeps.launchers.base import need
from implicit_reasoning.sweeps.run import run_sweep
from implicit_reasoning.sweeps.space import Space

_CHOSEN, _BATCH, _STUDY = "trial", "batch", "search"


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Attributes:
      metric: of `metrics.jsonl`, its last value; the more the better, or with `minimize` the less.
      count: trials in all.
      at_once: trials of a batch.
      rungs: steps at which the worst of a batch are dropped, ascending; none: all go to the end.
      keep: the share of a batch that goes on from a rung.
      seed: of Optuna's sampler.
      minimize: look for a small metric.
    """

    metric: str = "accuracy/test_ii"
    count: int = 32
    at_once: int = 8
    rungs: tuple[int, ...] = ()
    keep: float = 0.5
    seed: int = 0
    minimize: bool = False

    def __post_init__(self) -> None:
        if min(self.count, self.at_once) < 1:
            raise InputError(f"a search needs at least one trial, and one at once, not {self}")
        if list(self.rungs) != sorted(set(self.rungs)) or (self.rungs and self.rungs[0] < 1):
            raise InputError(f"rungs are ascending steps from 1 on, not {self.rungs}")
        if not 0 < self.keep < 1:
            raise InputError(f"keep is a share between 0 and 1, not {self.keep}")


def find_space(
    spec: str, name: str, overrides: Overrides | None = None
) -> tuple[ConfigDict, Space]:
    """The base configuration, and `space_<name>()` of its file."""
    base = apply_overrides(load_config(spec), overrides or {})
    space = choose(name, functions(spec, "space_"))()
    if not isinstance(space, Mapping) or not all(hasattr(d, "suggest") for d in space.values()):
        raise InputError(f"space_{name}() of {spec} gave {space!r}, which is no space")
    return base, space


def search(
    base: ConfigDict,
    space: Space,
    workdir: str | os.PathLike[str],
    what: Search,
    *,
    launcher: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Status]:
    """Search a space, or go on with a search.

    Args:
      base: what is common to all trials.
      space: fields, and where their values come from.
      workdir: of the sweep that the trials make.
      what: is searched for.
      launcher: as for `run_sweep`.
      options: of the launcher.

    Returns:
      What is known of every trial.

    Raises:
      InputError: Optuna is not installed, trials have no such metric, or as `run_sweep`.
      SweepInterrupted: a signal came; the same call goes on.
    """
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise need("search", "optuna", error) from None
    files = SweepLayout(Path(workdir))
    check_path(files.workdir)
    with exclusive(files):
        study = _study(optuna, files, what)
    while True:
        batch = _open_trials(optuna, study) or _ask(optuna, study, space, what)
        if not batch:
            return _statuses(files)
        sweep = make_sweep(base, _distinct([trial.user_attrs[_CHOSEN] for trial in batch]))
        names = {_key(overrides): name for name, overrides in sweep.trials.items()}
        named = {trial: names[_key(_parsed(base, trial))] for trial in batch}
        for rung in (*what.rungs, None):
            going = set(named.values())
            statuses = run_sweep(
                sweep, workdir, launcher=launcher, stop_at=rung, only=going, options=options
            )
            named = _tell(optuna, study, files, named, statuses, what, rung)
            if not named:
                break


def _study(optuna: Any, files: SweepLayout, what: Search) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(files.workdir / "optuna.log"))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        pruner=optuna.pruners.NopPruner(),  # a batch is ranked whole, see `_tell`
        study_name=_STUDY,
        direction="minimize" if what.minimize else "maximize",
        load_if_exists=True,
    )


def _ask(optuna: Any, study: Any, space: Space, what: Search) -> list[Any]:
    """The next batch; empty when there were as many trials as wanted."""
    there = len(study.trials)
    # A sampler for each batch, of a seed of its own: after a stop it chooses what it would have.
    seed = int(np.random.SeedSequence([what.seed, there]).generate_state(1)[0])
    # With liars, as those of a batch are asked for before anything is known of the others.
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    batch = []
    for _ in range(min(what.at_once, what.count - there)):
        trial = study.ask()
        chosen = {key: distribution.suggest(trial, key) for key, distribution in space.items()}
        trial.set_user_attr(_BATCH, there)
        trial.set_user_attr(_CHOSEN, chosen)
        batch.append(trial)
    return batch


def _open_trials(optuna: Any, study: Any) -> list[Any]:
    """Trials that were asked for by a start that did not get to tell."""
    running = optuna.trial.TrialState.RUNNING
    frozen = study.get_trials(deepcopy=False, states=(running,))
    known = [each for each in frozen if _CHOSEN in each.user_attrs]
    return [optuna.trial.Trial(study, each._trial_id) for each in known]


def _parsed(base: ConfigDict, trial: Any) -> Overrides:
    return next(iter(make_sweep(base, [trial.user_attrs[_CHOSEN]]).trials.values()))


def _key(overrides: Overrides) -> tuple[Any, ...]:
    return tuple(sorted(overrides.items()))


def _distinct(trials: Sequence[Overrides]) -> list[Overrides]:
    """A sampler may choose a point twice: it is trained once."""
    return list({_key(overrides): overrides for overrides in trials}.values())


def _tell(
    optuna: Any,
    study: Any,
    files: SweepLayout,
    named: Mapping[Any, str],
    statuses: Mapping[str, Status],
    what: Search,
    rung: int | None,
) -> dict[Any, str]:
    """Say what came out; the trials that are to go on."""
    values: dict[Any, float] = {}
    for trial, name in named.items():
        if statuses[name].state in (DONE, PRUNED):  # the latter by a start that did not get to tell
            values[trial] = last_value(files, name, what.metric)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    if rung is None:
        for trial, value in values.items():
            study.tell(trial, value)
        return {}
    reported = {each.number for each in study.get_trials() if rung in each.intermediate_values}
    for trial, value in values.items():
        if trial.number not in reported:  # by a start that was stopped then
            trial.report(value, rung)
    best = _best(study, {trial.user_attrs[_BATCH] for trial in values}, rung, what)
    going = {trial: named[trial] for trial in values if trial.number in best}
    dropped = [trial for trial in values if trial.number not in best]
    with exclusive(files):
        journal = Journal(files)
        for name in {named[trial] for trial in dropped} - set(going.values()):
            journal.note(name, PRUNED, why=f"among the worst at step {rung:,}")
        journal.close()
    for trial in dropped:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return going


def _best(study: Any, batches: set[int], rung: int, what: Search) -> set[int]:
    """Numbers of the best of a batch at a rung.

    Also of those that a start which was stopped has dropped already: what remains is not halved
    again.
    """
    batch = [
        each
        for each in study.get_trials(deepcopy=False)
        if each.user_attrs.get(_BATCH) in batches and rung in each.intermediate_values
    ]
    batch.sort(key=lambda each: each.intermediate_values[rung], reverse=not what.minimize)
    return {each.number for each in batch[: math.ceil(what.keep * len(batch))]}


def _statuses(files: SweepLayout) -> dict[str, Status]:
    known = read_journal(files)
    return {trial: known.get(trial, Status()) for trial in load(files).trials}


def last_value(files: SweepLayout, trial: str, metric: str) -> float:
    """The last value of a metric that a trial has written; an `InputError` if there is none."""
    rows = read_metrics(files.trial(trial).metrics)
    choose(metric, {name: name for row in rows for name in row})
    return next(float(row[metric]) for row in reversed(rows) if metric in row)
