"""Packages import only from the packages below them, and `worlds` needs only numpy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# From the lowest floor to the highest. Rooms on the same floor do not import each other.
FLOORS = [
    {"errors", "field", "figures", "formatting", "renames", "__version__"},
    {"paths"},
    {"files", "imports", "statistics"},
    {"pages", "survival"},
    {"config"},
    {"runtime"},
    {"worlds", "model"},
    {"runs"},
    {"training"},
    {"analysis"},
    {"dictionaries"},
    {"sweeps"},
    {"report", "grokked_transformer", "doctor"},
    {"commands"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = Path("implicit_reasoning")


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("implicit_reasoning."))


@pytest.mark.parametrize(
    "path", [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"], ids=str
)
def test_a_room_imports_only_from_lower_floors(path):
    room = room_of(path)
    for other in imported_rooms(path):
        assert other == room or FLOOR[other] < FLOOR[room], f"{path} imports {other}"


def test_worlds_need_nothing_but_numpy():
    """A cluster's login node, or a browser, can make and read worlds without JAX."""
    code = "import implicit_reasoning.worlds, sys; print([m for m in sys.modules if m in BAD])"
    bad = ["jax", "flax", "optax", "orbax", "ml_collections", "tensorflow", "matplotlib"]
    said = subprocess.run(
        [sys.executable, "-c", code.replace("BAD", repr(bad))], capture_output=True, text=True
    )
    assert said.stdout.strip() == "[]", said.stderr


def test_nothing_imports_tensorflow():
    code = "import implicit_reasoning.report, sys; print('tensorflow' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr


def test_figures_leave_the_backend_of_matplotlib_to_the_user():
    """Else `plt.show()` shows nothing in the notebook that imports an instrument."""
    code = (
        "import matplotlib, sys; matplotlib.use('svg'); import implicit_reasoning.figures;"
        "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "svg False", said.stderr
