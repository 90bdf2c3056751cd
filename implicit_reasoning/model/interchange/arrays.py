"""Named arrays in a file: `.safetensors`, `.npz`, and PyTorch's own `.bin`, which is only read.

Imports neither JAX nor what needs it, so that tests/peers can run it in an environment with torch.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, read_npz, write_npz

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


def checked(path: str | os.PathLike[str]) -> Path:
    """The path, if its ending is that of a format which can be written."""
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"{path} ends in {path.suffix!r}; weights are .npz or .safetensors")
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays, as they are, in the format that the path ends in."""
    # What was reshaped or transposed need not lie in the order that safetensors writes out.
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == ".npz":
        write_npz(path, plain)
        return
    with atomic_write(path, "wb") as file:
        # HuggingFace reads no file that does not say which framework's tensors it holds.
        file.write(save(plain, metadata={"format": "pt"}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read such a file, in float32 whatever it was saved in.

    Raises:
      InputError: it is missing, cut short or something else, or it is PyTorch's and torch is not
        installed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        if path.suffix == ".bin":
            arrays = _read_torch(path)
        elif path.suffix == ".safetensors":
            arrays = dict(load_file(path))
        else:
            arrays = read_npz(path, "weights file")
        return {name: array.astype(np.float32) for name, array in arrays.items()}
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a whole weights file: {error}") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is in PyTorch's own format, and torch is not installed: install it, or write "
            "the weights as model.safetensors"
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)  # no code of the file is run
    return {name: tensor.float().numpy() for name, tensor in state.items()}
