"""The cache of compiled programs: on by default for commands, in the user's cache directory.

A program of a small model takes seconds to compile and milliseconds to run, so that a cache decides
how long a command takes. JAX keeps it (`jax_compilation_cache_dir`), evicts what was used longest
ago, and locks it, so that several processes may use it. Here it gets a place, which is one folder
for each version of jax and jaxlib and each kind of processor: a program compiled for one processor
may not run on another.

Whatever is set by the user goes first: `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`,
`JAX_COMPILATION_CACHE_MAX_SIZE` and `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import platformdirs

MAX_BYTES = 2**30
_STALE_SECONDS = 90 * 24 * 3600.0  # after which a folder of another version is removed
_LOCK = ".lockfile"  # the name that JAX's cache uses
_LOCK_SECONDS = 10.0  # as long as JAX waits
_USED = "last_used"
_SETTINGS = {
    "jax_compilation_cache_max_size": MAX_BYTES,
    # Of hundreds of small programs none takes a second, which is JAX's threshold.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


def use_cache(wanted: bool = True) -> str:
    """Let this process keep its compiled programs, or not.

    Nothing is changed where the user has chosen a cache or none. A folder that cannot be written or
    locked is not used; the command runs without a cache.

    Args:
      wanted: without it no cache is used, by this process and those that it starts.

    Returns:
      Why there is no cache; empty if there is one.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        jax.config.update("jax_enable_compilation_cache", False)
    why_not = cache_fault()
    if not why_not and not setting("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        for name, value in _SETTINGS.items():
            if name.upper() not in os.environ:
                jax.config.update(name, value)
    return why_not


def cache_fault() -> str:
    """Why this process cannot have a cache; empty if it has one or can have one."""
    if not setting("jax_enable_compilation_cache"):
        return "it is switched off"
    if setting("jax_compilation_cache_dir"):
        return ""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return "JAX_COMPILATION_CACHE_DIR is empty"
    try:
        _prepare(cache_folder())
    # No home directory: RuntimeError or KeyError. No flock: NotImplementedError, from filelock.
    except (OSError, RuntimeError, NotImplementedError, KeyError) as error:
        return f"its folder cannot be used: {error}"
    return ""


def cache_folder() -> Path:
    """The folder for this version of JAX on this processor."""
    name = f"jax-{version('jax')}-jaxlib-{version('jaxlib')}-{_processor()}"
    return platformdirs.user_cache_path("implicit_reasoning").absolute() / "compiled" / name


def _processor() -> str:
    """The model of the processor, and a digest of what it can do: virtual machines hide parts."""
    found = {"model name": platform.processor() or platform.machine(), "flags": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            key, _, value = line.partition(":")
            if key.strip() in found:
                found[key.strip()] = value.strip()
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', found['model name']).strip('-')}-{digest}"


def _prepare(folder: Path) -> None:
    """Make a folder, see that it can be written and locked, and remove what a crash left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
    with filelock.FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        # JAX writes `-cache`, then `-atime`; an entry without the latter may be cut short, would
        # never be replaced, and stops every eviction.
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink(missing_ok=True)
    (folder / _USED).touch()
    for other in folder.parent.glob(f"jax-*/{_USED}"):
        if time.time() - other.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(other.parent, ignore_errors=True)


def cache_works() -> bool:
    """Whether a program that was just compiled is found in the cache when it is compiled again."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    def probe() -> Any:
        return jax.jit(lambda x: 3 * x + 1)(jnp.float32(1))

    threshold = setting("jax_persistent_cache_min_compile_time_secs")
    jax.monitoring.register_event_listener(listen)
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.block_until_ready([probe(), probe()])
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)
        jax.monitoring.unregister_event_listener(listen)
    return bool(hits)


def describe() -> str:
    """Where compiled programs are kept, how many, how large, and whether that works."""
    folder = setting("jax_compilation_cache_dir")
    if not folder or not setting("jax_enable_compilation_cache"):
        return f"none: {cache_fault() or 'no command or setting has switched it on'}"
    verdict = "works" if cache_works() else "does not work"
    path = Path(folder).expanduser()
    entries = list(path.glob("*-cache")) if path.is_dir() else []
    size = sum(entry.stat().st_size for entry in entries) / 2**20
    limit = setting("jax_compilation_cache_max_size")
    most = "no limit" if limit < 0 else f"at most {limit / 2**20:,.0f}"
    return f"{folder}, {len(entries)} programs, {size:,.1f} MiB ({most}); it {verdict}"


def setting(name: str) -> Any:
    """One of JAX's settings; it defines them as it starts, so no type checker knows their names."""
    return getattr(jax.config, name)
