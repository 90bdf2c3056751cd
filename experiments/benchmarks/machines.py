"""Description of the machine that runs a benchmark, and the file for the result.

The file is `results/benchmarks/KIND/NAME.json`. KIND names the processor and its number of cores,
or the GPU. Results of one kind of machine therefore do not replace the results of a different kind.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from implicit_reasoning.files import write_json

RESULTS = Path("results/benchmarks")
_CPUINFO = Path("/proc/cpuinfo")
# Words that do not distinguish processors.
_IDLE_WORDS = re.compile(r"\((r|tm|c)\)|\b(processor|cpu|\d+-core)\b|@.*")


def keep(result: dict[str, Any], out: Path | None, name: str) -> Path:
    """Add machine and provenance to a result, write it as JSON, and print it.

    Args:
      result: the result of the benchmark.
      out: the file; None for `results/benchmarks/KIND/NAME.json`.
      name: name of the benchmark.

    Returns:
      The path of the file.
    """
    path = result_file(out, name)
    result = {**result, **made_on()}
    write_json(path, result)
    print(json.dumps(result, indent=2))
    return path


def result_file(out: Path | None, name: str) -> Path:
    """Return `out`, or the default file of a benchmark on this kind of machine."""
    return out or RESULTS / kind() / f"{name}.json"


def made_on() -> dict[str, Any]:
    """Return the fields `machine` and `provenance` for a result of this process."""
    # This imports jax, whose import some scripts time.
    from implicit_reasoning.runtime.machine import provenance

    return {"machine": describe(), "provenance": {"time": time.time(), **provenance()}}


def describe() -> dict[str, Any]:
    """Describe this machine: kind, processor, and peak throughput of matrix products.

    `cores` is the number of cores of the machine, and `cores_used` is the number of cores that this
    process may use. The peak is measured with square float32 products on one device, which uses
    `cores_used` cores.
    """
    from implicit_reasoning.runtime.machine import matmul_peak, provenance

    made = provenance()
    return {
        "kind": kind(),
        "cpu": made["cpu"],
        "cores": os.cpu_count(),
        "cores_used": made["cpu_cores"],
        "avx512": avx512(),
        "device": made["device"],
        "peak_gflop_per_second": matmul_peak(repeats=3) / 1e9,
    }


def kind() -> str:
    """Return the kind of this machine, such as `amd_epyc_2_cores` or `nvidia_h100_80gb_hbm3`."""
    import jax

    from implicit_reasoning.runtime.machine import provenance

    if jax.default_backend() != "cpu":
        return words(jax.devices()[0].device_kind)
    processor = words(provenance()["cpu"]) or words(platform.machine())
    cores = os.cpu_count() or 1
    return f"{processor}_{cores}_core{'s' * (cores > 1)}"


def words(name: str) -> str:
    """Convert a hardware name to a folder name of lowercase letters, digits and underscores."""
    kept = _IDLE_WORDS.sub(" ", name.lower())
    return "_".join(re.findall(r"[a-z0-9]+", kept))


def avx512() -> bool | None:
    """Return whether the processor has AVX-512; None if Linux does not report it."""
    if not _CPUINFO.exists():
        return None
    flags = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(), re.M)
    return None if flags is None else "avx512f" in flags[1].split()
