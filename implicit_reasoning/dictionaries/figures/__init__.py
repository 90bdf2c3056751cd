"""Draw the figures of a run's dictionaries for the report of the run.

pareto.py     draws reconstruction quality against the number of active features
baselines.py  compares dictionaries with baselines
matches.py    draws which values features represent, and how features of bridges change
use.py        draws whether answers change as predicted when features are changed
training.py   draws births, persistence and superposition of features over training
"""

from __future__ import annotations

import contextlib

from implicit_reasoning.dictionaries.api import find_instrument
from implicit_reasoning.dictionaries.figures.baselines import baselines
from implicit_reasoning.dictionaries.figures.matches import bridges, matches
from implicit_reasoning.dictionaries.figures.pareto import compared, pareto
from implicit_reasoning.dictionaries.figures.training import superposition, training
from implicit_reasoning.dictionaries.figures.use import uses
from implicit_reasoning.dictionaries.results import TABLE, open_measured
from implicit_reasoning.dictionaries.store import Files, names
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.runs import Run, load_arrays

__all__ = ["figures"]


def figures(run: Run) -> list[Figure]:
    """Draw the figures of all measured sets of dictionaries, and of user-defined instruments."""
    tables = {name: open_measured(run, name) for name in names(run)}
    results = {name: table for name, table in tables.items() if table is not None}
    makers = (pareto, baselines, matches, bridges, uses, training, superposition)
    drawn = [make(name, result) for name, result in results.items() for make in makers]
    drawn.append(compared(results))
    return [figure for figure in drawn if figure is not None] + _own(run)


def _own(run: Run) -> list[Figure]:
    """Draw the figures of users' instruments; an instrument that cannot be imported is skipped."""
    drawn: list[Figure] = []
    for name in names(run):
        for path in Files.of(run, name).results:
            if path.stem not in TABLE:
                result = load_arrays(path)
                with contextlib.suppress(InputError):
                    instrument = find_instrument(result.attrs["found_at"])
                    if instrument.version == result.attrs["version"]:
                        drawn += instrument.figures(result)
    return drawn
