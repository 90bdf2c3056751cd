"""The page of an edit: what one edited fact changes, and why a hop follows or not.

    write_page("edit.html", make_page(effects, "runs/pocket", 6000), KIND)

The page is one HTML file that loads nothing and needs no scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from implicit_reasoning.analysis.editing.edit_cases import KINDS, POSITIONS
from implicit_reasoning.analysis.editing.edit_effects import N_RANDOM, EditEffects
from implicit_reasoning.analysis.editing.edit_summary import (
    NEIGHBORS,
    OTHERS,
    OUTCOMES,
    explain,
    method_text,
    summary_rows,
    title,
)
from implicit_reasoning.analysis.editing.edited_models import has_thought
from implicit_reasoning.figures import Page
from implicit_reasoning.pages import make_environment, read_source

KIND = "page of an edit"
"""The kind of the page, for the line above its heading."""

_TEMPLATES = make_environment("implicit_reasoning.analysis.editing")
_MEANING = {
    "fact": "the fact asked alone",
    "first hop": "chains (e{head}, r{relation}, r) that use the fact first",
    "second hop": "chains (e, r, r{relation}) that lead to e{head} and use the fact second",
    "same entity": "other facts of e{head}",
    "same relation": "facts of other entities with r{relation}",
    OTHERS: "a sample of all other facts and chains",
}


class Bar(NamedTuple):
    """Answers of one model to the prompts of a kind.

    Attributes:
      parts: for each kind of answer, its CSS class, its name and its number.
      text: the numbers in words.
    """

    parts: list[tuple[str, str, float | int]]
    text: str


class PromptRow(NamedTuple):
    """One prompt, as text for a row of a table; see the head of the table in `edit.html`."""

    prompt: str
    right: str
    before: str
    after: str
    outcome: str
    random: str
    state: str
    written: str
    known: bool


def make_page(effects: EditEffects, run: str, step: int, saved: str = "") -> Page:
    """Make the page of an edit.

    Args:
      effects: what the edit changes.
      run: the run directory, as text.
      step: the step of the checkpoint.
      saved: the run directory in which the edited model was saved, if any.
    """
    meaning = {
        kind: text.format(head=effects.edit.head, relation=effects.edit.relation)
        for kind, text in _MEANING.items()
    }
    body = _TEMPLATES.get_template("edit.html").render(
        reasons=_reasons(effects),
        rows=[
            (row, meaning[row.kind], *(_bar(getattr(row, name), row.changes) for name in _MODELS))
            for row in summary_rows(effects)
        ],
        layers=_layers(effects),
        tables=[
            (kind, meaning[kind], kind in NEIGHBORS, _prompts(effects, kind)) for kind in KINDS
        ],
        effects=effects,
        thought=has_thought(effects.prompts.tokens),
        edit=effects.edit,
        size=f"{100 * effects.size:.1f}%",
        n_random=N_RANDOM,
        saved=saved,
    )
    lead = (
        f"What changes in {run} at step {step:,} if this fact is edited by {method_text(effects)}. "
        "The position r1 is that of the relation of the fact."
    )
    return Page("edit", f"Edit {title(effects)}", lead, body, read_source(_TEMPLATES, "edit.css"))


_MODELS = ("edit", "random", "state")
_CLASSES = ("new", "old", "another")


def _reasons(effects: EditEffects) -> list[tuple[str, str, str]]:
    """Return the name, the count and the sentences of each part of the explanation."""
    rows = {row.kind: row for row in summary_rows(effects)}
    sentences = explain(effects)
    reasons = []
    for name, text in sentences.items():
        row = rows.get(name)
        if row is None:
            near = [rows[kind] for kind in (*NEIGHBORS, OTHERS)]
            count = f"{sum(one.edit[0] for one in near)} of {sum(one.known for one in near)} kept"
        else:
            count = f"{row.edit[0]} of {row.known} follow" if row.known else "not known before"
            if name == "fact":
                count = "the edit succeeded" if effects.after.is_new[0] else "the edit failed"
        reasons.append((name, count, text))
    return reasons


def _bar(counts: Sequence[float | int], changes: bool) -> Bar:
    names = OUTCOMES if changes else ("right answer", "", "wrong answer")
    parts = [part for part in zip(_CLASSES, names, counts, strict=True) if part[2] > 0]
    text = ", ".join(f"{_number(count)} {name}{'s' * (count != 1)}" for _, name, count in parts)
    return Bar(parts, text or "no prompt counts")


def _number(value: float | int) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _layers(effects: EditEffects) -> list[dict[str, Any]]:
    """Return the rows of the table of bridges, from the last state to the first."""
    before, after, drawn = effects.lens_before, effects.lens_after, effects.lens_random
    rows = []
    for layer in reversed(range(effects.depth + 1)):
        same = int((np.asarray(drawn.token)[:, layer] == before.token[layer]).sum())
        rows.append(
            {
                "layer": layer,
                "reader": f"block {layer}" if layer < effects.depth else "the unembedding only",
                "changed": layer > min(effects.changed, default=-1),
                "before": _read(effects, before, layer),
                "after": _read(effects, after, layer),
                "old": f"{before.old[layer] + 1} → {after.old[layer] + 1}",
                "new": f"{before.new[layer] + 1} → {after.new[layer] + 1}",
                "random": f"{same} of {len(drawn.token)}",
            }
        )
    return rows


def _read(effects: EditEffects, lens: Any, layer: int) -> tuple[str, str]:
    """Return the CSS class of a token that the lens reads, and its text."""
    token = int(lens.token[layer])
    kind = {effects.edit.old: "old", effects.edit.new: "new"}.get(token, "another")
    note = {"old": "old tail", "new": "new tail", "another": "neither"}[kind]
    return kind, f"{effects.names[token]} {100 * lens.probability[layer]:.0f}% ({note})"


def _prompts(effects: EditEffects, kind: str) -> list[PromptRow]:
    names, prompts = effects.names, effects.prompts
    rows = []
    for index in effects.of_kind(kind).tolist():
        shown = [names[token] for token in prompts.tokens[index, : prompts.position[index] + 1]]
        shown[len(POSITIONS) :] = ["…"] * (len(shown) - len(POSITIONS))  # the model outputs it
        old, new = (names[column[index]] for column in (prompts.before, prompts.after))
        same = int(
            (np.asarray(effects.random.token)[:, index] == effects.before.token[index]).sum()
        )
        rows.append(
            PromptRow(
                prompt=" ".join(shown),
                right=old if kind in NEIGHBORS else f"{old} → {new}",
                before=_answer(effects, effects.before, index),
                after=_answer(effects, effects.after, index),
                outcome=_outcome(effects.after, index, kind not in NEIGHBORS),
                random=f"{same} of {N_RANDOM}",
                state=names[effects.state.token[index]],
                written=f"{100 * effects.written[index]:.0f}%".replace("-0%", "0%"),
                known=bool(effects.before.is_old[index]),
            )
        )
    return rows


def _answer(effects: EditEffects, answered: Any, index: int) -> str:
    share = 100 * answered.probability[index]
    return f"{effects.names[answered.token[index]]} {share:.0f}%"


def _outcome(answered: Any, index: int, changes: bool) -> str:
    if answered.is_new[index]:
        return "new" if changes else "right"
    return "old" if changes and answered.is_old[index] else "another" if changes else "wrong"
