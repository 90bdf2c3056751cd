"""The list of forbidden phrases has those of the page on style, and they are found in files."""

import re
import runpy
from pathlib import Path

PHRASES = runpy.run_path(".ci/phrases.py")


def test_every_phrase_that_is_replaced_is_found():
    page = Path("docs/development/style.md").read_text(encoding="utf-8")
    table = page.split("| not | but |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [line.strip("|").split(" | ") for line in table.splitlines()]
    assert len(rows) >= 10
    for bad, good in rows:
        assert PHRASES["find"](bad), bad
        assert not PHRASES["find"](good), good


def test_a_phrase_is_found_across_lines():
    text = "# a signal is read as a wish, not\n# a death\n"
    assert PHRASES["find"](text) == [(1, "as a wish, not a death")]
    assert PHRASES["find"]('said = (\n    "unless all of them say the "\n    "same here"\n)')


def test_names_of_files_are_whole():
    for name in PHRASES["EXCEPT"]:
        assert Path(name).exists()
    assert not any(re.search(r"[A-Z]{4}", phrase) for phrase in PHRASES["PHRASES"])
