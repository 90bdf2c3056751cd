"""Names in README and docs exist, and the page on the architecture lists every package in order."""

import importlib
import re
from pathlib import Path

import pytest

from tests.test_architecture import FLOORS, PACKAGE

PAGES = {str(path): path.read_text(encoding="utf-8") for path in Path("docs").rglob("*.md")}
PAGES["README.md"] = Path("README.md").read_text(encoding="utf-8")
ARCHITECTURE = PAGES["docs/development/architecture.md"]


def names(heading):
    """Return the names in the first column of a table by row; `heading` is its first heading."""
    table = ARCHITECTURE.split(f"\n| {heading} |")[1].split("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", first) for first in firsts]


def test_every_package_is_named_in_the_order_of_imports():
    floors = [{name.rstrip("/") for name in row} for row in names("package or module")]
    assert floors == [rooms - {"__version__"} for rooms in FLOORS]


def test_packages_and_folders_that_are_named_exist():
    for name in (name for row in names("package or module") for name in row):
        assert (PACKAGE / (name if name.endswith("/") else f"{name}.py")).exists(), name
    for [name] in names("folder"):
        assert Path(name).is_dir(), name


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_exists(page):
    """Check dotted names in the package, and file names of the package, tests and scripts."""
    for name in re.findall(r"`(implicit_reasoning(?:\.\w+)+)(?:\(\))?`", PAGES[page]):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[count:]:
            assert hasattr(found, part), f"{page} names {name}"
            found = getattr(found, part)
    for file in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGES[page]):
        assert any((folder / file).exists() for folder in (Path(), PACKAGE)), f"{page} names {file}"
