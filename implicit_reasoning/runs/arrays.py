"""Labeled arrays as netCDF files, and fingerprints (digests) of pytrees."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import xarray as xr

from implicit_reasoning.files import FORMAT_VERSION, atomic_write, check_format

RESULT_FORMAT = 1
"""The version of the format of netCDF result files.

The version is an attribute of the file. A second attribute, `json`, holds all other attributes.
"""


def fingerprint(tree: Any) -> str:
    """Return a hexadecimal digest of the names, types, shapes and values of a pytree of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_arrays(path: Path, arrays: xr.Dataset) -> None:
    """Write labeled arrays as netCDF 4, atomically. Attributes may be any JSON values."""
    plain = arrays.copy()
    # netCDF attributes cannot be nested or None, so all attributes are stored as one JSON text.
    parts: list[Any] = [plain, *plain.variables.values()]
    for part in parts:
        part.attrs = {"json": json.dumps(part.attrs)} if part.attrs else {}
    plain.attrs[FORMAT_VERSION] = RESULT_FORMAT
    with atomic_write(path, "wb") as file:
        file.write(plain.to_netcdf(engine="h5netcdf"))


def load_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes from a file that `save_arrays` wrote, without reading its arrays."""
    with h5py.File(path) as file:  # xarray would open every variable
        found: dict[str, Any] = json.loads(file.attrs.get("json", "{}"))
    return found


def load_arrays(path: Path) -> xr.Dataset:
    """Return the arrays that `save_arrays` wrote.

    Raises:
      InputError: the format version of the file is newer than this package supports.
    """
    arrays = xr.load_dataset(path, engine="h5netcdf")
    check_format(path, int(arrays.attrs.get(FORMAT_VERSION, 1)), RESULT_FORMAT)
    parts: list[Any] = [arrays, *arrays.variables.values()]
    for part in parts:
        part.attrs = json.loads(part.attrs.get("json", "{}"))
    return arrays
