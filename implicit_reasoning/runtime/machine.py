"""Properties of this machine: cores, memory, versions, JAX settings and measured peak FLOP/s."""

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
# JAX settings that change the random numbers or the rounding of a program. Names that the installed
# version of JAX does not have are ignored.
_NUMERICS = (
    *("jax_enable_x64", "jax_explicit_x64_dtypes", "jax_numpy_dtype_promotion"),
    *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset"),
    *("jax_high_dynamic_range_gumbel", "jax_default_matmul_precision", "jax_softmax_custom_jvp"),
    *("jax_allow_f16_reductions", "jax_disable_most_optimizations"),
)
_HOST_MEMORY = 2**31  # bytes for one program on a device that does not report its memory
_NOTED = ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")  # environment variables that may change rounding
_OPEN_MAX = 10240  # maximum number of open files per process on macOS
_SECONDS = 0.02  # minimum duration of one measurement; far longer than the launch overhead


@contextlib.contextmanager
def single_threaded_lapack() -> Iterator[None]:
    """Run each LAPACK decomposition within a `with` statement on a single thread.

    XLA's CPU programs use the LAPACK library of scipy. The threads of this library wait in busy
    loops. An eigendecomposition of a 256 x 256 matrix took 100 to 260 ms on two threads, and 4 ms
    on one thread.
    """
    # threadpoolctl limits only libraries that are already loaded.
    importlib.import_module("scipy.linalg.cython_lapack")
    with threadpool_limits(1, user_api="blas"):
        yield


def one_device_per_core() -> None:
    """Make each CPU core a JAX device, so that work can be split over the cores.

    Call this function before JAX initializes its devices; later calls have no effect. Do not call
    it in a process that uses LAPACK with jaxlib 0.10.0 to 0.11.0. These versions split a batch of
    matrices over XLA's threads, and the thread that splits it waits for the others. If as many
    such calls run at once as there are threads, they wait forever.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", len(available_cores()))


def available_cores() -> list[int]:
    """Return the indices of the CPU cores on which this process may run.

    Linux can restrict a process to some cores. On all other systems, all cores are returned.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin_to_cores(numbers: Sequence[int]) -> None:
    """Restrict this process to the cores with these indices. Only Linux supports this."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, numbers)


def highest_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function whose matrix products are computed in true float32.

    Use this decorator for all measurements. By default, JAX computes float32 products in TF32 on
    recent GPUs and in bfloat16 on TPUs. On a CPU, the decorator changes nothing. Write the
    decorator below `@jax.jit`, so that the compiled function includes it.
    """

    @functools.wraps(function)
    def exact(*args: _P.args, **named: _P.kwargs) -> _R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **named)

    return exact


def memory_per_program() -> int:
    """Return the bytes that one program may use on each device.

    The result is half of the device memory, or 2 GiB if the device does not report its memory.
    """
    has = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return has // 2 if has else _HOST_MEMORY


def max_open_files() -> int:
    """Raise this process's limit on open files as far as possible, and return the new limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A container may forbid a change of the limit. macOS reports no limit, but rejects a value
    # above OPEN_MAX.
    for wanted in (hard, _OPEN_MAX if hard == resource.RLIM_INFINITY else hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def provenance() -> dict[str, Any]:
    """Return the software versions, JAX settings, commit and hardware of this process."""
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
    """Return the values of the JAX settings that change the results of training, by name."""
    found = {name: getattr(jax.config, name) for name in _NUMERICS if hasattr(jax.config, name)}
    plain = (bool, int, float, str, type(None))
    return {name: v if isinstance(v, plain) else str(v) for name, v in found.items()}


def _cpu_model() -> str:
    """Return the name of the processor, from `/proc/cpuinfo` or else from Python's `platform`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str | None:
    """Return the git commit of this code; None if the code is not in a checkout.

    The suffix `-dirty` means that there are uncommitted changes.
    """
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    git = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12")
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    return None


def matmul_peak(dtype: str = "float32", n: int | None = None, repeats: int = 7) -> float:
    """Measure the FLOP/s of a square matrix product on the default device.

    Args:
      dtype: dtype of the factors. Recent GPUs compute float32 products in TF32.
      n: number of rows and columns of the matrices. The default is large enough to keep the device
        busy.
      repeats: number of measurements. The fastest measurement is used, because slower measurements
        may be caused by other programs on the machine.
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
    _products(one, two, count).block_until_ready()  # compile, and warm up the caches
    began = time.perf_counter()
    _products(one, two, count).block_until_ready()
    return time.perf_counter() - began


@jax.jit
def _products(one: Array, two: Array, count: ArrayLike) -> Array:
    # Each product depends on the previous product, so XLA cannot remove any of them. The scale
    # avoids overflow.
    scale = jnp.asarray(one.shape[0] ** -0.5, one.dtype)
    multiply = functools.partial(jnp.matmul, precision="default")
    return jax.lax.fori_loop(0, count, lambda _, x: multiply(x, two) * scale, one)
