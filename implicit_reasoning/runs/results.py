"""Access to saved results of instruments by current or old names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from implicit_reasoning import renames
from implicit_reasoning.runs.arrays import load_arrays, load_attributes

INSTRUMENTS = {
    "corruption": "activation_patching",
    "cross_query": "cross_query_patching",
    "patching": "pair_patching",
    "swap": "mean_swap",
}
"""The current names of instruments of this package, by their names before 2026-11-29."""

_FRACTIONS = {
    f"{prefix}share{end}": f"{prefix}fraction{end}"
    for prefix in ("", "null_", "part_", "part_null_")
    for end in ("", "_low", "_high", "_n")
}
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "behaviour": _FRACTIONS,
    "activation_patching": _FRACTIONS,
    "cross_query_patching": _FRACTIONS,
}
"""The current names of outputs, by instrument and old name."""

LABELS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "causal_scrubbing": {"control": {"dealt": "another value"}},
    "mean_swap": {"edit": {"dealt anew": "permuted means"}},
}
"""The current labels of coordinates, by instrument, coordinate and old label."""


def current_instrument(name: str) -> str:
    """Return the current name of an instrument. If `name` is old, print a note on stderr."""
    if name in INSTRUMENTS:
        renames.note("instrument", name, INSTRUMENTS[name])
    return INSTRUMENTS.get(name, name)


def result_names(folder: Path) -> list[str]:
    """Return the sorted current names of all instruments with a saved result in a folder."""
    return sorted({_name(path) for path in folder.glob("*.nc")})


def find_result(path: Path) -> Path:
    """Return the file that holds the result of an instrument.

    The file with the current name is returned if it exists, and otherwise the file with an old
    name. If the old file belongs to a user-defined instrument that happens to have this old name,
    it is not returned.

    Args:
      path: path of the result; the file name is the current or an old name of the instrument.
    """
    name, folder = _name(path), path.parent
    if name != path.stem:
        renames.note("instrument", path.stem, name)
        path = folder / f"{name}.nc"
    if path.exists():
        return path
    old = [folder / f"{was}.nc" for was, now in INSTRUMENTS.items() if now == name]
    return next((one for one in old if one.exists() and _name(one) == name), path)


def _name(path: Path) -> str:
    """Return the current name of the instrument that wrote a file."""
    if path.stem not in INSTRUMENTS or (path.exists() and not _is_own(load_attributes(path))):
        return path.stem
    return INSTRUMENTS[path.stem]


def load_result(path: Path) -> xr.Dataset:
    """Load a saved result. Old names of instruments, outputs and labels become current names."""
    return with_current_names(load_arrays(path))


def with_current_names(result: xr.Dataset) -> xr.Dataset:
    """Return a result with old names replaced, and print a note on standard error for each."""
    if not _is_own(result.attrs):
        return result
    old = str(result.attrs.get("instrument", ""))
    name = current_instrument(old)
    if name != old:
        found = {key: value for key, value in result.attrs.items() if key != "found_at"}
        result = result.assign_attrs(instrument=name)
        result.attrs = found | {"instrument": name}
    outputs = {was: now for was, now in OUTPUTS.get(name, {}).items() if was in result.data_vars}
    for was, now in outputs.items():
        if not was.endswith(("_low", "_high", "_n")):
            renames.note(f"output of {name}", was, now)
    result = result.rename_vars(outputs)
    if "nulls" in result.attrs:
        result.attrs["nulls"] = _current_nulls(name, result.attrs["nulls"])
    for coord, labels in LABELS.get(name, {}).items():
        there = result[coord].values.tolist() if coord in result.coords else []
        if labels.keys() & set(there):
            for was in labels.keys() & set(there):
                renames.note(f"{coord} of {name}", was, labels[was])
            result = result.assign_coords({coord: [labels.get(one, one) for one in there]})
    return result


def _current_nulls(instrument: str, nulls: Mapping[str, Any]) -> dict[str, Any]:
    outputs, labels = OUTPUTS.get(instrument, {}), LABELS.get(instrument, {})
    return {
        name: outputs.get(null, null)
        if isinstance(null, str)
        else {dim: labels.get(dim, {}).get(label, label) for dim, label in null.items()}
        for name, null in nulls.items()
    }


def _is_own(attributes: Mapping[str, Any]) -> bool:
    """Return whether an instrument of this package wrote a result."""
    found_at = attributes.get("found_at") or "implicit_reasoning."
    return bool(found_at.startswith("implicit_reasoning."))
