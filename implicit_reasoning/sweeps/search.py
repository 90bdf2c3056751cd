"""Adaptive search by Optuna, whichever launcher trains: ask for trials, train them, tell.

A configuration's file has `space_<name>()`, which gives a `Space`. Trials come in batches: those of
one batch are asked for together, so that they can be a population. With successive halving a batch
is trained to the first rung, the best half of it goes on to the next, and so on; as trials resume
bit for bit, a rung is a `stop_at`.

What is known is in `optuna.log` of the sweep's directory, with the metric, its direction and the
space: the same call goes on after any stop, and asks for what it would have asked for without.
Another metric, direction or space is refused.

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
    space = choose(name, functions_with_prefix(spec, "space_"))()
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
      InputError: Optuna is not installed, the directory holds a search for something else, trials
        have no such metric, or as `run_sweep`.
      SweepInterrupted: a signal came; the same call goes on.
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
    """The study of a directory, which searches for the same as before."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(files.workdir / "optuna.log"))
    # A batch is ranked whole, see `_tell`, so that nothing is pruned by Optuna.
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
        stored = {**stored, "metric": what.metric}  # nobody has been told a value yet
    if changes := _changes(stored, wanted):
        raise InputError(
            f"{files.workdir} holds a search for something else ({listed(changes)}); go on with "
            "the old one, or choose another --workdir"
        )
    if study.user_attrs.get(_DEFINITION) != wanted:
        study.set_user_attr(_DEFINITION, wanted)
    return study


def _as_told(study: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What a study from before definitions were stored searched for, as far as its trials tell."""
    space = dict(wanted["space"])
    for trial in study.get_trials(deepcopy=False):
        for key, given in trial.distributions.items():
            kind = {"FloatDistribution": "Real", "IntDistribution": "Integer"}.get(
                type(given).__name__, "Choice"
            )
            if space.get(key, {}).get("kind", kind) not in ("Real", "Integer", "Choice"):
                continue  # of a kind of the user's own
            own = {"options": list(given.choices)} if kind == "Choice" else _bounds(given)
            space[key] = json.loads(json.dumps({"kind": kind, **own}))
        if trial.distributions:
            break
    return {**wanted, "minimize": study.direction.name == "MINIMIZE", "space": space}


def _bounds(given: Any) -> dict[str, Any]:
    """The bounds of an Optuna distribution."""
    return {"low": given.low, "high": given.high, "log": given.log}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two definitions, by name."""
    changes = [Change(key, old[key], new[key]) for key in ("metric", "minimize")]
    keys = sorted({*old["space"], *new["space"]})
    changes += [
        Change(key, old["space"].get(key, ABSENT), new["space"].get(key, ABSENT)) for key in keys
    ]
    return [change for change in changes if change.old != change.new]


def _batch(optuna: Any, study: Any, space: Space, what: Search) -> list[Any]:
    """The trials to go on with: those of a start that did not get to tell, or the next batch.

    A trial and what was chosen for it are written in one step. A start that was killed between two
    trials of a batch leaves fewer than belong to it; the same ones are chosen again, and the rest
    is added. Empty when there were as many trials as wanted.
    """
    for frozen in _running(optuna, study):
        if _CHOSEN not in frozen.user_attrs:  # of a start of an older version
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
    """The next trials after some others, as running ones; the study is not changed."""
    # A sampler for each batch, of a seed of its own: after a stop it chooses what it would have.
    seed = int(np.random.SeedSequence([what.seed, len(before)]).generate_state(1)[0])
    # With liars, as those of a batch are asked for before anything is known of the others.
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
