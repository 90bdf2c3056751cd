"""This machine: what runs on it, and what its matrix products reach at most, measured."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array
from threadpoolctl import threadpool_limits

from implicit_reasoning import __version__

_P = ParamSpec("_P")
_R = TypeVar("_R")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Settings of JAX that change which random numbers are drawn, or how the same program computes.
# What this version of JAX does not have is left out.
_NUMERICS = (
    *("jax_enable_x64", "jax_explicit_x64_dtypes", "jax_numpy_dtype_promotion"),
    *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset"),
    *("jax_high_dynamic_range_gumbel", "jax_default_matmul_precision", "jax_softmax_custom_jvp"),
    *("jax_allow_f16_reductions", "jax_disable_most_optimizations"),
)
_HOST_MEMORY = 2**31  # bytes for one program where the device does not say what it has
_NOTED = ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")  # variables that may change the last bits
_OPEN_MAX = 10240  # files that macOS lets a process hold open
_SECONDS = 0.02  # of one measurement, at least: far longer than the call that starts it


@contextlib.contextmanager
def single_threaded_lapack() -> Iterator[None]:
    """Run the decompositions of this block on one thread each.

    XLA's CPU programs take them from the LAPACK that scipy brings, whose threads wait for each
    other by spinning: with two, an eigendecomposition of 256 x 256 took 100 to 260 ms, alone 4.
    """
    importlib.import_module("scipy.linalg.cython_lapack")  # what is not loaded has no limit yet
    with threadpool_limits(1, user_api="blas"):
        yield


def one_device_per_core() -> None:
    """Let a CPU's cores be devices of their own, for work that is dealt out to devices.

    Only before anything was computed; afterwards all stays as it is. Not for programs that call
    LAPACK, which was seen to wait for ever on two of them (jax 0.10.2).
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", len(available_cores()))


def available_cores() -> list[int]:
    """Numbers of the cores that this process may run on.

    Linux says which; on other systems a process may run on all there are.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin_to_cores(numbers: Sequence[int]) -> None:
    """Let this process run on some cores only; no other system than Linux can be asked to."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def highest_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function with matrix products in true float32, for everything that is measured.

    A product that names no precision is TF32 on recent GPUs and bfloat16 on TPUs. On a CPU nothing
    changes. A function that is compiled is wrapped before `jax.jit` is.
    """

    @functools.wraps(function)
    def exact(*args: _P.args, **named: _P.kwargs) -> _R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **named)

    return exact


def memory_per_program() -> int:
    """Bytes that one program may take on each device: half of what a GPU or TPU has; 2 GiB else."""
    has = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return has // 2 if has else _HOST_MEMORY


def max_open_files() -> int:
    """How many files this process may hold open, once the limit is raised as far as it goes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A container may not allow it. macOS names no limit, but refuses more than OPEN_MAX.
    for wanted in (hard, _OPEN_MAX if hard == resource.RLIM_INFINITY else hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def provenance() -> dict[str, Any]:
    """Versions, settings, commit and hardware of this process."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {"implicit_reasoning": __version__, **{p: version(p) for p in _PACKAGES}},
        "numerics": numerics(),
        "environment": {name: os.environ[name] for name in _NOTED if name in os.environ},
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "processes": jax.process_count(),
        "cpu_cores": len(available_cores()),
    }


def numerics() -> dict[str, Any]:
    """JAX's settings, by name, under which a resumed run would train something else."""
    found = {name: getattr(jax.config, name) for name in _NUMERICS if hasattr(jax.config, name)}
    plain = (bool, int, float, str, type(None))
    return {name: v if isinstance(v, plain) else str(v) for name, v in found.items()}


def _cpu_model() -> str:
    """What Linux calls the processor; elsewhere what Python knows of it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, marked when it has been changed."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    git = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    return None


def matmul_peak(dtype: str = "float32", n: int | None = None, repeats: int = 7) -> float:
    """FLOP/s of a square matrix product on the default device, the best of some repeats.

    Args:
      dtype: of the factors; on GPUs float32 is TF32 unless precision says otherwise.
      n: rows and columns; by default as many as fill the device.
      repeats: measurements; the best counts, as others may use the machine.
    """
    if n is None:
        n = 1024 if jax.default_backend() == "cpu" else 8192
    one, two = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    count = 1
    while (seconds := _time_products(one, two, count)) < _SECONDS:
        count = max(2 * count, round(1.2 * count * _SECONDS / seconds))
    best = min(seconds, *(_time_products(one, two, count) for _ in range(repeats - 1)))
    return 2.0 * n**3 * count / best


def _time_products(one: Array, two: Array, count: int) -> float:
    _products(one, two, count).block_until_ready()  # compiled, and the caches are warm
    began = time.perf_counter()
    _products(one, two, count).block_until_ready()
    return time.perf_counter() - began


@jax.jit
def _products(one: Array, two: Array, count: ArrayLike) -> Array:
    # Each product needs the one before it, so that none is left out; the scale keeps it finite.
    scale = jnp.asarray(one.shape[0] ** -0.5, one.dtype)
    multiply = functools.partial(jnp.matmul, precision="default")
    return jax.lax.fori_loop(0, count, lambda _, x: multiply(x, two) * scale, one)
