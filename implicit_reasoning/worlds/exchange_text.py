"""The text of a GrokkedTransformer folder as one table of integers: parsing, and its errors.

Only the syntax is known here; what the rows mean is in `exchange`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.worlds.chains import expand
from implicit_reasoning.worlds.dataset import END_TOKEN
from implicit_reasoning.worlds.world import NONE

ROW_FILES = ("train.json", "test.json", "valid.json")
"""The files of rows, in the order in which they are read."""


class Table(NamedTuple):
    """All rows of the folder: those of `train.json` first, then those of `test.json`."""

    folder: Path
    n_train: int
    n_entities: int
    n_relations: int
    prompt: Int[np.ndarray, "row pos"]  # tokens, padded with 0
    hops: Int[np.ndarray, "row"]
    answer: Int[np.ndarray, "row"]
    type: list[str]  # of the rows of test.json, as written there

    def error(self, row: int, what: str) -> InputError:
        """An error that says in which file and where in it the row is."""
        return _error(self.folder, [self.n_train], row, what)

    def name(self, row: int) -> str:
        """The row's prompt as it is written in the file."""
        first, *others = self.prompt[row, : self.hops[row] + 1].tolist()
        return f"<e_{first}>" + "".join(f"<r_{token - self.n_entities}>" for token in others)


def _error(folder: Path, ends: list[int], row: int, what: str) -> InputError:
    file = sum(row >= end for end in ends)
    row -= ends[file - 1] if file else 0
    return InputError(f"{folder / ROW_FILES[file]}, row {row}: {what}")


def read_table(folder: Path) -> Table:
    """Read all files of the layout.

    Raises:
      InputError: a file is missing, is not complete JSON, or has a row that is not of this form: an
        entity, one relation or more, an entity, `</a>`, all of them in the vocabulary.
    """
    n_entities, n_relations = _read_vocab(folder / "vocab.json")
    texts = [_read_texts(folder / name) for name in ROW_FILES]
    ends = np.cumsum([len(inputs) for inputs, _, _ in texts]).tolist()
    if not ends[0]:
        raise InputError(f"{folder / ROW_FILES[0]} has no rows")
    inputs, targets = ([text for file in texts for text in file[kind]] for kind in (0, 1))
    for i, (start, whole) in enumerate(zip(inputs, targets, strict=True)):
        if not (whole.startswith(start) and whole.endswith(END_TOKEN)):
            what = f"target_text {whole!r} is not input_text {start!r}, an answer and {END_TOKEN}"
            raise _error(folder, ends, i, what)

    # Every token ends in ">": one split over all files, one look-up a token.
    names = "".join(targets).split(">")[:-1]
    vocab = (f"<e_{i}" for i in range(n_entities)), (f"<r_{i}" for i in range(n_relations))
    number = {name: i for i, name in enumerate((*vocab[0], *vocab[1], END_TOKEN[:-1]))}
    tokens = np.fromiter((number.get(name, NONE) for name in names), np.int64, len(names))
    length = np.array([text.count(">") for text in targets], np.int64)
    row, place = expand(np.zeros_like(length), length)
    if (tokens < 0).any():
        bad = int(np.argmax(tokens < 0))
        raise _error(folder, ends, int(row[bad]), f"unknown token {names[bad] + '>'!r}")

    grid = np.full((len(length), int(length.max(initial=3))), NONE)
    grid[row, place] = tokens
    hops = np.array([text.count(">") for text in inputs], np.int64) - 1
    wrong = ~_is_well_formed(grid, length, hops, n_entities, n_relations)
    if wrong.any():
        bad = int(np.argmax(wrong))
        what = f"{targets[bad]!r} is not an entity, relations, an entity and {END_TOKEN}"
        raise _error(folder, ends, bad, what)
    prompt = np.where(np.arange(grid.shape[1]) <= hops[:, None], grid, 0)[:, : hops.max() + 1]
    answer = grid[np.arange(len(grid)), hops + 1]
    keep = slice(ends[1])  # the rows of valid.json stand in test.json too
    return Table(
        folder,
        ends[0],
        n_entities,
        n_relations,
        prompt[keep],
        hops[keep],
        answer[keep],
        texts[1][2],
    )


def _is_well_formed(
    grid: np.ndarray, length: np.ndarray, hops: np.ndarray, n_entities: int, n_relations: int
) -> np.ndarray:
    place, hops = np.arange(grid.shape[1]), hops[:, None]
    is_entity = (grid >= 0) & (grid < n_entities)
    is_relation = (grid >= n_entities) & (grid < n_entities + n_relations)
    entities_fit = is_entity == ((place == 0) | (place == hops + 1))
    relations_fit = is_relation == ((place >= 1) & (place <= hops))
    return (entities_fit & relations_fit).all(1) & (length == hops[:, 0] + 3) & (hops[:, 0] >= 1)


def _read_texts(path: Path) -> tuple[list[str], list[str], list[str]]:
    """The input texts, target texts and, of `test.json`, types."""
    rows = read_json(path)
    try:
        inputs = [row["input_text"] for row in rows]
        targets = [row["target_text"] for row in rows]
        types = [str(row["type"]) for row in rows] if path.name == "test.json" else []
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a list of rows in this layout: {error!r}") from None
    return inputs, targets, types


def _read_vocab(path: Path) -> tuple[int, int]:
    """The number of entities and of relations."""
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is not a list of tokens")
    n_entities, n_relations = (
        sum(bool(re.fullmatch(rf"<{kind}_\d+>", name)) for name in names) for kind in "er"
    )
    wanted = [f"<e_{i}>" for i in range(max(1, n_entities))]
    wanted += [f"<r_{i}>" for i in range(max(1, n_relations))]
    missing = [name for name in wanted if name not in set(names)]
    if missing:
        raise InputError(f"{path} has no {missing[0]}: entities and relations count from 0")
    return n_entities, n_relations
