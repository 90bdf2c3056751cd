"""The figures of every result that a run has, for the report."""

from __future__ import annotations

from implicit_reasoning.analysis import used
from implicit_reasoning.analysis.api import INSTRUMENTS, find_instrument
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.runs import Run


def figures(run: Run) -> list[Figure]:
    """What is decodable and what is used; then each instrument's own, the lab's in their order.

    An instrument of the user's own whose file is not where it was has no figures.
    """
    names = [path.stem for path in sorted(run.files.analysis.glob("*.nc"))]
    order = list(INSTRUMENTS)
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    results = {name: run.result(name) for name in names}
    drawn = []
    for name, result in results.items():
        try:
            instrument = find_instrument(result.attrs.get("found_at") or name)
        except InputError:
            continue
        drawn += instrument.figures(result)
    return used.figures(results) + drawn if {"swap", "erasure"} <= results.keys() else drawn
