"""Search documentation, code and tests for phrases that style.md replaces: a part of `make lint`.

    python .ci/phrases.py

The list is short on purpose. It has phrases that occurred in this repository and that readers did
not understand. docs/development/style.md says what to write instead.
"""

import re
import subprocess
import sys
from pathlib import Path

PHRASES = {
    "whose schedules are one": "all trials share a schedule",
    "of the run; of each trial of a population": "one per trial",
    "what the device will know": "results that are still being computed on the device",
    "comes by this step again": "will not revisit this step",
    "as a wish, not a death": "handle SIGTERM and SIGINT gracefully",
    "say the same here": "raise if the processes disagree",
    "unheard of": "orphaned",
    "that is there has another version": "saved result for X has version 1, expected 2",
    "at least one trial, and one at once": "count and at_once must be at least 1",
    "each that is read has one that is written": "read and write must have equal length",
    "(They are not:": "Result: ...",
    "is gone on from": "is resumed from",
    "the house's own": "introduced here",
}
"""Phrases, with their replacements."""

FILES = ("*.md", "*.py", "*.yml", "*.toml", "*.cff", "Makefile")
EXCEPT = (".ci/phrases.py", "docs/development/style.md", "tests/docs/test_style.py")
_BETWEEN = r"""(?:\s|#|"|')+"""  # words may be on two lines, of a comment or of two strings


def patterns() -> dict[str, re.Pattern[str]]:
    """Return the pattern that finds each phrase."""
    return {
        phrase: re.compile(_BETWEEN.join(map(re.escape, phrase.split())), re.IGNORECASE)
        for phrase in PHRASES
    }


def find(text: str) -> list[tuple[int, str]]:
    """Return `(line, phrase)` for every phrase in a text."""
    found = []
    for phrase, pattern in patterns().items():
        for match in pattern.finditer(text):
            found.append((text.count("\n", 0, match.start()) + 1, phrase))
    return sorted(found)


def main() -> int:
    """Search the tracked files; return 1 if any phrase is found."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *FILES], check=True, capture_output=True, text=True
    ).stdout
    count = 0
    for name in filter(None, listed.split("\0")):
        if name in EXCEPT or not Path(name).exists():
            continue
        for line, phrase in find(Path(name).read_text(encoding="utf-8")):
            print(f"{name}:{line}: {phrase!r}; write instead: {PHRASES[phrase]}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
