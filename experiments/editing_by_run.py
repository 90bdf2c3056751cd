"""Tables of `editing.py` with the numbers of every run, made from its saved arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from components_tables import table
from editing_rules import (
    HOPS,
    ROLE_GROUPS,
    SPECIFIC,
    UNDONE,
    Ends,
    at_place,
    back,
    ends_of,
    in_sequence,
    reasons,
    share,
    stages_of,
    through_chains,
)
from reasoning_or_shortcut_arms import Arm, number

from implicit_reasoning.analysis.editing.knowledge_editing import EDITORS, ROME, STATE


def runs_tables(arms: Mapping[str, Arm]) -> str:
    """Return a table for each question, with the numbers of every run and their intervals."""
    sections: Mapping[str, Callable[[Arm], Mapping[str, Mapping[str, Ends]]]] = {
        "1, 4 (a) - (c). At the end": end_numbers,
        "1 (f). By role of the fact": role_numbers,
        "2. By stage of training": stage_numbers,
        "4 (e). Edits through one chain": chained_numbers,
        "5. By block and position": place_numbers,
        "6. By method": method_numbers,
        "7. Edits that are edited back": back_numbers,
        "8. Edits one after another": sequence_numbers,
    }
    text = [
        "The numbers of every run, with 95% intervals clustered by edit. The locality of several "
        "edits of one model has an interval clustered by bridge in section 8, and none for `memit`."
    ]
    for title, of in sections.items():
        text += ["", f"## {title}", "", *rows_of_runs(arms, of)]
    return "\n".join(text) + "\n"


def rows_of_runs(
    arms: Mapping[str, Arm], of: Callable[[Arm], Mapping[str, Mapping[str, Ends]]]
) -> list[str]:
    """Return a table with a row for every run and label.

    Args:
      arms: the arms.
      of: function that returns the numbers of an arm, by label and by column.
    """
    rows, columns = [], dict[str, None]()
    for name, arm in arms.items():
        for label, found in of(arm).items():
            columns |= dict.fromkeys(found)
            for place, (world, init) in enumerate(zip(arm.worlds, arm.inits, strict=True)):
                cells = [f"{number(e.mean[place])} {interval(e, place)}" for e in found.values()]
                rows.append([name, world, init, label, *map(str.strip, cells)])
    return table(["arm", "world", "init", "of", *columns], rows)


def end_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of questions 1 and 4 (a) to (c)."""
    found = reasons(arm)
    scores = ("efficacy", *HOPS, *(f"stale {hop}" for hop in HOPS), *SPECIFIC)
    numbers = {score: share(arm, score) for score in scores} | {
        "first hop of state": share(arm, "first hop", editor=STATE),
        "new tail decoded": found.new_decoded,
        "read strength at the second hop": found.read,
        "read strength at other facts": found.read_elsewhere,
    }
    return {ROME: numbers}


def role_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 1 (f)."""
    scores = ("efficacy", *HOPS)
    return {role: {s: share(arm, s, role=role) for s in scores} for role in ROLE_GROUPS}


def stage_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 2."""
    scores = ("efficacy", *HOPS, "locality")
    return {stage: {s: share(arm, s, stage=stage) for s in scores} for stage in stages_of(arm)}


def chained_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 4 (e)."""
    found = through_chains(arm)
    numbers = {
        "taught chain": found.taught,
        "other chains, second hop": found.others,
        "the fact": found.fact,
        "locality": found.locality,
    }
    return {ROME: numbers | {f"read strength at {one}": e for one, e in found.read.items()}}


def place_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 5."""
    part = arm.parts["places"].isel(group=0)
    scores = ("efficacy", *HOPS, "same entity", "locality")
    return {
        place: {score: at_place(arm, place, score) for score in scores}
        | {"read strength at the second hop": ends_of(part, "read", place=place, use="second hop")}
        for place in map(str, part["place"].values)
    }


def method_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 6."""
    known = [name for name in EDITORS if name in arm.parts["edits"]["editor"]]
    scores = ("efficacy", *HOPS, "both", *SPECIFIC)
    return {name: {s: share(arm, s, editor=name) for s in scores} for name in known}


def back_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 7."""
    left = ends_of(arm.parts["sequences"].isel(group=0), "left")
    numbers = {score: back(arm, score) for score in UNDONE}
    return {ROME: numbers | {"norm that is left": left}}


def sequence_numbers(arm: Arm) -> dict[str, dict[str, Ends]]:
    """Return the numbers of question 8."""
    scores = ("efficacy", "first hop", "locality")
    counts = [int(count) for count in arm.parts["sequences"]["count"].values]
    return {
        f"after {count}": {score: in_sequence(arm, score, count) for score in scores}
        for count in counts
    }


def interval(ends: Ends, place: int) -> str:
    """Format the interval of one run."""
    low, high = (float(end[place]) for end in (ends.low, ends.high))
    return "" if np.isnan(low) else f"[{number(low)}, {number(high)}]"
