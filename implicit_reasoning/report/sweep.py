"""HTML report of a sweep: its trials, their status and their results."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from implicit_reasoning.config import to_json
from implicit_reasoning.files import atomic_write
from implicit_reasoning.pages import make_environment
from implicit_reasoning.report.collect import FORMATS, Rendered, render, write_files
from implicit_reasoning.report.page import TEMPLATES, data_url
from implicit_reasoning.sweeps import Status
from implicit_reasoning.sweeps.definition import short_keys
from implicit_reasoning.sweeps.directory import DIVERGED, DONE, FAILED, PRUNED, RUNNING, STOPPED
from implicit_reasoning.sweeps.figures import figures
from implicit_reasoning.sweeps.opened import Runs
from implicit_reasoning.training.phases import Splits

_MAX_ROWS = 2_000  # Browsers sort a table of this length without delay.
_SHOWN = (DONE, RUNNING, STOPPED, FAILED, DIVERGED, PRUNED)


class TableCell(NamedTuple):
    """Cell of the table of trials.

    Attributes:
      text: the text that is shown.
      value: the value by which the table is sorted.
      link: the target of a link; empty for no link.
      state: the state of a trial, which sets the color; empty for no color.
    """

    text: str
    value: str
    link: str = ""
    state: str = ""


def write_sweep_report(runs: Runs) -> Path:
    """Write the report of a sweep: `report/index.html` and figures.

    An existing report is replaced.

    Args:
      runs: the sweep, finished or still running.

    Returns:
      The path of `index.html`.
    """
    rendered = [render(figure) for figure in figures(runs)]
    page = runs.files.report
    write_files(rendered, page.parent / "figures")
    with atomic_write(page) as file:
        file.write(_fill(runs, rendered))
    return page


def _fill(runs: Runs, rendered: Sequence[Rendered]) -> str:
    statuses = runs.statuses
    columns, rows = _table(runs, statuses)
    left_out = len(runs.sweep.trials) - len(rows)
    filled: str = (
        make_environment(TEMPLATES)
        .get_template("sweep.html")
        .render(
            name=runs.files.workdir.resolve().name,
            summary=_summary(runs),
            tiles=_tiles(statuses),
            lost=[
                {"name": name, **status._asdict()}
                for name, status in statuses.items()
                if status.state in (FAILED, DIVERGED)
            ],
            figures=[
                {
                    **{key: getattr(one.figure, key) for key in ("name", "title", "caption")},
                    "image": url,
                }
                for one in rendered
                for url in [data_url(one)]
            ],
            formats=FORMATS,
            columns=columns,
            rows=rows,
            left_out=left_out,
            config=json.dumps(to_json(runs.sweep.base), indent=2),
        )
    )
    return filled


def _summary(runs: Runs) -> str:
    keys = runs.sweep.keys
    count = len(runs.sweep.trials)
    differ = f" The trials differ in {', '.join(keys)}." if keys else ""
    return f"{count:,} trial{'s' if count != 1 else ''} of one configuration.{differ}"


def _tiles(statuses: dict[str, Status]) -> list[dict[str, Any]]:
    seen = collections.Counter(status.state for status in statuses.values())
    tiles = [
        {"name": state, "value": seen[state], "line": f"of {len(statuses):,} trials"}
        for state in _SHOWN
        if seen[state] or state == DONE
    ]
    attempts = sum(status.attempts for status in statuses.values())
    return [
        *tiles,
        {"name": "attempts", "value": attempts, "line": f"for {len(statuses):,} trials"},
    ]


def _table(runs: Runs, statuses: dict[str, Status]) -> tuple[list[str], list[list[TableCell]]]:
    keys, short = runs.sweep.keys, short_keys(runs.sweep.keys)
    begun = [name for name in runs.names if runs.rows(name)][:_MAX_ROWS]
    splits = Splits.of(runs[begun[0]].dataset) if begun else Splits(None, None, None)
    accuracies = [s for s in (splits.trained, splits.held_out, splits.cross) if s is not None]
    phases = runs.phases()
    times = [
        name for name in ("memorised", "in_distribution_half", "in_distribution") if name in phases
    ]
    columns = [
        "trial",
        *(short[key] for key in keys),
        "state",
        "step",
        *accuracies,
        *(t.replace("_", " ") for t in times),
    ]
    rows = []
    for name in list(runs.sweep.trials)[:_MAX_ROWS]:
        status = statuses[name]
        last = _last_evaluation(runs, name) if name in begun else {}
        where = phases.trial.values.tolist().index(name) if name in runs.names else None
        cells = [TableCell(name, name, f"../trials/{quote(name)}/" if name in runs.names else "")]
        cells += [_value(runs.value(name, key)) for key in keys]
        cells.append(TableCell(status.state, status.state, state=status.state))
        cells.append(TableCell(f"{status.step:,}", str(status.step)))
        cells += [_number(last.get(f"accuracy/{split}"), "{:.3f}") for split in accuracies]
        cells += [
            _number(None if where is None else float(phases[time].values[where]), "{:,.0f}")
            for time in times
        ]
        rows.append(cells)
    return columns, rows


def _last_evaluation(runs: Runs, name: str) -> dict[str, Any]:
    found = (
        row for row in reversed(runs.rows(name)) if any(k.startswith("accuracy/") for k in row)
    )
    return next(found, {})


def _value(value: Any) -> TableCell:
    return TableCell(f"{value:g}" if isinstance(value, float) else str(value), str(value))


def _number(value: float | None, form: str) -> TableCell:
    if value is None or math.isnan(value):
        return TableCell("-", "")
    return TableCell(form.format(value), repr(value))
