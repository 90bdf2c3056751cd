"""A dataset: rows of tokens, their supervised targets, and the truth about each row.

A task creates `Rows` for each split and combines them with `assemble`. For chains,
`spelling.rows_from_chains` creates the `Rows`. Training, evaluation and all instruments read the
resulting `Dataset`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_npz, write_npz
from implicit_reasoning.worlds.chains import exposure
from implicit_reasoning.worlds.world import NONE, World

FORMAT_VERSION = 2
"""Version of `world.npz`; increased whenever a reader of the old format would misread new files."""

END_TOKEN = "</a>"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training rows followed by test rows, with the truth about each row.

    In tasks of chains with one token per entity, the token id of entity `e` is `e`, the token id of
    relation `r` is `n_entities + r`, and `</a>`, if used, is the last token. The module `spelling`
    describes entities with two tokens.

    Attributes:
      tokens: int32 [row, pos], the inputs, padded on the right with 0. Token 0 is also an ordinary
        token. Attention is causal, so no supervised position attends to padding.
      targets: int32 [row, pos], token to predict at each position; -1 if the position is not
        supervised.
      split: int8 [row], index into `splits`; int16 from 129 splits on, int32 from 32,769 on.
      splits: names of the splits.
      n_train: number of training rows; the training rows are rows 0 to n_train - 1.
      probe: bool [row], the rows that evaluation uses.
      truth: columns int32 [row]; -1 if a row has no value. All tasks have `answer` (a token) and
        `position` (the position that predicts the answer). If answers have several tokens, there
        are also `answer2`, `position2`, and so on. Tasks of chains also have the entities and
        relations of the chain in `world` (e1, r1, e2, r2, ...), its facts (fact1, ...), the roles
        of the facts as indices into `ROLES` (role1, ...), and the number of training chains that
        use the fact at that hop (exposure1, ...). If a task teaches answers that contradict
        `world`, `answer` is the taught answer.
      vocab: names of the tokens.
      positions: names of the positions of the longest prompts, such as ("e1", "r1", "r2").
      world: the world of the facts; None if the task has no facts.
    """

    tokens: Int[np.ndarray, "row pos"]
    targets: Int[np.ndarray, "row pos"]
    split: Int[np.ndarray, " row"]
    splits: tuple[str, ...]
    n_train: int
    probe: Bool[np.ndarray, " row"]
    truth: dict[str, Int[np.ndarray, " row"]]
    vocab: tuple[str, ...]
    positions: tuple[str, ...]
    world: World | None = None

    def __post_init__(self) -> None:
        """Check that all indices are in range, because JAX would clamp them without an error.

        Raises:
          InputError: a token is not in `vocab`, or a position is outside the row.
        """
        columns = {
            "tokens": (self.tokens, 0, self.n_vocab),
            "targets": (self.targets, NONE, self.n_vocab),
        }
        for name, column in self.truth.items():
            if re.fullmatch(r"answer\d*", name):
                columns[f"truth {name!r}"] = column, NONE, self.n_vocab
            elif re.fullmatch(r"position\d*", name):
                columns[f"truth {name!r}"] = column, NONE, self.n_ctx
        for name, (values, low, end) in columns.items():
            if len(values) and (values.min() < low or values.max() >= end):
                wrong = values[(values < low) | (values >= end)][0]
                raise InputError(
                    f"invalid dataset: {name} contains the value {wrong}; with "
                    f"{self.n_vocab:,} tokens and {self.n_ctx} positions, values must be "
                    f"between {low} and {end - 1:,}"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocab)

    @property
    def n_ctx(self) -> int:
        """Length of a row, in tokens."""
        return self.tokens.shape[1]

    @property
    def hops(self) -> int:
        """Largest number of facts in a row; for chains, the number of hops."""
        return len(columns(self.truth, "fact"))

    @property
    def bridge(self) -> Int[np.ndarray, " row"]:
        """Bridge entity e2 between the first and the second hop, int32 [row]; -1 for atomic rows.

        Raises:
          InputError: the task does not consist of chains.
        """
        if "r2" not in self.truth:
            raise InputError(
                "this dataset has no bridge entities: its task does not consist of chains"
            )
        return np.where(self.truth["fact2"] >= 0, self.truth["e2"], np.int32(NONE))

    @property
    def answers(self) -> Int[np.ndarray, "row token"]:
        """All tokens of each answer, int32 [row, token]; shorter answers are padded with -1."""
        return np.column_stack([self.truth["answer"], *columns(self.truth, "answer", start=2)])

    @property
    def answer_positions(self) -> Int[np.ndarray, "row token"]:
        """Positions that predict the tokens of `answers`, int32 [row, token]; padded with -1."""
        return np.column_stack([self.truth["position"], *columns(self.truth, "position", start=2)])

    @property
    def exposure(self) -> Int[np.ndarray, "fact hop"]:
        """Number of training chains that use each fact at each hop, int32 [fact, hop]."""
        return _exposure(self.truth, self.n_train, world_of(self).n_facts)

    def rows(self, split: str) -> Int[np.ndarray, " row"]:
        """Return the row numbers of a split, in increasing order."""
        return np.flatnonzero(self.split == self._index(split))

    def probes(self, split: str) -> Int[np.ndarray, " row"]:
        """Return the row numbers of the probes of a split, i.e. the rows that evaluation uses."""
        return np.flatnonzero((self.split == self._index(split)) & self.probe)

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of every split."""
        counts = np.bincount(self.split, minlength=len(self.splits))
        return dict(zip(self.splits, counts.tolist(), strict=True))

    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of the contents.

        Equal datasets have the same fingerprint on all machines.
        """
        digest = hashlib.sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset to one uncompressed `.npz` file, atomically."""
        arrays = self._arrays()
        arrays["format_version"] = np.asarray(FORMAT_VERSION)
        arrays["fingerprint"] = np.asarray(self.fingerprint())
        write_npz(path, arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Dataset:
        """Load a dataset that `save` wrote, and verify its fingerprint.

        Raises:
          InputError: the file is missing, truncated, modified, in a different format version, or
            not a dataset.
        """
        arrays: dict[str, Any] = read_npz(path, "dataset file")
        version, fingerprint = arrays.pop("format_version", None), arrays.pop("fingerprint", None)
        if version is None or fingerprint is None:
            raise InputError(
                f"{path} is not a dataset file: format_version or fingerprint is missing"
            )
        if version != FORMAT_VERSION:
            raise InputError(f"{path} has format version {version}, expected {FORMAT_VERSION}")
        try:
            dataset = _from_arrays(arrays)
        except KeyError as error:
            raise InputError(f"{path} is not a dataset file: {error} is missing") from None
        except InputError as error:
            raise InputError(f"{path} was changed after it was written: {error}") from None
        if dataset.fingerprint() != fingerprint:
            raise InputError(
                f"{path} was changed after it was written: the fingerprint does not match the "
                "contents"
            )
        return dataset

    def _index(self, split: str) -> int:
        if split not in self.splits:
            raise InputError(
                f"there is no split {split!r}; the splits of this dataset are "
                f"{', '.join(self.splits)}"
            )
        return self.splits.index(split)

    def _arrays(self) -> dict[str, np.ndarray]:
        # Saving and fingerprinting use the same arrays, so that the fingerprint covers the whole
        # file.
        arrays: dict[str, np.ndarray] = {
            "tokens": self.tokens,
            "targets": self.targets,
            "split": self.split,
            "splits": np.array(self.splits, np.str_),
            "n_train": np.asarray(self.n_train, np.int64),
            "probe": self.probe,
            "vocab": np.array(self.vocab, np.str_),
            "positions": np.array(self.positions, np.str_),
            **{f"truth/{name}": column for name, column in self.truth.items()},
        }
        if self.world is not None:
            arrays["world/tail"] = self.world.tail
            arrays["world/role"] = self.world.role
            arrays["world/seed"] = np.asarray(self.world.seed, np.int64)
        return arrays


def world_of(dataset: Dataset) -> World:
    """Return the world of a dataset.

    Raises:
      InputError: the dataset has no world.
    """
    if dataset.world is None:
        raise InputError("this dataset has no world: its task does not consist of facts")
    return dataset.world


def columns(truth: Mapping[str, np.ndarray], name: str, start: int = 1) -> list[np.ndarray]:
    """Return the truth columns with numbered names, such as fact1, fact2, ... for "fact".

    Args:
      truth: truth columns by name.
      name: the name without number.
      start: the first number.
    """
    found: list[np.ndarray] = []
    while f"{name}{start + len(found)}" in truth:
        found.append(truth[f"{name}{start + len(found)}"])
    return found


class Rows(NamedTuple):
    """Rows of one split before they are combined into a dataset.

    The fields are the fields of `Dataset` with the same names.
    """

    tokens: Int[np.ndarray, "row pos"]
    targets: Int[np.ndarray, "row pos"]
    truth: dict[str, Int[np.ndarray, " row"]]


def make_rows(
    prompt: Sequence[Int[np.ndarray, " row"]],
    answer: Sequence[Int[np.ndarray, " row"]],
    truth: Mapping[str, Int[np.ndarray, " row"]],
    end: int | None = None,
) -> Rows:
    """Create rows with input `prompt` and supervised `answer`: `[a, b, c] -> d`.

    If several tokens are predicted, all of them except the last are also inputs. With an end token,
    for example, the input is `[a, b, c, d]` and the targets are `[-1, -1, d, end]`.

    Args:
      prompt: tokens of the prompt, one column [row] per token.
      answer: tokens of the answer, one column [row] per token; at least one.
      truth: further truth columns. This function adds `answer` and `position` and, for answers of
        several tokens, `answer2`, `position2`, and so on.
      end: token that is appended to the answer and supervised; None to append nothing.
    """
    n_rows, last = len(answer[0]), len(prompt) - 1
    ending = [*answer, *([] if end is None else [np.full(n_rows, end, np.int32)])]
    tokens = np.empty((n_rows, last + len(ending)), np.int32)
    targets = np.full_like(tokens, NONE)
    for place, column in enumerate([*prompt, *ending[:-1]]):
        tokens[:, place] = column
    for place, column in enumerate(ending, start=last):
        targets[:, place] = column
    known = {name: column.astype(np.int32, copy=False) for name, column in truth.items()}
    for number, column in enumerate(answer):
        suffix = str(number + 1) if number else ""
        known[f"answer{suffix}"] = column.astype(np.int32, copy=False)
        known[f"position{suffix}"] = np.full(n_rows, last + number, np.int32)
    return Rows(tokens, targets, known)


def assemble(
    trained: Mapping[str, Rows],
    tested: Mapping[str, Rows],
    *,
    vocab: tuple[str, ...],
    positions: tuple[str, ...],
    probes: int,
    world: World | None = None,
) -> Dataset:
    """Combine splits into a dataset; the first `probes` rows of each split are its probes.

    The caller must shuffle the rows of each split. The probes are then a random sample. Shorter
    rows are padded with token 0. Truth columns that a split lacks are filled with -1. The columns
    exposure1, ... count the training chains that use each fact.

    Args:
      trained: rows by name of the training split.
      tested: rows by name of the test split.
      vocab: names of the tokens.
      positions: names of the positions of the longest prompts.
      probes: maximum number of probes per split.
      world: the world of the facts; None if the task has no facts.

    Raises:
      RuntimeError: a test prompt is also a training prompt, which is an error in the task.
    """
    splits = {**trained, **tested}
    parts = list(splits.values())
    sizes = [len(part.tokens) for part in parts]
    n_train = sum(sizes[: len(trained)])
    truth = _stack_truth([part.truth for part in parts], sizes)
    if world is not None:
        truth |= _exposure_columns(truth, n_train, world.n_facts)
    dataset = Dataset(
        tokens=_stack([part.tokens for part in parts], padding=0),
        targets=_stack([part.targets for part in parts], padding=NONE),
        split=np.repeat(np.arange(len(splits), dtype=_split_type(len(splits))), sizes),
        splits=tuple(splits),
        n_train=n_train,
        probe=np.concatenate([np.arange(size) < probes for size in sizes]),
        truth=truth,
        vocab=vocab,
        positions=positions,
        world=world,
    )
    _check_no_test_row_is_trained(dataset)
    return dataset


def _split_type(count: int) -> type[np.signedinteger[Any]]:
    """Return the smallest integer type for a number of splits: int8 for up to 128 splits.

    The dtype is part of the fingerprint. Existing datasets have int8, and their fingerprints must
    not change.
    """
    types = (np.int8, np.int16, np.int32)
    return next(kind for kind in types if count - 1 <= np.iinfo(kind).max)


def prefix_keys(tokens: Int[np.ndarray, "row pos"], n_vocab: int) -> Int[np.ndarray, "row pos"]:
    """Number the distinct prefixes at each position, int64 [row, pos].

    The prefix at a position consists of the tokens up to and including the position. Two rows have
    the same number at a position if and only if they have the same prefix. In a causal model, equal
    prefixes have equal hidden states, so the numbers identify distinct states.

    Args:
      tokens: token ids.
      n_vocab: number of tokens in the vocabulary.
    """
    keys = np.empty(tokens.shape, np.int64)
    key, bound = np.zeros(len(tokens), np.int64), 1
    for position in range(tokens.shape[1]):
        if bound * n_vocab >= 2**63:  # would overflow: renumber the prefixes
            key, bound = np.unique(key, return_inverse=True)[1], len(tokens)
        key = key * n_vocab + tokens[:, position]
        bound *= n_vocab
        keys[:, position] = key
    return keys


def prompt_keys(dataset: Dataset) -> Int[np.ndarray, " row"]:
    """Return a number that identifies the prompt of each row, int64 [row].

    Two rows have the same number if and only if they have the same prompt.
    """
    position = dataset.truth["position"]
    keys = prefix_keys(dataset.tokens, dataset.n_vocab)[np.arange(len(dataset)), position]
    if dataset.n_vocab**dataset.n_ctx * dataset.n_ctx >= 2**63:  # would overflow: renumber them
        keys = np.unique(keys, return_inverse=True)[1]
    return keys * dataset.n_ctx + position


def _stack(parts: list[np.ndarray], padding: int) -> np.ndarray:
    width = max(part.shape[1] for part in parts)
    stacked = np.full((sum(map(len, parts)), width), padding, np.int32)
    start = 0
    for part in parts:
        stacked[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return stacked


def _stack_truth(
    parts: list[dict[str, np.ndarray]], sizes: list[int]
) -> dict[str, Int[np.ndarray, " row"]]:
    # The split with the most columns sets their order: chains have columns that facts lack.
    names = dict.fromkeys(name for truth in sorted(parts, key=len, reverse=True) for name in truth)
    none = [np.full(size, NONE, np.int32) for size in sizes]
    return {
        name: np.concatenate([truth.get(name, nil) for truth, nil in zip(parts, none, strict=True)])
        for name in names
    }


def _exposure(truth: Mapping[str, np.ndarray], n_train: int, n_facts: int) -> np.ndarray:
    facts = np.column_stack([column[:n_train] for column in columns(truth, "fact")])
    chains = facts[facts[:, -1] >= 0]  # atomic rows have no last hop
    return exposure(chains, n_facts)


def _exposure_columns(
    truth: Mapping[str, np.ndarray], n_train: int, n_facts: int
) -> dict[str, Int[np.ndarray, " row"]]:
    facts = columns(truth, "fact")
    if not facts:
        return {}
    counts = _exposure(truth, n_train, n_facts)
    return {
        f"exposure{hop + 1}": np.where(fact >= 0, counts[fact, hop], np.int32(NONE))
        for hop, fact in enumerate(facts)
    }


_PRIME = 4_194_301


def _check_no_test_row_is_trained(dataset: Dataset) -> None:
    keys = prompt_keys(dataset)
    trained, tested = keys[: dataset.n_train], keys[dataset.n_train :]
    # Only training prompts whose hash collides with that of a test prompt have to be sorted.
    remainders = np.zeros(_PRIME, bool)
    remainders[tested % _PRIME] = True
    leaked = np.isin(tested, trained[remainders[trained % _PRIME]])
    if leaked.any():
        row = dataset.n_train + int(np.argmax(leaked))
        prompt = dataset.tokens[row, : dataset.truth["position"][row] + 1]
        text = "".join(dataset.vocab[token] for token in prompt)
        split = dataset.splits[dataset.split[row]]
        raise RuntimeError(
            f"{int(leaked.sum())} test rows are also training rows, for example {text} in "
            f"the split {split}"
        )


def _from_arrays(arrays: dict[str, Any]) -> Dataset:
    world = None
    if "world/tail" in arrays:
        world = World(arrays["world/tail"], arrays["world/role"], int(arrays["world/seed"]))
    truth = {key[6:]: column for key, column in arrays.items() if key.startswith("truth/")}
    return Dataset(
        tokens=arrays["tokens"],
        targets=arrays["targets"],
        split=arrays["split"],
        splits=tuple(arrays["splits"].tolist()),
        n_train=int(arrays["n_train"]),
        probe=arrays["probe"],
        truth=truth,
        vocab=tuple(arrays["vocab"].tolist()),
        positions=tuple(arrays["positions"].tolist()),
        world=world,
    )
