"""What an edit of one fact changes, as rows of numbers and as sentences.

The sentences explain why a hop follows or not, as far as two readings show it: the bridge that the
logit lens decodes in the states that later blocks read, and the part of the edit that is written
where a chain uses the fact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from implicit_reasoning.analysis.editing.edit_cases import KINDS
from implicit_reasoning.analysis.editing.edit_effects import EditEffects
from implicit_reasoning.analysis.editing.edited_models import has_thought
from implicit_reasoning.analysis.editing.knowledge_editing import WEIGHTS

OUTCOMES = ("new answer", "old answer", "another answer")
"""Kinds of answers to prompts whose right answer the edit changes."""

NEIGHBORS = ("same entity", "same relation")
"""Kinds of prompts whose right answer the edit does not change."""

OTHERS = "other prompts"
_MOST, _FEW = 0.9, 0.1  # shares that the sentences call "most" and "few"


class Row(NamedTuple):
    """The answers to the prompts of one kind.

    Attributes:
      kind: the kind of the prompts, from `KINDS` or `OTHERS`.
      total: the number of prompts.
      known: the number of prompts that are answered right before the edit. Only these count.
      edit, state: the number of answers of each kind, in the order of `OUTCOMES`, after the edit
        and after the state is overwritten. If the right answer does not change, the first number is
        that of right answers, and the second is 0.
      random: the same, as the mean over random changes.
    """

    kind: str
    total: int
    known: int
    edit: tuple[int, ...]
    random: tuple[float, ...]
    state: tuple[int, ...]

    @property
    def changes(self) -> bool:
        """Whether the edit changes the right answers."""
        return self.kind not in (*NEIGHBORS, OTHERS)


def summary_rows(effects: EditEffects) -> list[Row]:
    """Return the numbers of all kinds of prompts, and of the other prompts."""
    rows = [_row(effects, kind) for kind in KINDS]
    kept, drawn = effects.after.kept, effects.random.kept
    count = kept.shape[-1]
    rest = [(float(one.sum(-1).mean()), 0.0) for one in (kept, drawn)]
    edit, random = ((right, zero, count - right) for right, zero in rest)
    whole = tuple(int(number) for number in edit)
    return [*rows, Row(OTHERS, count, count, whole, tuple(random), (count, 0, 0))]


def _row(effects: EditEffects, kind: str) -> Row:
    known = effects.known(kind)
    edit, state, random = (
        _outcomes(answered, known, kind not in NEIGHBORS)
        for answered in (effects.after, effects.state, effects.random)
    )
    whole = (tuple(int(number) for number in counts) for counts in (edit, state))
    return Row(kind, len(effects.of_kind(kind)), len(known), next(whole), random, next(whole))


def _outcomes(answered: Any, known: np.ndarray, changes: bool) -> tuple[float, ...]:
    new = float(answered.is_new[..., known].sum(-1).mean())
    old = float(answered.is_old[..., known].sum(-1).mean()) if changes else 0.0
    return new, old, len(known) - new - old


def title(effects: EditEffects) -> str:
    """Return the edit in words, such as "(e12, r3): e7 becomes e40"."""
    edit = effects.edit
    return f"(e{edit.head}, r{edit.relation}): e{edit.old} becomes e{edit.new}"


def method_text(effects: EditEffects) -> str:
    """Return the method in words, such as "rome in block 0"."""
    name, layers = effects.method
    if not layers:
        return f"{name} (all weights)"
    return f"{name} in block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def explain(effects: EditEffects) -> dict[str, str]:
    """Return sentences on the fact, the first hop, the second hop and the rest, by name."""
    rows = {row.kind: row for row in summary_rows(effects)}
    return {
        "fact": _about_fact(effects),
        "first hop": _about_first(effects, rows["first hop"]),
        "second hop": _about_second(effects, rows["second hop"]),
        "everything else": _about_rest(rows),
    }


def _about_fact(effects: EditEffects) -> str:
    edit, names = effects.edit, effects.names
    before, after = (names[one.token[0]] for one in (effects.before, effects.after))
    fact = f"(e{edit.head}, r{edit.relation})"
    was = "which is right" if effects.before.is_old[0] else f"and e{edit.old} is right"
    answers = (
        f"Asked alone, {fact} has the answer {before} before the edit, {was}, and {after} after it."
    )
    if effects.after.is_new[0]:
        return answers
    return (
        f"{answers} The edit failed, because e{edit.new} is wanted, so its consequences are no "
        "evidence."
    )


def _about_first(effects: EditEffects, row: Row) -> str:
    head, relation = effects.edit.head, effects.edit.relation
    if not row.known:
        return _nothing_known(row, f"(e{head}, r{relation}, r)")
    count = f"{row.edit[0]} of {row.known} chains (e{head}, r{relation}, r)"
    result = f"{count} have the answer that follows from the new tail."
    if has_thought(effects.prompts.tokens):
        return f"{result} {_bridges_that_are_output(effects, row)}"
    read = effects.depth - 1  # the last state at r1 that a later block reads
    if read < 1:
        return f"{result} The model has one block, so no later block reads the state at r1."
    if min(effects.changed, default=0) >= read:
        return (
            f"{result} Block {read} is the last one, so no later block reads what the "
            f"edit writes at r1. Chains still read {_bridge(effects, read, 'after')} at "
            f"S[{read}, r1], as before the edit."
        )
    seen = (
        f"At S[{read}, r1], the last state at r1 that a later block reads, the logit lens decodes "
        f"{_bridge(effects, read, 'before')} before the edit and "
        f"{_bridge(effects, read, 'after')} after it."
    )
    return f"{result} {seen} {_first_conclusion(effects, row, read)}".rstrip()


def _bridges_that_are_output(effects: EditEffects, row: Row) -> str:
    known = effects.known("first hop")
    output = np.asarray(effects.after.bridge)[known]
    new, old = ((output == tail).sum() for tail in (effects.edit.new, effects.edit.old))
    return (
        "The model outputs the bridge before it answers. After the edit, it outputs the new tail "
        f"in {new} and the old tail in {old} of these {row.known} chains."
    )


def _first_conclusion(effects: EditEffects, row: Row, read: int) -> str:
    if effects.method.name == WEIGHTS:
        return ""  # other changes may be the cause
    share, token = row.edit[0] / row.known, int(effects.lens_after.token[read])
    if token == effects.edit.new:
        if share >= _MOST:
            return "Later blocks use the new bridge."
        if share <= _FEW:
            return "The new bridge is decodable there, but later blocks do not use it."
        return "The new bridge is decodable there, but later blocks use it in some chains only."
    named = "the old bridge" if token == effects.edit.old else "neither bridge"
    if share >= _MOST:
        return f"The chains follow although the lens decodes {named} there."
    return f"The lens decodes {named} there."


def _bridge(effects: EditEffects, layer: int, when: str) -> str:
    lens = effects.lens_before if when == "before" else effects.lens_after
    token = int(lens.token[layer])
    known = {effects.edit.old: "the old tail ", effects.edit.new: "the new tail "}.get(token, "")
    return f"{known}{effects.names[token]} ({100 * lens.probability[layer]:.0f}%)"


def _about_second(effects: EditEffects, row: Row) -> str:
    head, relation = effects.edit.head, effects.edit.relation
    if not row.known:
        return _nothing_known(row, f"(e, r, r{relation}) that lead to e{head}")
    result = (
        f"{row.edit[0]} of {row.known} chains (e, r, r{relation}) whose bridge is e{head} have "
        "the new tail as their answer."
    )
    written = effects.written[effects.known("second hop")]
    low, high = (f"{100 * end:.0f}%".replace("-0%", "0%") for end in (written.min(), written.max()))
    span = low if low == high else f"{low} to {high}"
    states = " or ".join(f"S[{layer}]" for layer in effects.read)
    most = " (the larger change counts)" if len(effects.read) > 1 else ""
    change = "the change" if not most else f"the change of S[{effects.read[0]}]"
    part = (
        f"At their last position, {states} moves by {span} of {change} at r1 of the "
        f"fact, along its direction{most}."
    )
    by_hand = (
        f"If the whole change is added there, {row.state[0]} of {row.known} have the new tail as "
        "their answer."
    )
    return f"{result} {part} {by_hand} {_second_conclusion(effects, row, written)}".rstrip()


def _second_conclusion(effects: EditEffects, row: Row, written: np.ndarray) -> str:
    follow, by_hand = row.edit[0] / row.known, row.state[0] / row.known
    if follow >= _MOST:
        return "The second hop follows the edit."
    if follow > _FEW or effects.method.name == WEIGHTS:
        return ""
    if np.abs(written).max() <= 0.5 and by_hand >= _MOST:
        return "The second hop would follow, but the edit writes too little there."
    if by_hand <= _FEW:
        return "Even the whole change does not move the answer there."
    return ""


def _about_rest(rows: dict[str, Row]) -> str:
    parts = []
    for kind, text in (
        ("same entity", "other facts of the entity"),
        ("same relation", "facts of other entities with the relation"),
        (OTHERS, OTHERS),
    ):
        row = rows[kind]
        parts.append(f"{row.edit[0]} of {row.known} {text}")
    return f"{', '.join(parts[:-1])} and {parts[-1]} keep their right answer."


def _nothing_known(row: Row, chains: str) -> str:
    if not row.total:
        return f"The world has no chains {chains} whose answer the edit changes."
    return (
        f"None of {row.total} chains {chains} was answered right before the edit, so they are "
        "no evidence."
    )


def console_text(effects: EditEffects) -> str:
    """Return a table of the numbers and the sentences, as plain text."""
    lines = [f"{title(effects)}, by {method_text(effects)}", ""]
    heads = ("prompts", "known", *OUTCOMES, "random change: new", "old", "another")
    cells: list[tuple[str, ...]] = [heads]
    for row in summary_rows(effects):
        edit = [str(number) for number in row.edit]
        drawn = [f"{number:.1f}" for number in row.random]
        if not row.changes:
            edit[1] = drawn[1] = "-"
        cells.append((row.kind, f"{row.known} of {row.total}", *edit, *drawn))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        sized = zip(line, widths, strict=True)
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in sized).rstrip())
    lines += ["", *(f"{name}: {text}" for name, text in explain(effects).items())]
    return "\n".join(lines)
