"""Make pages of feature dashboards, one page per set of dictionaries.

`write_page` computes a page and saves the page in the folder of the set. The report only reads
saved pages, with `pages`.

truths.py              finds the true values of states, and the names of these values
feature_statistics.py  computes statistics of every feature
labels.py              labels features, and tests labels against chance
histories.py           describes how features change over checkpoints
cards.py               selects the features to show, and collects data for cards
features.html          is the template of the page
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import xarray as xr
from markupsafe import Markup

from implicit_reasoning.dictionaries.dashboards import cards, labels
from implicit_reasoning.dictionaries.measures.metrics import MIN_DENSE
from implicit_reasoning.dictionaries.results import make_rows, open_measured
from implicit_reasoning.dictionaries.store import (
    ALL_STEPS,
    TRAINED,
    Dictionaries,
    Files,
    Member,
    load,
    names,
)
from implicit_reasoning.figures import Page
from implicit_reasoning.files import FORMAT_VERSION, check_format, read_json, write_json
from implicit_reasoning.pages import make_environment
from implicit_reasoning.runs import Run

__all__ = ["make_page", "pages", "write_page"]

_FORMAT = 1

_TEMPLATES = make_environment("implicit_reasoning.dictionaries.dashboards")


def write_page(run: Run, made: Dictionaries, result: xr.Dataset) -> None:
    """Compute the dashboard page of one set of dictionaries, and save the page in the run."""
    page = dataclasses.asdict(make_page(run, made, result))
    digest = _digest(made, result)
    about = {FORMAT_VERSION: _FORMAT, "of": digest, "page": page}
    write_json(Files.of(run, made.config.name).page, about)


def pages(run: Run) -> list[Page]:
    """Return the dashboard pages of all measured sets of dictionaries in a run.

    If no page is saved for the newest results of a set, the returned page contains only the table
    of results and the name of the command that computes the feature cards.
    """
    tables = {name: open_measured(run, name) for name in names(run)}
    return [_kept_page(run, name, table) for name, table in tables.items() if table is not None]


def _kept_page(run: Run, name: str, result: xr.Dataset) -> Page:
    made, path = load(run, name), Files.of(run, name).page
    if path.exists():
        about = read_json(path)
        check_format(path, about.get(FORMAT_VERSION), _FORMAT)
        if about["of"] == _digest(made, result):
            return Page(**about["page"])
    command = "<code>implicit_reasoning dictionaries --workdir=DIR</code>"
    return _page(
        made, result, [], f"are not saved for these results. The command {command} computes them."
    )


def _digest(made: Dictionaries, result: xr.Dataset) -> str:
    """Return a digest of the dictionaries that the page shows and of the table."""
    shown = [made.fingerprint(made.members[number].step) for number in made.shown]
    return hashlib.sha256(repr((shown, make_rows(result))).encode()).hexdigest()


def make_page(run: Run, made: Dictionaries, result: xr.Dataset) -> Page:
    """Compute the dashboard page of one set of dictionaries.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      result: the measured results of the set, from `measure_dictionaries`.
    """
    members = [made.members[number] for number in made.shown]
    # If the run was copied without its checkpoints, the page has the table only.
    if any(step not in run.steps for member in members for step in member.steps):
        return _page(
            made, result, [], "cannot be shown, because the checkpoints of the run no longer exist."
        )
    return _page(made, result, cards.make_cards(run, made, result))


def _page(
    made: Dictionaries,
    result: xr.Dataset,
    shown: Sequence[cards.DictionaryCards],
    missing: str = "",
) -> Page:
    """Render the table and the cards; `missing` is HTML that says why there are no cards."""
    chosen = [made.members[number] for number in made.shown]
    body = _TEMPLATES.get_template("features.html").render(
        rows=make_rows(result),
        chosen=[(TRAINED, one.site, one.sparsity, one.seed) for one in chosen],
        when=_when(chosen[0]),
        split=str(result["split"].values[0]) if "split" in result.coords else "",
        shown=shown,
        missing=Markup(missing),
        labelled=any(one.counts for one in shown),
        direct=any(card.promoted for one in shown for group in one.groups for card in group.cards),
        start=_STARTS[made.config.start],
        dense=MIN_DENSE,
        stands=labels.MIN_F1,
        weakly=labels.MIN_WEAK_F1,
        chance=labels.MAX_CHANCE,
    )
    style = _TEMPLATES.get_template("features.css").render()
    name = made.config.name
    title = f"Features of dictionaries “{name}”"
    return Page(f"dictionaries_{name}", title, _lead(made, chosen[0], shown), body, style)


def _lead(made: Dictionaries, member: Member, shown: Sequence[cards.DictionaryCards]) -> str:
    """Return the introduction: which dictionaries and features the page shows."""
    which = (
        "For every site, the page is about the "
        f"{made.config.architecture.replace('_', ' ')} {_when(member)} with sparsity "
        f"{member.sparsity:g} and seed 0, which has {made.dictionary.architecture.d_sae:,} "
        "features. "
    )
    if not shown:
        return which.strip()
    if not any(one.counts for one in shown):
        return (
            f"{which}It shows the {cards.DENSEST} densest features, and {cards.RANDOM} features "
            "that are drawn at random."
        )
    return (
        f"{which}It shows up to {cards.BEST} features with the best labels, chosen for each "
        "variable in turn by the scores on the facts where labels were chosen. So that the page "
        f"does not show successes only, it also has the {cards.DENSEST} densest of the other "
        f"features, and {cards.RANDOM} features that are drawn at random from those whose label "
        "says nothing."
    )


def _when(member: Member) -> str:
    return "of all checkpoints" if member.step == ALL_STEPS else f"of step {member.step:,}"


_STARTS = {
    "cold": "were trained independently from the same initialization",
    "forwards": (
        "were initialized with the dictionaries of the checkpoint before, which makes features "
        "look older"
    ),
    "backwards": (
        "were initialized with the dictionaries of the checkpoint after, which makes features "
        "look older"
    ),
}
