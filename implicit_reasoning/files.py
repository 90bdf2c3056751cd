"""Files: written so that nobody meets a half-written one, read with one sentence for any damage."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

FORMAT_VERSION = "format_version"
"""Key of kept files for the version of their format; files without it have version 1."""

# What numpy and zipfile raise on files that are cut short, damaged, or something else.
_NO_NPZ = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # a flipped bit may say "encrypted", or name a compression that is unknown
    AttributeError,  # a lone .npy array opens without complaint, but has no members
    TypeError,
)

# The umask can only be read by setting it, which no other thread may see: once, at import.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path`, renamed onto it on success and removed on failure.

    Args:
      path: the file to appear; its folder is made when missing.
      mode: `"w"` (UTF-8 text) or `"wb"`.

    Yields:
      The open temporary file.
    """
    path = local_path(path, "file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; `indent=None` is for what only programs read."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or malformed one is an `InputError` that names it."""
    try:
        return json.loads(local_path(path, "file").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not complete, valid JSON: {error}") from None


def check_format(path: str | os.PathLike[str], found: Any, newest: int) -> None:
    """Raise an `InputError` if a file has a newer format than is known.

    Args:
      path: of the file, to be named.
      found: the format that it states.
      newest: the newest format that is read.
    """
    if type(found) is not int or found < 1:
        raise InputError(
            f"{path} states the format {found!r}; a format is a whole number from 1 on"
        )
    if found > newest:
        raise InputError(
            f"{path} has format {found}, and this version of implicit_reasoning reads formats up "
            f"to {newest}; install a newer version"
        )


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, comment: str = ""
) -> None:
    """Write named arrays as one uncompressed `.npz`, atomically.

    Args:
      path: of the file.
      arrays: by name.
      comment: of the ZIP archive, ASCII; numpy ignores it.
    """
    with atomic_write(path, "wb") as file:
        keywords: dict[str, Any] = {**arrays, "allow_pickle": False}
        np.savez(file, **keywords)
        if comment:
            # An archive ends with the length of its comment, two bytes, and the comment.
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", len(comment)) + comment.encode("ascii"))


def read_npz(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz`, no pickles; an `InputError` if it is not a whole `what`."""
    try:
        with np.load(local_path(path, "file"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except _NO_NPZ as error:
        raise InputError(f"{path} is not a whole {what}: {error}") from None
    # numpy hands out as bytes what else is in the archive.
    if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise InputError(f"{path} is not a whole {what}: {strange[0]} in it is no array")
    return arrays
