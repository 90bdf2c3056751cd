"""Sweeps: from one configuration to many trials, on one device, many cores, a pod or a cluster.

    grids.py      trials in bulk: grids, zips, random points
    space.py      ranges and choices for random search, and for Optuna
    definition.py `sweep_<name>()` of a configuration, checked: trials and their names
    run.py        `run_sweep`: do what is not done
    launchers/    how trials get onto machines, a file each
    worker.py     one trial in a process of its own
    cost.py       what a sweep would cost
    directory.py  what a sweep's directory holds
    progress.py   the journal and the bar
    opened.py     `Runs`: a sweep opened for analysis
    figures.py    what its page shows

Configurations import `grids` and `space` from here: what needs JAX is loaded when it is asked for.
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
    if name == "at_random":  # as files of users may still call it
        renames.note("function", name, "random_search")
        return random_search
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
