"""Adaptive search: Optuna chooses trials, and a launcher trains the trials.

The configuration file defines `space_<name>()`, which returns a `Space`. Optuna samples trials in
batches, and a batch can be trained as one population. With successive halving, a batch is trained
up to a first step, called a rung. The best trials of the batch are trained up to the second rung,
and so on. A rung is a call of `run_sweep` with `stop_at`, because a resumed trial is bit-for-bit
identical to an uninterrupted trial.

The file `optuna.log` in the directory of the sweep has the state of the search, the metric, the
direction (minimize or maximize) and the space. After an interruption, the same call continues the
search and samples the same trials as an uninterrupted search. A call is rejected if its metric,
direction or space differs from the file.

Sources: Optuna 5, "Ask-and-tell interface"; Jamieson and Talwalkar 2016, "Non-stochastic best arm
identification and hyperparameter optimization" (successive halving, here batch by batch).
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.config import (
    ABSENT,
    Change,
    apply_overrides,
    choose,
    listed,
    load_config,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs import check_path
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.sweeps.definition import functions_with_prefix, make_sweep
from implicit_reasoning.sweeps.directory import (
    DONE,
    PRUNED,
    Journal,
    Status,
    SweepLayout,
    drop_torn_line,
    exclusive,
    load,
    read_journal,
)
from implicit_reasoning.sweeps.grids import Overrides
from implicit_reasoning.sweeps.launchers.base import missing_package
from implicit_reasoning.sweeps.run import run_sweep
from implicit_reasoning.sweeps.space import Space, described

_CHOSEN, _BATCH, _SIZE, _STUDY = "trial", "batch", "of", "search"
_DEFINITION, _VERSION = "definition", 1


@dataclass(frozen=True)
class Search:
    """Objective and size of a search.

    Attributes:
      metric: column of `metrics.jsonl` whose last value is maximized.
      count: total number of trials.
      at_once: number of trials per batch.
      rungs: ascending training steps at which the worst trials of a batch are dropped. If `rungs`
        is empty, all trials are trained to the end.
      keep: fraction of the trials of a batch that continue after a rung.
      seed: seed of Optuna's sampler.
      minimize: whether to minimize the metric instead of maximizing it.
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
            raise InputError(
                f"count and at_once must be at least 1, not {self.count} and {self.at_once}"
            )
        if list(self.rungs) != sorted(set(self.rungs)) or (self.rungs and self.rungs[0] < 1):
            raise InputError(f"rungs must be ascending steps of at least 1; it is {self.rungs}")
        if not 0 < self.keep < 1:
            raise InputError(f"keep is {self.keep}; it must be greater than 0 and less than 1")


def find_space(
    spec: str, name: str, overrides: Overrides | None = None
) -> tuple[ConfigDict, Space]:
    """Return the base configuration and the search space that a configuration file defines.

    Args:
      spec: the configuration, as for `load_config`.
      name: name of the search. The function `space_<name>()` returns the search space.
      overrides: overrides of the base configuration.

    Raises:
      InputError: the function does not exist, or does not return a space.
    """
    base = apply_overrides(load_config(spec), overrides or {})
    space = choose(name, functions_with_prefix(spec, "space_"))()
    if not isinstance(space, Mapping) or not all(hasattr(d, "suggest") for d in space.values()):
        raise InputError(
            f"space_{name}() of {spec} returned {space!r}; it must return a dict that maps fields "
            "to distributions, such as Real, Integer or Choice"
        )
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
    """Start or continue a search.

    Args:
      base: the configuration that all trials share.
      space: the distribution of each field, by dotted name.
      workdir: directory of the sweep to which the search adds its trials.
      what: objective and size of the search.
      launcher: as for `run_sweep`.
      options: options of the launcher.

    Returns:
      The status of every trial, by trial name.

    Raises:
      InputError: Optuna is not installed, the directory contains a search with a different metric,
        direction or space, the trials do not have the metric, or `run_sweep` rejects its input.
      SweepInterrupted: a signal interrupted the search. The same call continues the search.
    """
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise missing_package("search", "optuna", error) from None
    files = SweepLayout(local_folder(workdir, "workdir"))
    check_path(files.workdir)
    with exclusive(files):
        drop_torn_line(files.workdir / "optuna.log")
        study = _study(optuna, files, space, what)
    while True:
        with exclusive(files):
            batch = _batch(optuna, study, space, what)
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


def _study(optuna: Any, files: SweepLayout, space: Space, what: Search) -> Any:
    """Return the study of a directory, after checking that the search has not changed.

    Raises:
      InputError: the directory contains a search with another metric, direction or space.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(files.workdir / "optuna.log"))
    # `_tell` ranks complete batches, so Optuna must not prune trials.
    common = {"storage": optuna.storages.JournalStorage(backend), "study_name": _STUDY}
    common["pruner"] = optuna.pruners.NopPruner()
    try:
        study = optuna.load_study(**common)
    except KeyError:
        study = optuna.create_study(**common, direction="minimize" if what.minimize else "maximize")
    wanted = {
        "format_version": _VERSION,
        "metric": what.metric,
        "minimize": what.minimize,
        "space": {key: described(distribution) for key, distribution in space.items()},
    }
    stored = study.user_attrs.get(_DEFINITION) or _as_told(study, wanted)
    if not any(trial.intermediate_values or trial.values for trial in study.trials):
        # No value has been reported yet, so the metric may change.
        stored = {**stored, "metric": what.metric}
    if changes := _changes(stored, wanted):
        raise InputError(
            f"{files.workdir} contains a search that differs from the requested search "
            f"({listed(changes)}); use the metric, direction and space of the old search, "
            "or choose another --workdir"
        )
    if study.user_attrs.get(_DEFINITION) != wanted:
        study.set_user_attr(_DEFINITION, wanted)
    return study


def _as_told(study: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the definition of a study from its trials; older versions did not store it."""
    space = dict(wanted["space"])
    for trial in study.get_trials(deepcopy=False):
        for key, given in trial.distributions.items():
            kind = {"FloatDistribution": "Real", "IntDistribution": "Integer"}.get(
                type(given).__name__, "Choice"
            )
            if space.get(key, {}).get("kind", kind) not in ("Real", "Integer", "Choice"):
                continue  # a user-defined distribution
            own = {"options": list(given.choices)} if kind == "Choice" else _bounds(given)
            space[key] = json.loads(json.dumps({"kind": kind, **own}))
        if trial.distributions:
            break
    return {**wanted, "minimize": study.direction.name == "MINIMIZE", "space": space}


def _bounds(given: Any) -> dict[str, Any]:
    """Return the bounds of an Optuna distribution."""
    return {"low": given.low, "high": given.high, "log": given.log}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the metric, the direction and the fields in which two definitions differ."""
    changes = [Change(key, old[key], new[key]) for key in ("metric", "minimize")]
    keys = sorted({*old["space"], *new["space"]})
    changes += [
        Change(key, old["space"].get(key, ABSENT), new["space"].get(key, ABSENT)) for key in keys
    ]
    return [change for change in changes if change.old != change.new]


def _batch(optuna: Any, study: Any, space: Space, what: Search) -> list[Any]:
    """Return the trials that an interrupted call did not finish, or else the next batch.

    If a call was killed while it wrote a batch, some trials of the batch are missing. The values of
    the whole batch are then sampled again, which gives the same values, and the missing trials are
    added. The list is empty when the search has the requested number of trials.
    """
    for frozen in _running(optuna, study):
        if _CHOSEN not in frozen.user_attrs:  # written by an older version
            study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    known = [each for each in trials if _CHOSEN in each.user_attrs]
    last = known[-1].user_attrs if known else {}
    begun = [each for each in known if each.user_attrs[_BATCH] == last[_BATCH]]
    if not _running(optuna, study) or len(begun) < last.get(_SIZE, 0):
        complete = not begun or len(begun) >= last.get(_SIZE, 0)
        there = len(trials) if complete else last[_BATCH]
        size = min(what.at_once, what.count - len(known)) if complete else last[_SIZE]
        chosen = _choose(optuna, study, trials[:there], space, what, size)
        for trial in chosen if complete else chosen[len(begun) :]:
            trial.user_attrs.update({_BATCH: there, _SIZE: size})
            study.add_trial(trial)
    return [optuna.trial.Trial(study, each._trial_id) for each in _running(optuna, study)]


def _choose(
    optuna: Any, study: Any, before: Sequence[Any], space: Space, what: Search, size: int
) -> list[Any]:
    """Sample the next batch, given the earlier trials `before`. The study is not modified.

    Returns:
      Optuna trials in state RUNNING.
    """
    # Each batch has a sampler with its own seed, so that a resumed search samples the same values.
    seed = int(np.random.SeedSequence([what.seed, len(before)]).generate_state(1)[0])
    # `constant_liar` penalizes points near unfinished trials, since no result of the batch is known
    # yet.
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    draft = optuna.create_study(sampler=sampler, direction=study.direction)
    draft.add_trials(before)
    made = []
    for _ in range(max(size, 0)):
        trial = draft.ask()
        chosen = {key: distribution.suggest(trial, key) for key, distribution in space.items()}
        made.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={_CHOSEN: chosen},
            )
        )
    return made


def _running(optuna: Any, study: Any) -> list[Any]:
    return list(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)))


def _parsed(base: ConfigDict, trial: Any) -> Overrides:
    return next(iter(make_sweep(base, [trial.user_attrs[_CHOSEN]]).trials.values()))


def _key(overrides: Overrides) -> tuple[Any, ...]:
    return tuple(sorted(overrides.items()))


def _distinct(trials: Sequence[Overrides]) -> list[Overrides]:
    """Remove duplicate trials, because a sampler can choose the same point twice."""
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
    """Report the results at a rung, and return the trials that continue.

    `rung` is None at the end of training.
    """
    values: dict[Any, float] = {}
    for trial, name in named.items():
        # An interrupted call may already have marked trials as pruned.
        if statuses[name].state in (DONE, PRUNED):
            values[trial] = last_value(files, name, what.metric)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    if rung is None:
        for trial, value in values.items():
            study.tell(trial, value)
        return {}
    reported = {each.number for each in study.get_trials() if rung in each.intermediate_values}
    for trial, value in values.items():
        if trial.number not in reported:  # an interrupted call may already have reported the value
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
    """Return the Optuna numbers of the best trials of a batch at a rung.

    The ranking includes the trials that an interrupted call has already dropped. Otherwise, a
    resumed search would halve the batch a second time.
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
    """Return the last logged value of a metric of a trial.

    Raises:
      InputError: the trial does not have this metric.
    """
    rows = read_metrics(files.trial(trial).metrics)
    choose(metric, {name: name for row in rows for name in row})
    return next(float(row[metric]) for row in reversed(rows) if metric in row)
