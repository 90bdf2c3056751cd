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
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import pytest
from jaxtyping import install_import_hook

from tests.compile_counts import CompileCounts

# Every annotation in the package (jaxtyping's shapes included) is checked at every call.
install_import_hook("implicit_reasoning", "beartype.beartype")

hypothesis.settings.register_profile("local", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `compile_counts.py`."""
    parser.addoption(
        "--programs",
        choices=("check", "write"),
        help="check or record how many programs each test file compiles; see compile_counts.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count compiled programs."""
    config.pluginmanager.register(CompileCounts(config), "compile_counts")
