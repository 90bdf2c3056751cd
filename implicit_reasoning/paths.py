"""Validation and expansion of paths that a user gives to a command or to a Python function."""

from __future__ import annotations

import os
import re
from pathlib import Path

from implicit_reasoning.errors import InputError

# Matches `gs://bucket/run`, `gs:/bucket/run` (the form that pathlib makes of it), and `host:/run`
# (the form for scp).
_ADDRESS = re.compile(r"[^/]+:/|[A-Za-z]:\\")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def local_path(given: str | os.PathLike[str], name: str = "path") -> Path:
    r"""Return a path on this machine, with `~` and `~user` expanded.

    Args:
      given: the path that the user gave.
      name: what the path is called in error messages, such as `--workdir`.

    Raises:
      InputError: the path is empty, begins or ends with a blank, contains control characters, is an
        address (`gs://bucket/run`, `file:///run`, `host:/run`, `C:\run`), contains an environment
        variable that the shell did not replace (and no such file exists), or names an unknown user.
    """
    text = os.fspath(given)
    if not text.strip():
        raise InputError(f"{name} is empty; give a path")
    if _CONTROL.search(text):
        raise InputError(
            f"{name} is {text!r}, which contains a control character; remove the control character"
        )
    if text != text.strip():
        raise InputError(f"{name} is {text!r}; it must not begin or end with a blank")
    if _ADDRESS.match(text):
        raise InputError(
            f"{name} is {text!r}, which is an address and not a path on this machine; give a path "
            "on a local or mounted disk"
        )
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise InputError(
            f"{name} is {text!r}, but the user {user[1:]!r} does not exist; check the name of the "
            "user"
        ) from None
    variable = _VARIABLE.search(text)
    if variable and not os.path.lexists(path):
        raise InputError(
            f"{name} is {text!r}, but the shell did not replace the variable {variable[0]}; remove "
            "single quotes around the path, or write the value of the variable"
        )
    return path


def local_folder(given: str | os.PathLike[str], name: str = "path") -> Path:
    """Return the path of a folder, with `~` and `~user` expanded. The folder may be missing.

    Raises:
      InputError: `local_path` rejects the path, or the path is an existing file.
    """
    path = local_path(given, name)
    if path.is_file():
        raise InputError(f"{name} is {str(path)!r}, which is a file; give a folder")
    return path
