"""The page of a circuit: the edge graph over positions and layers, with a slider for checkpoints.

The report shows the page if the run has a result of `edge_patching`. The page is one HTML file that
loads nothing. Without scripts, it shows the last checkpoint.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.circuits.edge_figures import about_pairs, node_places
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.figures import Page
from implicit_reasoning.model.units import Edge
from implicit_reasoning.pages import json_for_script, make_environment, read_source
from implicit_reasoning.runs import Run, result_names

_LEAST = 0.02  # edges whose effect is always smaller are left out of the page
_ACROSS, _UP = 260, 84  # pixels between positions and between rows
_MARGIN = (200, 40)  # pixels left of the first position and above the highest row
_INPUTS = {"q": -7, "k": 0, "v": 7}  # pixels by which the end of a line is moved
_SHOWN = 0.05  # the first value of the slider for the smallest effect

_TEMPLATES = make_environment("implicit_reasoning.analysis.circuits")


class Line(NamedTuple):
    """The line of an edge at a position, as an SVG path, and the name of the edge."""

    name: str
    path: str


def pages(run: Run) -> list[Page]:
    """Return the page of a run's result of `edge_patching`; no page if there is no result."""
    if "edge_patching" not in result_names(run.files.analysis):
        return []
    return [make_page(run.result("edge_patching"))]


def make_page(result: xr.Dataset) -> Page:
    """Make the page of a result of `edge_patching`."""
    metric = str(result["metric"].values[0])
    of_metric = result.sel(metric=metric, donor=["pair", "another pair"])
    effects = known_means(of_metric, "effect").stack(cell=("edge", "pos"))
    strongest = np.nan_to_num(abs(effects)).max(
        axis=tuple(index for index, dim in enumerate(effects.dims) if dim != "cell")
    )
    chosen = np.flatnonzero(strongest >= _LEAST)
    positions = [str(pos) for pos in result["pos"].values]
    edges = [Edge.parse(str(edge)) for edge in result["edge"].values]
    places = node_places(edges)
    cells = [(str(edge), str(pos)) for edge, pos in effects["cell"].values[chosen]]
    lines = [_line(Edge.parse(edge), positions.index(pos), pos, places) for edge, pos in cells]
    bounds = {
        end: of_metric[f"effect_{end}"].stack(cell=("edge", "pos")) for end in ("low", "high")
    }
    groups = [str(group) for group in result["group"].values]
    steps = [int(step) for step in result["step"].values]
    data = {
        "steps": steps,
        "names": [line.name for line in lines],
        "effect": _numbers(effects, chosen),
        **{end: _numbers(values, chosen) for end, values in bounds.items()},
    }
    rows = sorted({row for row, _ in places.values()})
    body = _TEMPLATES.get_template("circuit.html").render(
        data=json_for_script(data),
        lines=lines,
        nodes=[
            (name, *_point(pos, place, places))
            for name, place in places.items()
            for pos in range(len(positions))
        ],
        labels=[(_row_label(row, places), _y(row, places)) for row in rows],
        positions=[(pos, _MARGIN[0] + _ACROSS * index) for index, pos in enumerate(positions)],
        width=_MARGIN[0] + _ACROSS * len(positions) - 140,
        height=_MARGIN[1] * 2 + _UP * max(rows) + 20,
        metric=metric.replace("_", " "),
        groups=groups,
        last=len(steps) - 1,
        shown=_SHOWN,
        fewest=MIN_CLUSTERS,
        script=read_source(_TEMPLATES, "circuit.js"),
    )
    lead = f"{about_pairs(result)} Move the slider to see which edges matter at each checkpoint."
    style = read_source(_TEMPLATES, "circuit.css")
    return Page("circuit", "Which edges compute the answer?", lead, body, style)


def _numbers(values: xr.DataArray, chosen: np.ndarray) -> list[Any]:
    """Return rounded numbers as nested lists [group][donor][step][cell]; null if unknown."""
    array = values.isel(cell=chosen).transpose("group", "donor", "step", "cell").values
    rounded = np.round(array.astype(float), 3).astype(object)
    rounded[~np.isfinite(array)] = None
    found: list[Any] = rounded.tolist()
    return found


def _line(edge: Edge, pos: int, label: str, places: dict[str, tuple[int, float]]) -> Line:
    receiver, _, part = edge.receiver.partition("<")
    x0, y0 = _point(pos, places[edge.sender], places)
    x1, y1 = _point(pos, places[receiver], places)
    x1 += _INPUTS.get(part[:1], 0)
    # Lines that skip a row bend around the nodes between.
    bend = 0 if places[receiver][0] - places[edge.sender][0] == 1 else 26
    middle = f"{(x0 + x1) / 2 + bend:.0f},{(y0 + y1) / 2:.0f}"
    return Line(f"{edge} @ {label}", f"M{x0:.0f},{y0:.0f}Q{middle} {x1:.0f},{y1:.0f}")


def _point(
    pos: int, place: tuple[int, float], places: dict[str, tuple[int, float]]
) -> tuple[float, int]:
    row, offset = place
    return _MARGIN[0] + _ACROSS * (pos + offset), _y(row, places)


def _y(row: int, places: dict[str, tuple[int, float]]) -> int:
    return _MARGIN[1] + _UP * (max(other for other, _ in places.values()) - row)


def _row_label(row: int, places: dict[str, tuple[int, float]]) -> str:
    name = next(name for name, (at, _) in places.items() if at == row)
    if name in ("input", "logits"):
        return {"input": "embeddings"}.get(name, name)
    return f"heads {name[1:].partition('.')[0]}" if ".h" in name else f"MLP {name[1:]}"
