"""How every test runs: on the CPU, with shapes and types checked, and reproducibly."""

import atexit
import os
import shutil
import tempfile

# Before anything imports jax: a test must not grab an accelerator that a run is using.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shape that broadcasts by accident is an error, here and in the processes that tests start.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Many tests train the same tiny model, some in processes of their own. Each program is compiled
# once per session, in a cache that no other session uses. pytest-xdist's workers inherit it. Set
# JAX_COMPILATION_CACHE_DIR to keep a cache between sessions while developing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="implicit_reasoning_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
# Runs that many tests read (tests/shared.py) live as long as the session. The workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _runs = tempfile.mkdtemp(prefix="implicit_reasoning_runs_")
    atexit.register(shutil.rmtree, _runs, ignore_errors=True)
    os.environ["IMPLICIT_REASONING_TEST_RUNS"] = _runs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import gc

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Every annotation in the package (jaxtyping's shapes included) is checked at every call.
install_import_hook("implicit_reasoning", "beartype.beartype")

# `make test-all` sets HYPOTHESIS_PROFILE=deep. Continuous integration tries the same examples each
# time, so that a change is not blamed for what chance found.
_fixed = bool(os.environ.get("CI"))
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25, derandomize=_fixed)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=200, derandomize=_fixed)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drop what a file compiled: a worker that kept it all would grow to several GB.

    What another file compiles does not depend on the files before it, either.
    """
    yield
    jax.clear_caches()
    gc.collect()
