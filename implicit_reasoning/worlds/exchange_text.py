"""Parser for the text of a GrokkedTransformer folder; it returns one table of integers.

This module handles only the syntax. The module `exchange` handles the meaning of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.worlds.chains import expand
from implicit_reasoning.worlds.dataset import END_TOKEN
from implicit_reasoning.worlds.world import NONE

ROW_FILES = ("train.json", "test.json", "valid.json")
"""Files of rows, in the order in which they are read."""

UNKNOWN = -2
"""Marks a token that is not in the vocabulary."""


class TextRows(NamedTuple):
    """The rows of `train.json`, followed by the rows of `test.json`."""

    folder: Path
    n_train: int
    n_entities: int
    n_relations: int
    prompt: Int[np.ndarray, "row pos"]  # token ids, padded with 0
    hops: Int[np.ndarray, " row"]
    answer: Int[np.ndarray, " row"]
    types: list[str]  # types of the rows of test.json, as written there

    def error(self, row: int, what: str) -> InputError:
        """Create an error whose message names the file and the row number.

        Args:
          row: index into the rows of this table.
          what: what is wrong with the row.
        """
        return _error(self.folder, [self.n_train], row, what)

    def name(self, row: int) -> str:
        """Return the prompt of a row as written in the file."""
        first, *others = self.prompt[row, : self.hops[row] + 1].tolist()
        return f"<e_{first}>" + "".join(f"<r_{token - self.n_entities}>" for token in others)


def _error(folder: Path, ends: list[int], row: int, what: str) -> InputError:
    file = sum(row >= end for end in ends)
    row -= ends[file - 1] if file else 0
    return InputError(f"{folder / ROW_FILES[file]}, row {row}: {what}")


def read_table(folder: Path) -> TextRows:
    """Read all files of a GrokkedTransformer folder.

    Raises:
      InputError: a file is missing or is not complete JSON; or a row is not an entity, at least one
        relation, an entity and `</a>`, all from the vocabulary.
    """
    n_entities, n_relations = _read_vocab(folder / "vocab.json")
    texts = [_read_texts(folder / name) for name in ROW_FILES]
    ends = np.cumsum([len(inputs) for inputs, _, _ in texts]).tolist()
    if not ends[0]:
        raise InputError(f"{folder / ROW_FILES[0]} contains no rows")
    inputs, targets = ([text for file in texts for text in file[kind]] for kind in (0, 1))
    for i, (start, whole) in enumerate(zip(inputs, targets, strict=True)):
        if not (whole.startswith(start) and whole.endswith(END_TOKEN)):
            what = f"target_text {whole!r} must be input_text {start!r}, an answer and {END_TOKEN}"
            raise _error(folder, ends, i, what)

    def check(wrong: np.ndarray, what: Callable[[int], str]) -> None:
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise _error(folder, ends, bad, what(bad))

    grid = _tokenise(targets, n_entities, n_relations)
    unknown = (grid == UNKNOWN).any(1)
    check(unknown, lambda i: f"unknown token {_token(targets[i], grid[i] == UNKNOWN)!r}")
    hops = np.array([text.count(">") for text in inputs], np.int64) - 1
    wrong = ~_is_well_formed(grid, hops, n_entities, n_relations)
    form = f"an entity, relations, an entity and {END_TOKEN}"
    check(wrong, lambda i: f"{targets[i]!r} must consist of {form}")

    rows = slice(ends[1])  # the rows of valid.json are also in test.json
    grid, hops = grid[rows], hops[rows]
    answer = grid[np.arange(len(grid)), hops + 1]
    prompt = np.where(np.arange(grid.shape[1]) <= hops[:, None], grid, 0)[:, : hops.max() + 1]
    return TextRows(
        folder, ends[0], n_entities, n_relations, prompt, hops, answer, types=texts[1][2]
    )


def _tokenise(texts: list[str], n_entities: int, n_relations: int) -> Int[np.ndarray, "row place"]:
    """Return the token ids of every text, -1 after the end of the text; `</a>` has the last id."""
    # Every token ends in ">", so one split covers all texts.
    vocab = [f"<e_{i}" for i in range(n_entities)] + [f"<r_{i}" for i in range(n_relations)]
    number = {name: i for i, name in enumerate([*vocab, END_TOKEN[:-1]])}
    names = "".join(texts).split(">")[:-1]
    tokens = np.fromiter((number.get(name, UNKNOWN) for name in names), np.int64, len(names))
    length = np.array([text.count(">") for text in texts], np.int64)
    grid = np.full((len(texts), int(length.max(initial=1))), NONE)
    grid[expand(np.zeros_like(length), length)] = tokens
    return grid


def _token(text: str, where: np.ndarray) -> str:
    return text.split(">")[int(np.argmax(where))] + ">"


def _is_well_formed(
    grid: Int[np.ndarray, "row place"],
    hops: Int[np.ndarray, " row"],
    n_entities: int,
    n_relations: int,
) -> Bool[np.ndarray, " row"]:
    """Return which rows are an entity, `hops` relations (at least one), an entity and `</a>`."""
    kinds = [0, n_entities, n_entities + n_relations, n_entities + n_relations + 1]
    kind = np.searchsorted(kinds, grid, side="right")  # 0 padding, 1 entity, 2 relation, 3 </a>
    place, hops = np.arange(grid.shape[1]), hops[:, None]
    wanted = np.select(
        [place == 0, place <= hops, place == hops + 1, place == hops + 2], [1, 2, 1, 3], default=0
    )
    return (kind == wanted).all(1) & (hops[:, 0] >= 1) & (hops[:, 0] + 3 <= grid.shape[1])


def _read_texts(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the input texts, the target texts and, for `test.json`, the types."""
    rows = read_json(path)
    try:
        inputs = [row["input_text"] for row in rows]
        targets = [row["target_text"] for row in rows]
        types = [str(row["type"]) for row in rows] if path.name == "test.json" else []
    except (TypeError, KeyError, AttributeError) as error:
        wanted = "input_text, target_text and, in test.json, type"
        raise InputError(
            f"{path} must be a list of rows with the fields {wanted}; reading them failed "
            f"with {error!r}"
        ) from None
    return inputs, targets, types


def _read_vocab(path: Path) -> tuple[int, int]:
    """Return the number of entities and the number of relations in the vocabulary."""
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} must be a JSON list of tokens (strings)")
    n_entities, n_relations = (
        sum(bool(re.fullmatch(rf"<{kind}_\d+>", name)) for name in names) for kind in "er"
    )
    wanted = [f"<e_{i}>" for i in range(max(1, n_entities))]
    wanted += [f"<r_{i}>" for i in range(max(1, n_relations))]
    missing = [name for name in wanted if name not in set(names)]
    if missing:
        raise InputError(
            f"{path} does not contain {missing[0]}; entities and relations must be "
            "numbered from 0 without gaps"
        )
    return n_entities, n_relations
