"""Adaptive search by Optuna, whichever launcher trains: ask for trials, train them, tell.

A configuration's file has `space_<name>()`, which gives a `Space`. Trials come in batches: those of
one batch are asked for together, so that they can be a population. With successive halving a batch
is trained to the first rung, what Optuna's pruner does not want is dropped, the others go on to the
next; as trials resume bit for bit, a rung is a `stop_at`.

What is known is in `optuna.log` of the sweep's directory: the same call goes on after any stop.

Sources: Optuna 5, "Ask-and-tell interface"; Li et al. 2020, "A system for massively parallel
hyperparameter tuning" (asynchronous successive halving, which the pruner does).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import apply_overrides, choose, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import read_metrics
from implicit_reasoning.sweeps.definition import functions, make_sweep
from implicit_reasoning.sweeps.directory import PRUNED, Journal, Status, SweepLayout, exclusive
from implicit_reasoning.sweeps.grids import Overrides
from implicit_reasoning.sweeps.launchers.base import need
from implicit_reasoning.sweeps.run import run_sweep
from implicit_reasoning.sweeps.space import Space

_NAME, _STUDY = "trial", "search"


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Attributes:
      metric: of `metrics.jsonl`, its last value; the more the better, or with `minimize` the less.
      count: trials in all.
      at_once: trials of a batch.
      rungs: steps at which the worst are dropped, ascending; none: all are trained to the end.
      seed: of Optuna's sampler.
      minimize: look for a small metric.
    """

    metric: str = "accuracy/test_ii"
    count: int = 32
    at_once: int = 8
    rungs: tuple[int, ...] = ()
    seed: int = 0
    minimize: bool = False

    def __post_init__(self) -> None:
        if min(self.count, self.at_once) < 1:
            raise InputError(f"a search needs at least one trial, and one at once, not {self}")
        if list(self.rungs) != sorted(set(self.rungs)) or (self.rungs and self.rungs[0] < 1):
            raise InputError(f"rungs are ascending steps from 1 on, not {self.rungs}")


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
      InputError: Optuna is not installed, or as `run_sweep`.
      SweepInterrupted: a signal came; the same call goes on.
    """
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise need("search", "optuna", error) from None
    files = SweepLayout(Path(workdir))
    with exclusive(files):
        study = _study(optuna, files, what)
    statuses: dict[str, Status] = {}
    while True:
        batch = _open_trials(optuna, study)
        missing = min(what.at_once, what.count - len(study.trials))
        if not batch:
            batch = [_ask(study, space) for _ in range(missing)]
        if not batch:
            return statuses
        sweep = make_sweep(base, _distinct([trial.user_attrs[_NAME] for trial in batch]))
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
    pruner = (
        optuna.pruners.SuccessiveHalvingPruner(min_resource=what.rungs[0])
        if what.rungs
        else optuna.pruners.NopPruner()
    )
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=what.seed),
        pruner=pruner,
        study_name=_STUDY,
        direction="minimize" if what.minimize else "maximize",
        load_if_exists=True,
    )


def _ask(study: Any, space: Space) -> Any:
    trial = study.ask()
    chosen = {key: distribution.suggest(trial, key) for key, distribution in space.items()}
    trial.set_user_attr(_NAME, chosen)
    return trial


def _open_trials(optuna: Any, study: Any) -> list[Any]:
    """Trials that were asked for by a start that did not get to tell."""
    running = optuna.trial.TrialState.RUNNING
    frozen = study.get_trials(deepcopy=False, states=(running,))
    known = [each for each in frozen if _NAME in each.user_attrs]
    return [optuna.trial.Trial(study, each._trial_id) for each in known]


def _parsed(base: ConfigDict, trial: Any) -> Overrides:
    return next(iter(make_sweep(base, [trial.user_attrs[_NAME]]).trials.values()))


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
    going: dict[Any, str] = {}
    dropped: list[str] = []
    failed = optuna.trial.TrialState.FAIL
    for trial, name in named.items():
        value = last_value(files, name, what.metric)
        if statuses[name].state not in ("done",) or value is None:
            study.tell(trial, state=failed)
        elif rung is None:
            study.tell(trial, value)
        else:
            trial.report(value, rung)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                dropped.append(name)
            else:
                going[trial] = name
    if dropped:
        with exclusive(files):
            journal = Journal(files)
            for name in set(dropped) - set(going.values()):
                journal.note(name, PRUNED, why=f"among the worst at step {rung:,}")
            journal.close()
    return going


def last_value(files: SweepLayout, trial: str, metric: str) -> float | None:
    """The last value of a metric that a trial has written."""
    rows = read_metrics(files.trial(trial).metrics)
    return next((float(row[metric]) for row in reversed(rows) if metric in row), None)
