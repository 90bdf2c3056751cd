"""Dashboards of features: a page of the report for every set of dictionaries.

truths.py      what features are held against
looking.py     what the device says of every feature
labels.py      labels from truth, and how good they are
histories.py   a feature from checkpoint to checkpoint
cards.py       which features are shown, and what of each
features.html  lays it out
"""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from implicit_reasoning.dictionaries.dashboards import cards, labels
from implicit_reasoning.dictionaries.measures.metrics import DENSE
from implicit_reasoning.dictionaries.results import make_rows, open_measured
from implicit_reasoning.dictionaries.store import (
    ALL,
    TRAINED,
    Dictionaries,
    Member,
    load,
    names,
)
from implicit_reasoning.figures import Page
from implicit_reasoning.runs import Run

__all__ = ["make_page", "pages"]

_TEMPLATES = Environment(
    loader=PackageLoader("implicit_reasoning.dictionaries.dashboards", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def pages(run: Run) -> list[Page]:
    """A page for every set of dictionaries that was measured."""
    tables = {name: open_measured(run, name) for name in names(run)}
    return [
        make_page(run, load(run, name), table)
        for name, table in tables.items()
        if table is not None
    ]


def make_page(run: Run, made: Dictionaries, result: xr.Dataset) -> Page:
    """The page of one set.

    Args:
      run: that it is of.
      made: the set.
      result: what was measured of it.
    """
    chosen = [made.members[number] for number in made.shown]
    # Of a run that was copied without its checkpoints there is a page all the same.
    missing = any(step not in run.steps for member in chosen for step in member.steps)
    shown = [] if missing else cards.show(run, made, result)
    body = _TEMPLATES.get_template("features.html").render(
        rows=make_rows(result),
        chosen=[(TRAINED, one.site, one.sparsity, one.seed) for one in chosen],
        when=_when(chosen[0]),
        split=str(result["split"].values[0]) if "split" in result.coords else "",
        shown=shown,
        missing=missing,
        labelled=any(one.counts for one in shown),
        direct=any(card.promoted for one in shown for group in one.groups for card in group.cards),
        start=_STARTS[made.config.start],
        dense=DENSE,
        stands=labels.STANDS,
        weakly=labels.WEAKLY,
        chance=labels.CHANCE,
    )
    style = _TEMPLATES.get_template("features.css").render()
    name = made.config.name
    title = f"Features of dictionaries “{name}”"
    return Page(f"dictionaries_{name}", title, _lead(made, chosen[0], shown), body, style)


def _lead(made: Dictionaries, member: Member, shown: Sequence[cards.Shown]) -> str:
    """Which dictionary, and which features."""
    which = (
        f"For every site the {made.config.kind.replace('_', ' ')} {_when(member)}, "
        f"sparsity {member.sparsity:g} and seed 0, {made.finished.kind.d_sae:,} features. "
    )
    others = f"the densest {cards.DENSEST} of the others and {cards.RANDOM} drawn at random"
    if not any(one.counts for one in shown):
        return f"{which}Shown are {others}."
    return (
        f"{which}Shown are up to {cards.BEST} whose labels looked best where they were chosen, in "
        f"turn of every variable; and, so that not only successes are seen, {others} from those "
        "whose label says nothing."
    )


def _when(member: Member) -> str:
    return "of all checkpoints" if member.step == ALL else f"of step {member.step:,}"


_STARTS = {
    "cold": "were trained from one start, independently of each other",
    "forwards": "began with those of the checkpoint before, which makes features look older",
    "backwards": "began with those of the checkpoint after, which makes features look older",
}
