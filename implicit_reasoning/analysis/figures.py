"""Draw the figures of all saved results of a run, for the report."""

from __future__ import annotations

import sys

from implicit_reasoning.analysis import used
from implicit_reasoning.analysis.api import INSTRUMENTS, find_instrument
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.runs import Run, result_names
from implicit_reasoning.statistics import INTERVALS


def figures(run: Run) -> list[Figure]:
    """Draw all saved results of a run.

    The first figures compare decodable variables with used variables (see `used.figures`). The
    figures of built-in instruments follow in the order of `INSTRUMENTS`. The figures of instruments
    from the user's files are last. A result is omitted if its instrument cannot be found.

    A result is also omitted if the version of the instrument has changed since the measurement. The
    layout of the result may then be different. A message is printed on standard error.
    """
    names = result_names(run.files.analysis)
    order = list(INSTRUMENTS)
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    results, drawn = {}, []
    for name in names:
        result = run.result(name)
        try:
            instrument = find_instrument(result.attrs.get("found_at") or name)
        except InputError:
            continue
        was = result.attrs.get("version", instrument.version)
        if was != instrument.version:
            print(
                f"implicit_reasoning: the result of {name} in {run.files.analysis} has version "
                f"{was}, expected {instrument.version}, so the result is not drawn; measure it "
                f"again with analyze --instruments={name} --again=true",
                file=sys.stderr,
            )
            continue
        if result.attrs.get("intervals", 1) != INTERVALS:
            print(
                f"implicit_reasoning: the result of {name} in {run.files.analysis} has confidence "
                "intervals of an earlier version, which resample by fact and are narrower; measure "
                "it again with analyze",
                file=sys.stderr,
            )
        results[name] = result
        drawn += instrument.figures(result)
    results = used.with_same_intervals(results)
    return used.figures(results) + drawn if {"mean_swap", "erasure"} <= results.keys() else drawn
