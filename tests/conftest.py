"""Settings of all tests: they run on the CPU, with checked shapes and types, and reproducibly."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# This is set before anything imports jax, because a test must not take an accelerator that a run is
# using.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time is compiling. LLVM's optimizations and XLA's fusion emitters take most of
# this time and do not speed up tiny programs, so only `make test-all` (TESTS=thorough) uses them.
# Splitting a tiny program into parts, which are compiled in parallel, takes a fifth of the rest.
_CHEAP = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# The package switches YNNPACK off (runtime/xla_flags.py). LLVM then compiles every product, which
# takes longer. Here, YNNPACK computes single products, without the fusions that are at fault. XLA
# aborts if it does not know a flag.
if version("jaxlib").startswith(("0.10.", "0.11.")):
    _CHEAP += " --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
_thorough = os.environ.get("TESTS") == "thorough"
if not _thorough and "PYTEST_XDIST_WORKER" not in os.environ:
    _flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_flags} {_CHEAP}".strip()
# A shape that broadcasts by accident is an error, here and in the processes that tests start.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Many tests train the same tiny model, some in processes of their own. Each program is compiled
# once per session, in a cache that no other session uses. pytest-xdist's workers inherit it. Set
# JAX_COMPILATION_CACHE_DIR to keep a cache between sessions while developing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="implicit_reasoning_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
# Runs that many tests read (tests/shared.py) are kept for the session. The workers inherit the
# folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _runs = tempfile.mkdtemp(prefix="implicit_reasoning_runs_")
    atexit.register(shutil.rmtree, _runs, ignore_errors=True)
    os.environ["IMPLICIT_REASONING_TEST_RUNS"] = _runs
# Writing a program that compiles faster takes a third as long as compiling it again.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Tracing makes many objects, and the modules of JAX and of the tests hold a million more. With
# Python's thresholds the garbage collector takes a seventh of the time of the tests.
gc.set_threshold(50_000, 20, 20)

import hypothesis
import pytest
from jaxtyping import install_import_hook

from tests.blank_figures import make_figures_blank
from tests.compile_counts import CompileCounts

# Every annotation in the package (jaxtyping's shapes included) is checked at every call.
install_import_hook("implicit_reasoning", "beartype.beartype")

# Continuous integration tries the same examples each time, so that a random failure is not
# attributed to a change.
_fixed = bool(os.environ.get("CI"))
hypothesis.settings.register_profile("quick", deadline=None, max_examples=15, derandomize=_fixed)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=200, derandomize=_fixed)
hypothesis.settings.load_profile("deep" if _thorough else "quick")


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every figure as an empty image, because drawing one takes a second in all formats.

    Tests of `report` and of `drawing` check the figures themselves.
    """
    make_figures_blank(monkeypatch)


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


def pytest_collection_finish() -> None:
    """Exempt from garbage collection what was imported: it stays until the end of the session."""
    gc.collect()
    gc.freeze()
