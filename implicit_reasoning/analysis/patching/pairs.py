"""Make pairs of a clean and a corrupt prompt, for patching and attribution.

The two prompts of a pair have the same length, and usually have different answers. An activation
from the forward pass on one prompt is patched into the forward pass on the second prompt. If the
answer changes, the activation contains information on which the answer depends.

A pairs function makes the pairs of a dataset. `PAIRS` contains the built-in pairs functions. Users
can add functions by import path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.patching import functions
from implicit_reasoning.analysis.patching.query_pairs import GROUPS, choose_pairs, replacements
from implicit_reasoning.analysis.states import chain_splits, choose_rows, need_chains
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.dataset import world_of

_MAX_PAIRS = 150  # maximum number of pairs per group
_SEED = 0


@dataclass(frozen=True)
class PromptPairs:
    """Pairs of a clean and a corrupt prompt. Arrays can be numpy arrays or nested lists.

    Attributes:
      clean: int [pair, pos], tokens of the clean prompts, without the answers.
      corrupt: int [pair, pos], tokens of the corrupt prompts, without the answers.
      answer: int [pair], the answer token of each clean prompt.
      corrupt_answer: int [pair], the answer token of each corrupt prompt.
      positions: names of the positions; default: "0", "1", ...
      groups: names of the groups of pairs, such as "train_ii". Means are computed for each group.
      group: int [pair], the group of each pair, as an index into `groups`. None means that all
        pairs are in the first group.
      clusters: int [pair], the cluster of each pair. Pairs in the same cluster are dependent, for
        example because they have the same bridge. Confidence intervals use the spread between
        clusters. None means that each pair is its own cluster.
    """

    clean: Any
    corrupt: Any
    answer: Any
    corrupt_answer: Any
    positions: Sequence[str] = ()
    groups: Sequence[str] = ("pairs",)
    group: Any = None
    clusters: Any = None

    def __len__(self) -> int:
        return len(self.clean)


PairsFunction = Callable[[Dataset], PromptPairs]


def bridge_pairs(dataset: Dataset) -> PromptPairs:
    """Make pairs of queries with different first facts and the same later relations.

    The clean prompts are training queries (e1, r1, r2). The corrupt prompts are (e1', r1', r2),
    with a different first fact. The groups of pairs are `query_pairs.GROUPS`. In the group "same
    bridge", the two prompts have the same bridge (e2) and the same answer. In all remaining groups,
    the two prompts have different bridges and different answers. Pairs whose corrupt prompts have
    the same bridge form a cluster.
    """
    need_chains(dataset)
    found = choose_pairs(dataset)
    keep = np.concatenate(
        [np.flatnonzero(found.group == number)[:_MAX_PAIRS] for number in range(len(GROUPS))]
    )
    target, composed = found.target.only(keep), found.composed.only(keep)
    return PromptPairs(
        clean=queries.prompt_tokens(dataset, target.parts),
        corrupt=queries.prompt_tokens(dataset, composed.parts),
        answer=target.answer,
        corrupt_answer=composed.answer,
        positions=dataset.positions,
        groups=GROUPS,
        group=found.group[keep],
        clusters=world_of(dataset).facts.tail[composed.facts[:, 0]],
    )


def exchange_pairs(token: str, dataset: Dataset) -> PromptPairs:
    """Make pairs of a query and a copy of the query with one replaced token.

    The two queries have different answers. If possible, the query with the new token is a training
    query. The groups are the splits of the clean prompts. Pairs whose clean prompts have the same
    bridge (e2) form a cluster.

    Args:
      token: name of the position at which the token is replaced, such as "r1".
      dataset: a dataset of a chain task.

    Raises:
      NotApplicable: the task is not a chain task, or prompts of the task have no position `token`.
    """
    need_chains(dataset)
    if token not in dataset.positions:
        raise NotApplicable(
            f"pairs 'exchange_{token}' need prompts with the position {token!r}, but prompts of "
            f"this task have only the positions {', '.join(dataset.positions)}"
        )
    place, splits = dataset.positions.index(token), chain_splits(dataset)
    rows, group = choose_rows(dataset, splits, _MAX_PAIRS)
    asked = queries.queries_of_rows(dataset, rows)
    part = queries.prompt_order(dataset)[place]
    new, answer = (x[part] for x in replacements(dataset, asked, np.random.default_rng(_SEED)))
    keep = np.flatnonzero(answer >= 0)
    clean = queries.prompt_tokens(dataset, asked.parts)[keep]
    corrupt = clean.copy()
    corrupt[:, place] = new[keep]
    return PromptPairs(
        clean=clean,
        corrupt=corrupt,
        answer=asked.answer[keep],
        corrupt_answer=answer[keep],
        positions=dataset.positions,
        groups=splits,
        group=group[keep],
        clusters=clusters_of(dataset, rows)[keep],
    )


PAIRS: Mapping[str, PairsFunction] = {
    "bridge": bridge_pairs,
    **{f"exchange_{token}": partial(exchange_pairs, token) for token in ("e1", "r1", "r2", "r3")},
}
"""The built-in pairs, by name."""


def find_pairs(which: str | PairsFunction) -> functions.NamedFunction:
    """Find a function that makes prompt pairs.

    Args:
      which: a key of `PAIRS`, an import path, or a function.

    Raises:
      InputError: the function does not exist, or its source code cannot be read.
    """
    return functions.find_function(which, PAIRS, "pairs")


def make_pairs(found: functions.NamedFunction, dataset: Dataset, model: Transformer) -> PromptPairs:
    """Call a pairs function and check its result.

    Returns:
      The pairs. Lists are converted to arrays, and missing attributes have their default values.

    Raises:
      InputError: the function does not return a `PromptPairs`, or the pairs are invalid for the
        model.
    """
    made = found.call(dataset)
    if not isinstance(made, PromptPairs):
        raise InputError(
            f"pairs function {found.name} returned an object of type {type(made).__name__}; return "
            "an implicit_reasoning.analysis.PromptPairs instead"
        )
    try:
        return _checked(made, model)
    except _Fault as fault:
        raise InputError(f"pairs function {found.name} returned invalid pairs: {fault}") from None


class _Fault(Exception):
    """Raised if pairs are invalid. `make_pairs` adds the name of the function to the message."""


def _checked(made: PromptPairs, model: Transformer) -> PromptPairs:
    clean, corrupt = _prompts(made, model)
    count, n_pos = clean.shape
    answer, corrupt_answer = (
        _tokens(getattr(made, name), name, (count,), model) for name in ("answer", "corrupt_answer")
    )
    positions = tuple(made.positions) or tuple(map(str, range(n_pos)))
    if len(positions) != n_pos or len(set(positions)) != n_pos:
        raise _Fault(
            f"positions are {positions}, but prompts of {n_pos} tokens need {n_pos} different names"
        )
    groups = tuple(made.groups)
    group = np.zeros(count, np.int64) if made.group is None else _whole(made.group, "group")
    clusters = np.arange(count) if made.clusters is None else _whole(made.clusters, "clusters")
    for name, values in (("group", group), ("clusters", clusters)):
        if values.shape != (count,):
            raise _Fault(f"{name} has shape {values.shape}, expected ({count},) for {count} pairs")
        if (values < 0).any():
            raise _Fault(f"{name} contains the number {values.min()}; numbers must be at least 0")
    if not groups or group.max() >= len(groups):
        raise _Fault(
            f"group contains the index {group.max()}, but groups contains only {len(groups)} "
            "names; indices start at 0"
        )
    return PromptPairs(
        clean, corrupt, answer, corrupt_answer, positions, groups, group, clusters.astype(np.int64)
    )


def _prompts(made: PromptPairs, model: Transformer) -> tuple[np.ndarray, np.ndarray]:
    clean, corrupt = _whole(made.clean, "clean"), _whole(made.corrupt, "corrupt")
    if clean.ndim != 2 or not clean.size:
        raise _Fault(
            f"clean has shape {clean.shape}, expected [pair, pos] with at least one pair and one "
            "position"
        )
    if corrupt.ndim == 2 and corrupt.shape[1] != clean.shape[1]:
        raise _Fault(
            f"clean prompts have {clean.shape[1]} tokens, but corrupt prompts have "
            f"{corrupt.shape[1]} tokens; make the lengths equal"
        )
    if clean.shape[1] > model.spec.n_ctx:
        raise _Fault(
            f"prompts have {clean.shape[1]} tokens, but the model accepts at most "
            f"{model.spec.n_ctx} tokens; shorten the prompts"
        )
    return _tokens(clean, "clean", clean.shape, model), _tokens(
        corrupt, "corrupt", clean.shape, model
    )


def _tokens(values: Any, name: str, shape: tuple[int, ...], model: Transformer) -> np.ndarray:
    tokens, vocabulary = _whole(values, name), model.spec.d_vocab
    if tokens.shape != shape:
        raise _Fault(f"{name} has shape {tokens.shape}, expected {shape}")
    wrong = np.argwhere((tokens < 0) | (tokens >= vocabulary))
    if len(wrong):
        raise _Fault(
            f"{name} contains the token {tokens[tuple(wrong[0])]} in pair {wrong[0][0]}; use only "
            f"tokens from 0 to {vocabulary - 1}"
        )
    return tokens.astype(np.int32)


def _whole(values: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise _Fault(f"the rows of {name} have different lengths; make the lengths equal") from None
    if found.dtype.kind not in "iu":
        raise _Fault(f"{name} has type {found.dtype}, expected an integer type")
    return found
