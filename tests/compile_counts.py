"""Counts the programs that XLA compiles for each test file; compares them with committed counts.

Compiling takes most of the time of the tests. Unlike a time, a count does not depend on the
machine, so CI checks counts: with `--programs=check` the session fails if a file compiles more
programs than `compile_counts.json` allows. `--programs=write` records the counts of the files that
were run.

A program that comes from the compilation cache on disk counts as well. In-process caches are
cleared before each file, so that memory does not grow with the number of files. A file that runs
after others may still compile less than one that runs alone, because it reuses objects of other
files that hold programs. `make test-counts` therefore runs every file in its own process.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from filelock import FileLock

COUNTS = Path(__file__).with_name("compile_counts.json")
ROOM = 5  # programs above the recorded count; jax.numpy also caches a few small ones elsewhere
_EVENT = "/jax/core/compile/backend_compile_duration"
_ADVICE = (
    "Share programs between tests (same shapes, one fixture), or record the new counts with "
    "`make test-counts` and say in the commit why they grew."
)

_compiled = 0
_counting = True


def _note(event: str, duration: float, **details: Any) -> None:
    global _compiled
    _compiled += _counting and event == _EVENT


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Count no program within this block; reuse none from before, and leave none for others.

    Use it for data that is made once per session, by the first file that needs it.
    """
    global _counting
    before, _counting = _counting, False
    jax.clear_caches()
    try:
        yield
    finally:
        _counting = before
        jax.clear_caches()


class CompileCounts:
    """A pytest plugin; under xdist every worker counts and the controller compares."""

    def __init__(self, config: pytest.Config):
        """Start with no counts."""
        self._mode = config.getoption("--programs")
        self._controls = not hasattr(config, "workerinput")
        self._before, self._file = 0, ""
        self._found: collections.Counter[str] = collections.Counter()
        self._over: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Listen to JAX."""
        jax.monitoring.register_event_duration_secs_listener(_note)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Start counting, and clear JAX's caches where a new file begins."""
        file = item.nodeid.partition("::")[0]
        if file != self._file:
            self._file = file
            jax.clear_caches()
            gc.collect()
        self._before = _compiled

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[None]:
        """Attach the count to the last report of a test, which xdist sends to the controller."""
        outcome: Any = yield
        if call.when == "teardown":
            count = ("programs", _compiled - self._before)
            outcome.get_result().user_properties.append(count)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the counts of a file."""
        if report.when == "teardown":
            count = sum(n for name, n in report.user_properties if name == "programs")
            self._found[report.nodeid.partition("::")[0]] += count

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare or record the counts, in the process that has the counts of all workers."""
        if not self._controls or self._mode is None:
            return
        if self._mode == "write":
            self._write()
            return
        kept = json.loads(COUNTS.read_text())
        if kept["jax"] == jax.__version__:  # other versions compile other programs
            self._over = [
                f"{name} compiled {count} programs, at most {kept['files'].get(name, 0)} are agreed"
                for name, count in sorted(self._found.items())
                if count > kept["files"].get(name, 0)
            ]
        if self._over:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self) -> None:
        with FileLock(f"{COUNTS}.lock"):
            files = json.loads(COUNTS.read_text())["files"] if COUNTS.exists() else {}
            files |= {name: count + ROOM for name, count in self._found.items() if count}
            there = {name: n for name, n in sorted(files.items()) if Path(name).exists()}
            COUNTS.write_text(json.dumps({"jax": jax.__version__, "files": there}, indent=1) + "\n")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Name the files that compiled too many programs."""
        if self._mode is not None:
            total = sum(self._found.values())
            terminalreporter.write_line(f"{total} programs in {len(self._found)} files")
        if self._over:
            terminalreporter.section("too many compiled programs", red=True)
            for line in (*self._over, _ADVICE):
                terminalreporter.write_line(line)
