"""Paths that users give: checked and expanded in one place, for flags and for Python functions."""

from __future__ import annotations

import os
import re
from pathlib import Path

from implicit_reasoning.errors import InputError

# `gs://bucket/run`; also `gs:/bucket/run`, which pathlib makes of it, and `host:/run`, as for scp.
_ADDRESS = re.compile(r"[^/]+:/|[A-Za-z]:\\")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def local_path(given: str | os.PathLike[str], name: str = "path") -> Path:
    r"""A path of this machine, with `~` and `~user` expanded.

    Args:
      given: the path as a user wrote it.
      name: what to call it in errors, such as `--workdir`.

    Raises:
      InputError: the path is empty, begins or ends with a blank, has control characters, is an
        address (`gs://bucket/run`, `file:///run`, `host:/run`, `C:\run`), names an environment
        variable that the shell did not replace (and no such file exists), or names an unknown user.
    """
    text = os.fspath(given)
    if not text.strip():
        raise InputError(f"{name} is empty; give a path")
    if _CONTROL.search(text):
        raise InputError(f"{name} is {text!r}, which has a control character; remove it")
    if text != text.strip():
        raise InputError(f"{name} is {text!r}; it must not begin or end with a blank")
    if _ADDRESS.match(text):
        raise InputError(
            f"{name} is {text!r}, an address and not a path of this machine; give a local or a "
            "mounted folder"
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise InputError(f"{name} is {text!r}, and there is no user {user[1:]!r}") from None
    variable = _VARIABLE.search(text)
    if variable and not os.path.lexists(path):
        raise InputError(
            f"{name} is {text!r}, in which the shell did not replace {variable[0]}; write the path "
            "in full, or without single quotes"
        )
    return path


def local_folder(given: str | os.PathLike[str], name: str = "path") -> Path:
    """As `local_path`, of a folder that exists or can be made; a file is an `InputError`."""
    path = local_path(given, name)
    if path.is_file():
        raise InputError(f"{name} is {str(path)!r}, which is a file; give a folder")
    return path
