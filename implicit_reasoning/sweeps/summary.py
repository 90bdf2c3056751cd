"""HTML that shows a sweep in a notebook, made without opening the runs of the sweep."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from implicit_reasoning.formatting import attempt, card, fields, listed, plural, table

if TYPE_CHECKING:
    from implicit_reasoning.sweeps.opened import Runs


def runs_html(runs: Runs) -> str:
    """Return the HTML of a sweep: its varied fields, the number of trials by state, and a table.

    The table lists the first trials.
    """
    task = runs.sweep.base.task.name
    about = {"task": f"{task}, {runs.sweep.base.steps:,} steps"}
    for key in runs.sweep.keys:
        values = list(dict.fromkeys(str(runs.value(name, key)) for name in runs.sweep.trials))
        about[key] = f"{listed(values)} ({plural(len(values), 'value')})"
    about["trials"] = attempt(lambda: _states(runs))
    about["opened"] = f"{len(runs.names):,} started trials are in this object"
    return card("Runs", runs.files.workdir, fields(about), attempt(lambda: _trials(runs)))


def _states(runs: Runs) -> str:
    counts = collections.Counter(status.state for status in runs.statuses.values())
    return ", ".join(f"{count:,} {state}" for state, count in counts.most_common())


def _trials(runs: Runs) -> str:
    statuses = runs.statuses
    explained = any(status.why for status in statuses.values())
    rows = [
        (name, status.state, status.step, *([status.why] if explained else []))
        for name, status in statuses.items()
    ]
    return table(("trial", "state", "step", *(["reason"] if explained else [])), rows)
