r"""Lists in text: the one syntax that all flags and overrides share.

Commas separate items. Blanks around an item are removed. A comma that belongs to an item is written
`\,`; any other backslash is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def split_list(text: str) -> list[str]:
    r"""The items of a list: `a, b\,c` has the items `a` and `b,c`.

    Empty text has no items, and one comma at the end adds none.
    """
    if not text.strip():
        return []
    items = re.split(r"(?<!\\),", text)
    if len(items) > 1 and not items[-1].strip():
        items.pop()
    return [item.strip().replace("\\,", ",") for item in items]


def join_list(items: Iterable[str]) -> str:
    """The text of which `split_list` makes these items; none may end with a backslash."""
    return ",".join(item.replace(",", "\\,") for item in items)
