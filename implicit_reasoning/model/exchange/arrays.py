"""Named arrays in a file: `.safetensors`, `.npz`, and PyTorch's own `.bin`, which is only read.

Imports neither JAX nor what needs it, so that tests/peers can run it in an environment with torch.
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
"""Of files of weights: in the metadata of `.safetensors`, in the comment of the `.npz` archive."""

_FORMAT_KEY = "implicit_reasoning_format"

_UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,  # torch, of an archive that is cut short; zipfile, of what it cannot unpack
    TypeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)

# Types of safetensors that numpy does not have, by their names in ml_dtypes.
_SMALL = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
# Those that numpy has; of these only the floating-point types are read.
_NUMPY = {"F64", "F32", "F16", "C64", "BOOL", *(f"{s}{n}" for s in "IU" for n in (8, 16, 32, 64))}


def checked(path: str | os.PathLike[str]) -> Path:
    """The path, if its ending is that of a format which can be written."""
    path = local_path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"{path} ends in {path.suffix!r}; weights are .npz or .safetensors")
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays, as they are, in the format that the path ends in."""
    # What was reshaped or transposed need not lie in the order that safetensors writes out.
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == ".npz":
        write_npz(path, plain, comment=f"{_FORMAT_KEY}={WEIGHTS_FORMAT}")
        return
    with atomic_write(path, "wb") as file:
        # HuggingFace reads no file that does not say which framework's tensors it holds.
        file.write(save(plain, metadata={"format": "pt", _FORMAT_KEY: str(WEIGHTS_FORMAT)}))


def _check_format(path: Path) -> None:
    """Raise an `InputError` if a file of weights has a newer format than is known.

    Other programs' files, and those from before formats had versions, state none.
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
    """Read such a file, in float32 whatever floating-point type it was saved in.

    float16, bfloat16 and the 8-bit floating-point types are represented exactly.

    Args:
      path: of the file.
      skip: a pattern; arrays in whose name it is found are left out, of whatever type they are.

    Raises:
      InputError: it is missing, cut short or something else; an array is not of a floating-point
        type, or has values that float32 cannot hold; or it is PyTorch's and torch is not installed.
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
        raise InputError(f"{path} is not a whole weights file: {error}") from None


def as_float32(array: np.ndarray, name: str, where: str | os.PathLike[str]) -> np.ndarray:
    """An array of a file in float32.

    Raises:
      InputError: it is not of a floating-point type, such as the integers of quantised weights
        whose scales are elsewhere; or a finite value of it is beyond the range of float32.
    """
    if array.dtype.kind in "biuc":
        raise _no_float(where, name, str(array.dtype))
    small = array.dtype.kind == "V" and array.dtype.name in _SMALL.values()
    if array.dtype.kind != "f" and not small:
        hint = "; .npz does not keep bfloat16 and 8-bit types" if array.dtype.kind == "V" else ""
        raise InputError(
            f"{where} is not a whole weights file: {name} is of type {array.dtype}, not of a "
            f"floating-point type{hint}"
        )
    with np.errstate(over="ignore"):
        plain = array.astype(np.float32)
    if array.dtype.itemsize > 4 and np.any(np.isinf(plain) & np.isfinite(array)):
        raise InputError(f"{where}: {name} has values of {array.dtype} that float32 cannot hold")
    return plain


def _read_safetensors(path: Path, skip: re.Pattern[str] | None) -> dict[str, np.ndarray]:
    arrays, small = {}, {}
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict, and cannot be iterated
            if _skipped(name, skip):
                continue
            dtype = file.get_slice(name).get_dtype()
            if dtype in _SMALL:
                small[name] = _SMALL[dtype]
            elif dtype not in _NUMPY:
                raise _no_float(path, name, dtype)
            else:
                arrays[name] = file.get_tensor(name)
    if small:  # numpy has no such types
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
            f"{path} is in PyTorch's own format, and torch is not installed: install it, or write "
            "the weights as model.safetensors"
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)  # no code of the file is run
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
        f"{where}: {name} is of type {dtype}; weights must be of a floating-point type of at least "
        "8 bits, so convert quantised ones first"
    )
