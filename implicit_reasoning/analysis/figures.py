"""The figures of every result that a run has, for the report."""

from __future__ import annotations

from implicit_reasoning.analysis.api import INSTRUMENTS, find_instrument
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.runs import Run


def figures(run: Run) -> list[Figure]:
    """Drawn by the instruments that measured them: the lab's in their order, then others.

    An instrument of the user's own whose file is not where it was has no figures.
    """
    names = [path.stem for path in sorted(run.files.analysis.glob("*.nc"))]
    order = list(INSTRUMENTS)
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    drawn = []
    for name in names:
        result = run.result(name)
        try:
            instrument = find_instrument(result.attrs.get("found_at") or name)
        except InputError:
            continue
        drawn += instrument.figures(result)
    return drawn
