"""Instruments scored against truth: what each says of models whose mechanism is known.

Every instrument that makes claims is run on every model, and makes them as on any checkpoint, by
thresholds that are fixed in its own file. Right is who said at least one true thing and nothing
false; silence is not punished, and shown as silence. Who never claims anything is not run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
from tqdm import tqdm

from implicit_reasoning.analysis.api import find_instrument
from implicit_reasoning.analysis.claims import Verdict, describe, judge
from implicit_reasoning.analysis.instrument import Instrument, NotApplicable
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.truth.known import SEEDS, KnownModel, known_models
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, write_json
from implicit_reasoning.model import Transformer
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runtime.machine import provenance

NOT_APPLICABLE: Literal["not applicable"] = "not applicable"
NO_CLAIMS: Literal["makes no claims"] = "makes no claims"


@dataclass(frozen=True)
class Score:
    """One instrument on one model.

    Attributes:
      instrument, model: their names.
      verdict: as of `claims.judge`; or that the instrument cannot be used on this model, or that
        it has no `claims` of its own, so that there is nothing to judge.
      claims: in words, by what is true of them: "true", "false", "open"; see `claims.describe`.
      why: the instrument's own words where it cannot be used.
    """

    instrument: str
    model: str
    verdict: Verdict | Literal["not applicable", "makes no claims"]
    claims: Mapping[str, list[str]]
    why: str = ""


@dataclass(frozen=True)
class Scores:
    """All of them, by instrument, then by model."""

    rows: tuple[Score, ...]

    def verdicts(self) -> dict[str, dict[str, str]]:
        """`{instrument: {model: verdict}}`."""
        table: dict[str, dict[str, str]] = {}
        for row in self.rows:
            table.setdefault(row.instrument, {})[row.model] = row.verdict
        return table

    def summary(self) -> str:
        """A table of counts, an instrument a row: models by verdict, then claims by truth.

        Under it those that make no claims, which have nothing to count.
        """
        verdicts, truths = ("right", "wrong", "silent", NOT_APPLICABLE), ("true", "false", "open")
        lines = [
            _cells(["instrument", *verdicts, *(f"claims {word}" for word in truths)]),
            _cells(["---"] * (1 + len(verdicts) + len(truths))),
        ]
        mute = list(dict.fromkeys(row.instrument for row in self.rows if row.verdict == NO_CLAIMS))
        for name in self.verdicts():
            if name in mute:
                continue
            rows = [row for row in self.rows if row.instrument == name]
            models = [sum(row.verdict == verdict for row in rows) for verdict in verdicts]
            claims = [sum(len(row.claims.get(word, ())) for row in rows) for word in truths]
            lines.append(_cells([name, *models, *claims]))
        if mute:
            lines += ["", f"Not run, because nothing is claimed: {', '.join(mute)}."]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `scores.md` for people and `scores.json` for programs."""
        folder = local_folder(folder, "folder")
        about = {"scores": [asdict(row) for row in self.rows], "made_with": provenance()}
        write_json(folder / "scores.json", about)
        with atomic_write(folder / "scores.md") as file:
            file.write(self.markdown())

    def markdown(self) -> str:
        """The summary; a table of verdicts, a model a row; then what was claimed, in words."""
        table = self.verdicts()
        models = list(dict.fromkeys(row.model for row in self.rows))
        lines = [self.summary()]
        lines += [_cells(["model", *table]), _cells(["---"] * (1 + len(table)))]
        lines += [_cells([name, *(table[i].get(name, "") for i in table)]) for name in models]
        for row in self.rows:
            if row.verdict == NO_CLAIMS:
                continue  # the table has said it
            lines += ["", f"## {row.instrument} on {row.model}: {row.verdict}", ""]
            lines += _in_words(row)
        return "\n".join(lines) + "\n"


def score(
    instruments: Sequence[str | Instrument],
    *,
    cache: str | os.PathLike[str],
    seeds: Sequence[int] = SEEDS,
    models: Sequence[KnownModel] | None = None,
    save: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Scores:
    """Run instruments on models of known mechanism, and judge what they claim.

    Args:
      instruments: by name or import path (see `analyze`), or themselves; one of your own needs
        nothing but `claims`.
      cache: a folder for the models that have to be trained; see `known_models`.
      seeds: of the random family.
      models: to score on, instead of `known_models(cache, seeds)`.
      save: a folder to write the scores to, after each instrument: see `Scores.save`.
      progress: show a bar on standard error.

    Raises:
      InputError: no such instrument, two of one name, or the models cannot be had.
    """
    chosen = [find_instrument(instrument) for instrument in instruments]
    names = [instrument.name for instrument in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"instruments need different names to be scored, got {', '.join(names)}")
    models = known_models(local_folder(cache, "cache"), seeds) if models is None else models
    rows: list[Score] = []
    with tqdm(total=len(chosen) * len(models), unit="model", disable=not progress) as bar:
        for instrument in chosen:
            bar.set_description(f"score {instrument.name}")
            runners: dict[Transformer, Runner] = {}  # each shape is compiled once
            for known in models:
                rows.append(_score_one(instrument, known, runners))
                bar.update()
            # Every program is hundreds of memory maps, of which a process has 65,530 on Linux.
            jax.clear_caches()
            if save is not None:
                Scores(tuple(rows)).save(save)
    return Scores(tuple(rows))


def _score_one(
    instrument: Instrument, known: KnownModel, runners: dict[Transformer, Runner]
) -> Score:
    if type(instrument).claims is Instrument.claims:
        return Score(instrument.name, known.name, NO_CLAIMS, {})
    model = known.subject.model
    runner = runners.setdefault(model, Runner(instrument, model))
    last = known.subject.steps[-1:]
    try:
        result = measure(instrument, known.subject, last, runner=runner, progress=False)
    except NotApplicable as error:
        return Score(instrument.name, known.name, NOT_APPLICABLE, {}, str(error))
    claims = instrument.claims(result.isel(step=0, drop=True))
    found = describe(claims, known.mechanism)
    return Score(instrument.name, known.name, judge(claims, known.mechanism), found)


def _cells(texts: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, texts))} |"


def _in_words(row: Score) -> list[str]:
    if row.why:
        return [row.why]
    return [f"- {word}: {', '.join(said)}" for word, said in row.claims.items() if said]
