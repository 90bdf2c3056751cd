"""The settings of every task of the lab: their types, and what they mean.

A task of a user has the settings that its function reads. `watched` notices those that it does not
read, and those that it looks for and that are not there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from implicit_reasoning.errors import InputError


class Setting(NamedTuple):
    """A field of `task`: its type, and what it means."""

    kind: type
    doc: str


_COMMON = {
    "name": Setting(str, "a task of the lab, or package.module:function or file.py:function"),
    "probes": Setting(int, "rows of each split, at most, that evaluation looks at"),
    "world_seed": Setting(int, "of facts, roles, held-out rows"),
}
_END = {"end_token": Setting(bool, "also predict </a> after the answer, as published")}
_CHAINS = {
    **_COMMON,
    **_END,
    "n_entities": Setting(int, "entities"),
    "n_relations": Setting(int, "relations"),
    "out_degree": Setting(int, "facts of a head, each with another relation"),
    "ood_fraction": Setting(float, "share of facts that no training chain uses"),
    "phi": Setting(float, "training chains per in-distribution fact"),
    "hops": Setting(int, "facts of a chain"),
    "holdout": Setting(float, "share of in-distribution chains that are never trained on"),
    "mixed_chains": Setting(bool, "also test chains of I and O facts (Ye et al.; not Wang et al.)"),
    "order": Setting(str, "'e r r', or 'r r e': both hops share the last position"),
    "names": Setting(int, "0: an entity is one token; n: a first and a last name of n each"),
}
_PAIRS = {
    **_COMMON,
    **_END,
    "n_entities": Setting(int, "entities"),
    "n_attributes": Setting(int, "attributes of an entity"),
    "n_values": Setting(int, "values of an attribute"),
    "ood_fraction": Setting(float, "share of the entities, for each attribute, that are O"),
    "holdout": Setting(float, "share of unordered pairs of I entities, never trained on"),
}

SETTINGS: dict[str, dict[str, Setting]] = {
    "composition": _CHAINS,
    "without_id_triples": _CHAINS,
    "held_out_id_triples": {
        **_CHAINS,
        "held_out_fraction": Setting(float, "share of I facts that are never taught as triples"),
    },
    "second_hop_restricted": {
        **_CHAINS,
        "restricted_fraction": Setting(float, "share of I facts that are never a later hop"),
    },
    "shadow": _CHAINS,
    "scrambled": _CHAINS,
    "comparison": {
        **_PAIRS,
        "phi": Setting(float, "training comparisons per in-distribution fact"),
        "mixed_chains": Setting(bool, "also test pairs of an I and an O entity (not Wang et al.)"),
    },
    "complex": {
        **_PAIRS,
        "share": Setting(float, "share of the available comparisons that are trained on"),
        "hard_queries": Setting(int, "rows of test_hard for each of the three labels"),
    },
    "modular_addition": {
        **_COMMON,
        "modulus": Setting(int, "numbers"),
        "train_fraction": Setting(float, "share of all pairs that is trained on"),
    },
    "in_context": {
        **_COMMON,
        "n_tokens": Setting(int, "tokens"),
        "min_length": Setting(int, "shortest sequence before it repeats"),
        "max_length": Setting(int, "longest sequence before it repeats"),
        "n_train": Setting(int, "rows to train on"),
    },
}
"""By the name of the task, of `TASKS`."""


class MissingSetting(AttributeError):
    """A task looked for a setting that is not there."""


class Watched:
    """The settings of a task, noting which of them it reads.

    It behaves like the settings themselves. Whatever hands out all of them (`dict(task)`,
    `task.to_dict()`) reads all.
    """

    def __init__(self, settings: Any):
        self.__dict__["_settings"] = settings
        self.__dict__["_unread"] = set(settings) - {"name"}

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(self._settings, name)
        except AttributeError:
            there = sorted(self._settings)
            raise MissingSetting(f"task.{name} is missing{_hint(name, there)}") from None
        self._note(name)
        return value

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return self._settings[name]

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def __iter__(self) -> Iterator[Any]:
        self._unread.clear()
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, or the default where it is not there."""
        return self[name] if name in self._settings else default

    def _note(self, name: str) -> None:
        if name in self._settings:
            self._unread.discard(name)
        else:  # a method, which may hand out any of them
            self._unread.clear()


def watched(task: Any) -> Any:
    """The settings of a task, watched where it can be said which there are."""
    return Watched(task) if hasattr(type(task), "keys") else task


def check_all_read(task: Any, name: str) -> None:
    """Raise an `InputError` that names the settings which a task has not read."""
    if not isinstance(task, Watched) or not (unread := sorted(task._unread)):
        return
    read = set(task._settings) - task._unread
    hints = [f"task.{each}{_hint(each, read)}" for each in unread]
    raise InputError(f"the task {name!r} does not read {'; nor '.join(hints)}; remove or rename it")


def _hint(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=1)
    return f" (did you mean task.{near[0]}?)" if near else ""
