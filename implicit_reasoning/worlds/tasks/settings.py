"""Detection of missing settings, and of settings that a task never reads.

`fields.py` lists the settings of every task in this package. A user-defined task has the settings
that its function reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from implicit_reasoning.errors import InputError


class MissingSetting(AttributeError):
    """A task read a setting that does not exist."""


class TrackedSettings:
    """The settings of a task, with a record of which settings the task reads.

    The object behaves like the settings. Iteration over the object and calls of its methods, such
    as `dict(task)` and `task.to_dict()`, count as reading all settings.
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
        """Return a setting, or `default` if the setting does not exist."""
        return self[name] if name in self._settings else default

    def _note(self, name: str) -> None:
        if name in self._settings:
            self._unread.discard(name)
        else:  # a method, which may return any setting
            self._unread.clear()


def track_reads(task: Any) -> Any:
    """Wrap the settings of a task in `TrackedSettings`.

    An object without a method `keys` is returned unchanged, because its settings cannot be listed.
    """
    return TrackedSettings(task) if hasattr(type(task), "keys") else task


def check_all_read(task: Any, name: str) -> None:
    """Check that a task has read all its settings.

    Args:
      task: the settings, as returned by `track_reads`.
      name: name of the task, for the error message.

    Raises:
      InputError: the task did not read some settings. The message names these settings.
    """
    if not isinstance(task, TrackedSettings) or not (unread := sorted(task._unread)):
        return
    read = set(task._settings) - task._unread
    hints = [f"task.{each}{_hint(each, read)}" for each in unread]
    what = "this setting" if len(hints) == 1 else "these settings"
    raise InputError(
        f"the task {name!r} does not read {' or '.join(hints)}; remove or rename {what}"
    )


def _hint(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=1)
    return f" (did you mean task.{near[0]}?)" if near else ""
