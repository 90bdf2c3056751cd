"""Reading and writing files of named arrays: `.safetensors`, `.npz`, and PyTorch's `.bin`.

A `.bin` file can be read but not written. This module imports neither JAX nor packages that need
JAX, so that `tests/peers` can use it in an environment that has torch but not JAX.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, check_format, read_npz, write_npz
from implicit_reasoning.paths import local_path

WEIGHTS_FORMAT = 1
"""The version of the format of weight files.

It is stored in the metadata of a `.safetensors` file or in the comment of an `.npz` archive.
"""

_FORMAT_KEY = "implicit_reasoning_format"

_UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,  # raised by torch for a truncated archive, and by zipfile if it cannot unpack
    TypeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)

# The safetensors types that numpy does not have, with their names in ml_dtypes.
_SMALL = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
# The safetensors types that numpy has. Only the floating-point types among them are accepted.
_NUMPY = {"F64", "F32", "F16", "C64", "BOOL", *(f"{s}{n}" for s in "IU" for n in (8, 16, 32, 64))}


def checked(path: str | os.PathLike[str]) -> Path:
    """Check that the path of a weight file ends in `.npz` or `.safetensors`, and return the path.

    Raises:
      InputError: the path has a different suffix.
    """
    path = local_path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(
            f"{path} ends in {path.suffix!r}; a weight file must end in .npz or .safetensors"
        )
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a `.npz` or `.safetensors` file, without changing their dtypes."""
    # safetensors writes the memory of an array as it is, so a transposed array must be copied.
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == ".npz":
        write_npz(path, plain, comment=f"{_FORMAT_KEY}={WEIGHTS_FORMAT}")
        return
    with atomic_write(path, "wb") as file:
        # HuggingFace reads a file only if its metadata names a framework.
        file.write(save(plain, metadata={"format": "pt", _FORMAT_KEY: str(WEIGHTS_FORMAT)}))


def _check_format(path: Path) -> None:
    """Raise an `InputError` if a weight file has a newer format than this version can read.

    A file without a format version is accepted: it is from another program or an older version of
    this package.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            stated = (file.metadata() or {}).get(_FORMAT_KEY)
    else:
        with zipfile.ZipFile(path) as archive:
            key, _, value = archive.comment.decode("ascii", "replace").partition("=")
        stated = value if key == _FORMAT_KEY else None
    if stated is not None:
        check_format(path, int(stated) if stated.isdecimal() else stated, WEIGHTS_FORMAT)


def read_arrays(path: Path, skip: re.Pattern[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a weight file as float32.

    Any floating-point type of at least 8 bits is accepted. The conversion is exact for types of at
    most 32 bits.

    Args:
      path: the file.
      skip: a pattern. Arrays whose name contains a match are skipped and may have any type.

    Raises:
      InputError: the file is missing, truncated or not a weight file; an array is not
        floating-point; a finite value is outside the range of float32; or the file is in PyTorch's
        format and torch is not installed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        if path.suffix == ".bin":
            arrays = _read_torch(path, skip)
        elif path.suffix == ".safetensors":
            _check_format(path)
            arrays = _read_safetensors(path, skip)
        else:
            _check_format(path)
            arrays = read_npz(path, "weights file")
        return {
            name: as_float32(array, name, path)
            for name, array in arrays.items()
            if not _skipped(name, skip)
        }
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a complete weights file: {error}") from None


def as_float32(array: np.ndarray, name: str, where: str | os.PathLike[str]) -> np.ndarray:
    """Convert an array that was read from a file to float32.

    Raises:
      InputError: the array is not floating-point, or a finite value is outside the range of
        float32. Integers are rejected because they may be quantized weights, whose scales are
        stored elsewhere.
    """
    if array.dtype.kind in "biuc":
        raise _no_float(where, name, str(array.dtype))
    small = array.dtype.kind == "V" and array.dtype.name in _SMALL.values()
    if array.dtype.kind != "f" and not small:
        hint = "; .npz cannot store bfloat16 or 8-bit types" if array.dtype.kind == "V" else ""
        raise InputError(
            f"{where} is not a complete weights file: {name} has type {array.dtype}, which is not "
            f"a floating-point type{hint}"
        )
    with np.errstate(over="ignore"):
        plain = array.astype(np.float32)
    if array.dtype.itemsize > 4 and np.any(np.isinf(plain) & np.isfinite(array)):
        raise InputError(
            f"{where}: {name} contains {array.dtype} values outside the range of float32"
        )
    return plain


def _read_safetensors(path: Path, skip: re.Pattern[str] | None) -> dict[str, np.ndarray]:
    arrays, small = {}, {}
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - the file is not a dict and cannot be iterated
            if _skipped(name, skip):
                continue
            dtype = file.get_slice(name).get_dtype()
            if dtype in _SMALL:
                small[name] = _SMALL[dtype]
            elif dtype not in _NUMPY:
                raise _no_float(path, name, dtype)
            else:
                arrays[name] = file.get_tensor(name)
    if small:  # These types are in ml_dtypes but not in numpy.
        import ml_dtypes

        for name, tensor in deserialize(path.read_bytes()):
            if name in small:
                flat = np.frombuffer(tensor["data"], getattr(ml_dtypes, small[name]))
                arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def _read_torch(path: Path, skip: re.Pattern[str] | None) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is in PyTorch's own format, and torch is not installed; install torch, or "
            "save the weights as model.safetensors"
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)  # never run code from the file
    arrays = {}
    for name, tensor in state.items():
        if _skipped(name, skip):
            continue
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise _no_float(path, name, str(getattr(tensor, "dtype", type(tensor).__name__)))
        arrays[name] = (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
    return arrays


def _skipped(name: str, skip: re.Pattern[str] | None) -> bool:
    return skip is not None and skip.search(name) is not None


def _no_float(where: str | os.PathLike[str], name: str, dtype: str) -> InputError:
    return InputError(
        f"{where}: {name} has type {dtype}; weights must have a floating-point type of at least "
        "8 bits; convert quantised weights to such a type first"
    )
