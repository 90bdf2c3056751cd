"""docs/development/architecture.md names every package, in the order that imports follow."""

import re
from pathlib import Path

from tests.test_architecture import FLOORS, PACKAGE

PAGE = Path("docs/development/architecture.md").read_text(encoding="utf-8")


def names(heading):
    """The names in the first column of a table, row by row; the table by its first heading."""
    table = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", first) for first in firsts]


def test_every_package_is_named_in_the_order_of_imports():
    floors = [{name.rstrip("/") for name in row} for row in names("package or module")]
    assert floors == [rooms - {"__version__"} for rooms in FLOORS]


def test_what_is_named_exists():
    for name in (name for row in names("package or module") for name in row):
        assert (PACKAGE / (name if name.endswith("/") else f"{name}.py")).exists(), name
    for [name] in names("folder"):
        assert Path(name).is_dir(), name
    files = re.findall(r"`(\w+/\w+\.py)`", PAGE)
    assert files
    for file in files:
        assert Path(file).exists() or (PACKAGE / file).exists(), file
