"""The table of guarantees names tests that exist, in the column of the command that runs them."""

import ast
import functools
import re
from pathlib import Path

import pytest

TABLE = Path("docs/development/guarantees.md")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| guarantee "))
]


@functools.cache
def cases_of(path):
    """Return `{name: (has default cases, has slow cases)}`."""
    found = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            slow = "pytest.mark.slow" in marks
            found[node.name] = (not slow, slow or any("mark.slow" in mark for mark in marks))
    return found


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_test_named_exists_and_is_run_by_its_command(row):
    assert len(row) == 3
    for column, cell in enumerate(row[1:]):
        for path, name in TEST.findall(cell):
            assert name in cases_of(path), f"{path} has no test {name}"
            assert cases_of(path)[name][column], f"{name} does not run in column {column + 2}"
    assert TEST.search(row[1]) or TEST.search(row[2]), "no test at all"


def test_the_table_was_read():
    assert len(ROWS) > 50
