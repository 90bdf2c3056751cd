"""Checks of this machine (devices, versions, cache, locks, disk), and advice on its problems."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import jax

from implicit_reasoning.runtime import compilation
from implicit_reasoning.runtime.locks import describe_lock
from implicit_reasoning.runtime.machine import matmul_peak, provenance


def examine(workdir: str | os.PathLike[str] = ".") -> dict[str, str]:
    """Check this machine, and return the finding of each named check.

    The call takes a few seconds, because it measures the peak throughput of matrix products.

    Args:
      workdir: folder in which file locks and free disk space are checked. If this folder does not
        exist, its nearest existing parent is checked.
    """
    found = provenance()
    devices = f"{found['device_count']} x {found['device']} ({jax.default_backend()})"
    here = Path(workdir)
    while not here.exists():
        here = here.parent
    return {
        "devices": f"{devices}; {found['processes']} process(es)",
        "cpu": f"{found['cpu']}, {found['cpu_cores']} cores for this process",
        "python": found["python"],
        "packages": ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "matrix products": ", ".join(
            f"{matmul_peak(dtype) / 1e9:,.0f} GFLOP/s in {dtype}"
            for dtype in ("float32", "bfloat16")
        ),
        "compilation cache": compilation.describe(),
        "file locks": _lock_at(here),
        "free disk": f"{shutil.disk_usage(here).free / 2**30:,.1f} GiB at {here.absolute()}",
    }


def remedies() -> list[str]:
    """Check this machine for known problems, and return advice for each problem found."""
    advice = []
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        advice.append(
            "There is an NVIDIA driver, but JAX runs on the CPU. Run pip install"
            ' "implicit_reasoning[cuda]", and check whether JAX_PLATFORMS is set.'
        )
    if why_not := compilation.cache_fault():
        advice.append(
            f"There is no compilation cache ({why_not}), so every start compiles again, which takes"
            " about five seconds for a small model. Set JAX_COMPILATION_CACHE_DIR to a writable"
            " folder."
        )
    if importlib.util.find_spec("xprof") is None:
        advice.append(
            "To view `train --profile` in TensorBoard's Profile tab, run pip install xprof."
        )
    deterministic = "xla_gpu_deterministic_ops" in os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "gpu" and not deterministic:
        advice.append(
            "Runs on this GPU are reproducible bit for bit only with"
            " XLA_FLAGS=--xla_gpu_deterministic_ops=true."
        )
    return advice


def _lock_at(folder: Path) -> str:
    """Describe the kind of file lock that works in `folder`."""
    try:
        return describe_lock(folder)
    except OSError as error:
        return f"none: {folder.absolute()} cannot be written ({error.strerror})"
