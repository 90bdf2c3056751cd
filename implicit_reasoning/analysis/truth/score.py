"""Score instruments on models whose mechanism is known.

Each instrument measures the last checkpoint of each model. The claims of the instrument are
compared with the truth. The thresholds for claims are constants in the module of the instrument,
and do not depend on the model. The verdict is "wrong" if any claim is false. The verdict is "right"
if no claim is false and at least one claim is true. Otherwise, the verdict is "silent". Instruments
without a `claims` method are not run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import jax

from implicit_reasoning.analysis.api import find_instrument
from implicit_reasoning.analysis.claims import Claim, Mechanism, Verdict, describe, judge
from implicit_reasoning.analysis.instrument import Instrument, NotApplicable
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.truth.known import SEEDS, KnownModel, known_models
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, write_json
from implicit_reasoning.formatting import card, note, plural, table
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.units import State, WholeModel
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.runtime.progress import ProgressBar

NOT_APPLICABLE: Literal["not applicable"] = "not applicable"
NO_CLAIMS: Literal["makes no claims"] = "makes no claims"
_VERDICTS, _TRUTHS = ("right", "wrong", "silent", NOT_APPLICABLE), ("true", "false", "open")
_SUMMARY = ("instrument", *_VERDICTS, *(f"claims {word}" for word in _TRUTHS))


@dataclass(frozen=True)
class Score:
    """The verdict about one instrument on one model.

    Attributes:
      instrument: the name of the instrument.
      model: the name of the model.
      verdict: "right", "wrong" or "silent", as `claims.judge` defines. The verdict is "not
        applicable" if the instrument cannot measure this model, and "makes no claims" if the
        instrument has no `claims` method.
      claims: the true, false and open claims as text, under the keys "true", "false" and "open".
      why: the reason for the verdict "not applicable"; otherwise empty.
      found: for each kind of claim and type of unit, such as "moves, Head", the number of true
        claims that were made, and the number of all true claims. Claims about states and about
        the whole model are not counted, because most of them follow from others.
    """

    instrument: str
    model: str
    verdict: Verdict | Literal["not applicable", "makes no claims"]
    claims: Mapping[str, list[str]]
    why: str = ""
    found: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """The verdicts about all instruments on all models.

    Attributes:
      rows: the verdicts, sorted by instrument and then by model.
    """

    rows: tuple[Score, ...]

    def verdicts(self) -> dict[str, dict[str, str]]:
        """Return the verdicts as a nested dict, `{instrument: {model: verdict}}`."""
        table: dict[str, dict[str, str]] = {}
        for row in self.rows:
            table.setdefault(row.instrument, {})[row.model] = row.verdict
        return table

    def summary(self) -> str:
        """Return a Markdown table with counts of verdicts and claims for each instrument.

        The columns are the number of models with each verdict, and the number of true, false and
        open claims. Instruments that make no claims are listed below the table.
        """
        lines = [_cells(_SUMMARY), _cells(["---"] * len(_SUMMARY)), *map(_cells, self._counts())]
        if mute := self._without_claims():
            lines += ["", _not_run(mute)]
        return "\n".join(lines) + "\n"

    def _counts(self) -> list[list[Any]]:
        """Return the rows of the summary."""
        mute, found = self._without_claims(), []
        for name in self.verdicts():
            if name in mute:
                continue
            rows = [row for row in self.rows if row.instrument == name]
            models = [sum(row.verdict == verdict for row in rows) for verdict in _VERDICTS]
            claims = [sum(len(row.claims.get(word, ())) for row in rows) for word in _TRUTHS]
            found.append([name, *models, *claims])
        return found

    def _found(self, models: Sequence[str]) -> list[str]:
        """Return a table of how many of the true claims were made, by model.

        It has the kinds of claims that an instrument made about at least one model.
        """
        of = {(row.instrument, row.model): row.found for row in self.rows}
        columns = dict.fromkeys(
            (row.instrument, kind)
            for row in self.rows
            for kind, (made, _) in row.found.items()
            if made
        )
        if not columns:
            return []

        def cell(name: str, model: str, kind: str) -> str:
            made, total = of.get((name, model), {}).get(kind, (0, 0))
            return f"{made:,} of {total:,}" if total else ""

        head = ["model", *(f"{name}: {kind}" for name, kind in columns)]
        body = [[model, *(cell(name, model, kind) for name, kind in columns)] for model in models]
        title = "True claims about heads, neurons and edges that were made, of all that are true:"
        return ["", title, "", _cells(head), _cells(["---"] * len(head)), *map(_cells, body)]

    def _without_claims(self) -> list[str]:
        return list(dict.fromkeys(row.instrument for row in self.rows if row.verdict == NO_CLAIMS))

    def _about(self) -> str:
        counts = Counter[str](row.verdict for row in self.rows)
        models = len({row.model for row in self.rows})
        verdicts = [f"{counts[verdict]:,} {verdict}" for verdict in _VERDICTS]
        return (
            f"{plural(len(self.verdicts()), 'instrument')}, {plural(models, 'model')}: "
            f"{', '.join(verdicts)}, {counts[NO_CLAIMS]:,} without claims"
        )

    def __repr__(self) -> str:
        return f"Scores({self._about()})"

    def _repr_html_(self) -> str:
        parts = [table(_SUMMARY, self._counts(), limit=len(self.rows))]
        if mute := self._without_claims():
            parts.append(note(_not_run(mute)))
        return card("Scores", self._about(), *parts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files `scores.md` and `scores.json` to a folder."""
        folder = local_folder(folder, "folder")
        about = {"scores": [asdict(row) for row in self.rows], "made_with": provenance()}
        write_json(folder / "scores.json", about)
        with atomic_write(folder / "scores.md") as file:
            file.write(self.markdown())

    def markdown(self) -> str:
        """Return a Markdown report.

        The report has the summary, a table of verdicts by model and instrument, a table of how many
        true claims were made, and all claims.
        """
        table = self.verdicts()
        models = list(dict.fromkeys(row.model for row in self.rows))
        lines = [self.summary()]
        lines += [_cells(["model", *table]), _cells(["---"] * (1 + len(table)))]
        lines += [_cells([name, *(table[i].get(name, "") for i in table)]) for name in models]
        lines += self._found(models)
        for row in self.rows:
            if row.verdict == NO_CLAIMS:
                continue  # The tables above show this verdict.
            lines += ["", f"## {row.instrument} on {row.model}: {row.verdict}", ""]
            lines += _in_words(row)
        return "\n".join(lines) + "\n"


def count_found(claims: Set[Claim], mechanism: Mechanism) -> dict[str, list[int]]:
    """Count the true claims that were made, and all true claims, by kind and type of unit."""

    def counts(of: Iterable[Claim]) -> Counter[str]:
        return Counter(
            f"{claim.kind}, {type(claim.unit).__name__}"
            for claim in of
            if not isinstance(claim.unit, (State, WholeModel))
        )

    made = counts(claims & mechanism.true)
    return {kind: [made[kind], total] for kind, total in sorted(counts(mechanism.true).items())}


def score(
    instruments: Sequence[str | Instrument],
    *,
    cache: str | os.PathLike[str],
    seeds: Sequence[int] = SEEDS,
    models: Sequence[KnownModel] | None = None,
    save: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Scores:
    """Run instruments on models with known mechanisms, and judge the claims.

    Args:
      instruments: names, import paths (see `analyze`) or instances of instruments. Instruments
        without a `claims` method are not run.
      cache: the folder with the runs of the trained models. Missing models are trained.
      seeds: the seeds of the random family of planted models.
      models: the models to measure; default: `known_models(cache, seeds)`.
      save: a folder to which `Scores.save` writes after each instrument; None saves nothing.
      progress: whether to show a progress bar on standard error.

    Raises:
      InputError: an instrument does not exist, two instruments have the same name, or the cache
        contains a run with a different configuration.
    """
    chosen = [find_instrument(instrument) for instrument in instruments]
    names = [instrument.name for instrument in chosen]
    if len(set(names)) < len(names):
        raise InputError(
            "instruments that are scored together must have different names, got "
            f"{', '.join(names)}"
        )
    models = known_models(local_folder(cache, "cache"), seeds) if models is None else models
    rows: list[Score] = []
    with ProgressBar(len(chosen) * len(models), unit="model", shown=progress) as bar:
        for instrument in chosen:
            bar.set_title(f"score {instrument.name}")
            runners: dict[Transformer, Runner] = {}  # Equal models share compiled programs.
            for known in models:
                rows.append(_score_one(instrument, known, runners))
                bar.advance()
            # A compiled program uses hundreds of memory mappings. Linux allows 65,530 per process.
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
    verdict = judge(claims, known.mechanism)
    counts = count_found(claims, known.mechanism)
    return Score(instrument.name, known.name, verdict, found, found=counts)


def _cells(texts: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, texts))} |"


def _not_run(mute: Sequence[str]) -> str:
    return f"Not run, because they make no claims: {', '.join(mute)}."


def _in_words(row: Score) -> list[str]:
    if row.why:
        return [row.why]
    return [f"- {word}: {', '.join(said)}" for word, said in row.claims.items() if said]
