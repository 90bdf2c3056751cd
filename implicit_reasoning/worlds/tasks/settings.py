"""The settings of a task while it is built: those that it does not read, or does not find.

`fields.py` lists the settings of every task of the lab. A task of a user has the settings that its
function reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from implicit_reasoning.errors import InputError


class MissingSetting(AttributeError):
    """A task looked for a setting that is not there."""


class TrackedSettings:
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


def track_reads(task: Any) -> Any:
    """The settings of a task, watched where it can be said which there are."""
    return TrackedSettings(task) if hasattr(type(task), "keys") else task


def check_all_read(task: Any, name: str) -> None:
    """Raise an `InputError` that names the settings which a task has not read."""
    if not isinstance(task, TrackedSettings) or not (unread := sorted(task._unread)):
        return
    read = set(task._settings) - task._unread
    hints = [f"task.{each}{_hint(each, read)}" for each in unread]
    raise InputError(f"the task {name!r} does not read {'; nor '.join(hints)}; remove or rename it")


def _hint(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=1)
    return f" (did you mean task.{near[0]}?)" if near else ""
