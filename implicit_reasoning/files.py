"""Atomic writing of files, and reading of files with an `InputError` if a file is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

FORMAT_VERSION = "format_version"
"""The key of the format version in a file. A file without this key has the version 1."""

# Exceptions that numpy and zipfile raise for truncated, damaged or unrelated files.
_NO_NPZ = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # a flipped bit can mean "encrypted" or an unknown compression method
    AttributeError,  # numpy loads a plain .npy array without error, but the array has no `files`
    TypeError,
)

# The umask can be read only by setting it, so it has a different value for a moment. It is read at
# import, so that no other thread creates a file in that moment.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file under a temporary name, and rename it to `path` when it is complete.

    The temporary file is next to `path`. If an exception occurs, the temporary file is removed.

    Args:
      path: the file to write; its folder is created if it is missing.
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


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder under a temporary name, and rename it to `path` when it is complete.

    The temporary folder is next to `path`. If an exception occurs, it is removed with its contents.

    Args:
      path: the folder to make, which must be missing or empty. Its parent is created if it is
        missing.

    Yields:
      The path of the temporary folder.
    """
    # A resolved path always has a parent, even if `path` is `.`, and contains no links.
    path = local_path(path, "folder").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        yield made
        os.replace(made, path)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically.

    Args:
      path: the file to write.
      value: anything that JSON can represent.
      indent: spaces per level; None writes one compact line.
    """
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
      InputError: the file is missing or is not valid JSON; the message names the file.
    """
    try:
        return json.loads(local_path(path, "file").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not complete, valid JSON: {error}") from None


def check_format(path: str | os.PathLike[str], found: Any, newest: int) -> None:
    """Check that the format version of a file is supported.

    Args:
      path: the file, for the error message.
      found: the format version that the file contains.
      newest: the newest format version that this package can read.

    Raises:
      InputError: the version is newer than `newest` or not a positive integer.
    """
    if type(found) is not int or found < 1:
        raise InputError(
            f"the format version of {path} is {found!r}; a format version must be a positive "
            "integer"
        )
    if found > newest:
        raise InputError(
            f"{path} has the format version {found}, but this version of implicit_reasoning reads "
            f"format versions up to {newest}; install a newer version of implicit_reasoning"
        )


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, comment: str = ""
) -> None:
    """Write named arrays as one uncompressed `.npz` file, atomically.

    Args:
      path: the file to write.
      arrays: arrays by name.
      comment: ASCII text to store as the comment of the ZIP archive. numpy ignores the comment.
    """
    with atomic_write(path, "wb") as file:
        keywords: dict[str, Any] = {**arrays, "allow_pickle": False}
        np.savez(file, **keywords)
        if comment:
            # A ZIP archive ends with the length of its comment (two bytes) and the comment.
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", len(comment)) + comment.encode("ascii"))


def read_npz(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` file. Pickled objects are never loaded.

    Args:
      path: the file to read.
      what: kind of the file for error messages, such as "dataset".

    Raises:
      InputError: the file is missing or damaged, or an entry of the file is not an array.
    """
    try:
        with np.load(local_path(path, "file"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except _NO_NPZ as error:
        raise InputError(f"{path} is not a complete {what}: {error}") from None
    # NumPy returns archive members that are not arrays as bytes.
    if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise InputError(f"{path} is not a valid {what}: the entry {strange[0]} is not an array")
    return arrays
