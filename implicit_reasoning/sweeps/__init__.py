"""Sweeps: training of many trials of one configuration, on one or many devices or machines.

A trial is one run of the configuration, with overrides of some fields.

    grids.py      sets of trials: grids, zipped lists, random points
    space.py      ranges and choices for random search and Optuna
    definition.py a validated sweep: the trials from `sweep_<name>()`, and their names
    run.py        `run_sweep`: trains the trials that are not done
    search.py     adaptive search with Optuna
    launchers/    one module for each way to run trials
    worker.py     one trial in a separate process
    cost.py       cost estimate of a sweep
    directory.py  files in the directory of a sweep
    progress.py   the progress bar, and events for the journal
    opened.py     `Runs`: a sweep opened for analysis
    summary.py    the HTML that shows `Runs` in a notebook
    figures.py    figures for the report of a sweep

Configurations import `grids` and `space` from this package. Modules that need JAX are therefore
imported lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from implicit_reasoning import renames
from implicit_reasoning.sweeps.grids import grid, random_search, times, zipped
from implicit_reasoning.sweeps.space import Choice, Integer, Real, Space

if TYPE_CHECKING:
    from implicit_reasoning.sweeps.definition import Sweep, define, make_sweep
    from implicit_reasoning.sweeps.directory import Status, SweepLayout
    from implicit_reasoning.sweeps.opened import Runs
    from implicit_reasoning.sweeps.run import LAUNCHERS, SweepInterrupted, run_sweep

__all__ = [
    "LAUNCHERS",
    "Choice",
    "Integer",
    "Real",
    "Runs",
    "Space",
    "Status",
    "Sweep",
    "SweepInterrupted",
    "SweepLayout",
    "define",
    "grid",
    "make_sweep",
    "random_search",
    "run_sweep",
    "times",
    "zipped",
]

_WHERE = {
    "Runs": "opened",
    **dict.fromkeys(("Sweep", "define", "make_sweep"), "definition"),
    **dict.fromkeys(("Status", "SweepLayout"), "directory"),
    **dict.fromkeys(("LAUNCHERS", "SweepInterrupted", "run_sweep"), "run"),
}


def __getattr__(name: str) -> Any:
    if name == "at_random":  # the former name, which users' files may still contain
        renames.note("function", name, "random_search")
        return random_search
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
