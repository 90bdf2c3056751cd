"""The persistent cache of compiled programs in the user's cache directory.

Commands use the cache by default. A program of a small model compiles in seconds and runs in
milliseconds, so without the cache a command spends most of its time on compilation. JAX manages the
cache (`jax_compilation_cache_dir`): it evicts the least recently used entries, and it locks the
cache so that several processes can use it. This module chooses the folder of the cache. The folder
depends on the versions of jax and jaxlib and on the processor model, because a program that was
compiled for one processor may not run on a different processor.

The user's settings have priority: `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`,
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
_STALE_SECONDS = 90 * 24 * 3600.0  # a folder that was not used for this time is removed
_LOCK = ".lockfile"  # the same name as in JAX
_LOCK_SECONDS = 10.0  # the same timeout as in JAX
_USED = "last_used"
_SETTINGS = {
    "jax_compilation_cache_max_size": MAX_BYTES,
    # JAX by default caches a program only if its compilation takes at least one second. A command
    # compiles hundreds of small programs, each of which takes less.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


def use_cache(wanted: bool = True) -> str:
    """Switch the cache of compiled programs on or off for this process.

    If the user has configured a cache or disabled JAX's cache, this function does not change the
    settings. If the cache folder cannot be written or locked, the process runs without a cache.

    Args:
      wanted: False disables the cache for this process and its child processes.

    Returns:
      The reason why this process has no cache; empty text if the process has a cache.
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
    """Return the reason why this process cannot use a cache; empty text if the cache is usable."""
    if not setting("jax_enable_compilation_cache"):
        return "it is switched off"
    if setting("jax_compilation_cache_dir"):
        return ""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return "JAX_COMPILATION_CACHE_DIR is empty"
    try:
        _prepare(cache_folder())
    # RuntimeError and KeyError mean that there is no home directory. NotImplementedError means that
    # filelock has no flock on this system.
    except (OSError, RuntimeError, NotImplementedError, KeyError) as error:
        return f"its folder cannot be used: {error}"
    return ""


def cache_folder() -> Path:
    """Return the cache folder for this version of JAX on this processor."""
    name = f"jax-{version('jax')}-jaxlib-{version('jaxlib')}-{_processor()}"
    return platformdirs.user_cache_path("implicit_reasoning").absolute() / "compiled" / name


def _processor() -> str:
    """Return the processor model and a digest that includes the processor's feature flags.

    The flags matter, because a virtual machine may hide some features of its processor.
    """
    found = {"model name": platform.processor() or platform.machine(), "flags": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            key, _, value = line.partition(":")
            if key.strip() in found:
                found[key.strip()] = value.strip()
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', found['model name']).strip('-')}-{digest}"


def _prepare(folder: Path) -> None:
    """Create a cache folder, check that it can be written and locked, and clean up.

    The clean-up removes incomplete entries, and folders that were not used for 90 days.

    Raises:
      OSError: the folder cannot be written, or its lock was not released in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
    with filelock.FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        # For each entry, JAX writes a file `-cache` and then a file `-atime`. An entry without
        # `-atime` may be truncated. JAX would never replace such an entry, and as long as it
        # exists, JAX would fail to evict any entry.
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink(missing_ok=True)
    (folder / _USED).touch()
    for other in folder.parent.glob(f"jax-*/{_USED}"):
        if time.time() - other.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(other.parent, ignore_errors=True)


def cache_works() -> bool:
    """Compile a small program twice, and return whether the second call reads the cache."""
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
    """Describe the folder, number of programs, size, size limit and state of the cache."""
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
    """Return the value of one of JAX's settings.

    JAX defines its settings at run time, so type checkers reject `jax.config.<name>`.
    """
    return getattr(jax.config, name)
