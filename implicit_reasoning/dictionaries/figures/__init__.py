"""Figures of a run's dictionaries, for the report.

pareto.py     how much is kept, by how few features
beaten.py     dictionaries beside baselines
matches.py    what features stand for, and how bridges' features fare
use.py        whether answers follow
training.py   features from checkpoint to checkpoint
"""

from __future__ import annotations

from implicit_reasoning.dictionaries.figures.beaten import beaten
from implicit_reasoning.dictionaries.figures.matches import bridges, matches
from implicit_reasoning.dictionaries.figures.pareto import compared, pareto
from implicit_reasoning.dictionaries.figures.training import superposition, training
from implicit_reasoning.dictionaries.figures.use import uses
from implicit_reasoning.dictionaries.store import Files, names
from implicit_reasoning.figures import Figure
from implicit_reasoning.runs import Run, load_arrays

__all__ = ["figures"]


def figures(run: Run) -> list[Figure]:
    """Of every set of dictionaries that was measured."""
    paths = {name: Files.of(run, name).measured for name in names(run)}
    results = {name: load_arrays(path) for name, path in paths.items() if path.exists()}
    makers = (pareto, beaten, matches, bridges, uses, training, superposition)
    drawn = [make(name, result) for name, result in results.items() for make in makers]
    drawn.append(compared(results))
    return [figure for figure in drawn if figure is not None]
