r"""The text syntax of lists in flags and configuration overrides.

Commas separate items. Blanks around an item are removed. A comma inside an item is written `\,`.
All other backslashes are ordinary characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def split_list(text: str) -> list[str]:
    r"""Split text into items: `a, b\,c` has the items `a` and `b,c`.

    Empty text has no items, and a trailing comma adds no item.
    """
    if not text.strip():
        return []
    items = re.split(r"(?<!\\),", text)
    if len(items) > 1 and not items[-1].strip():
        items.pop()
    return [item.strip().replace("\\,", ",") for item in items]


def join_list(items: Iterable[str]) -> str:
    """Join items into one text; the inverse of `split_list`.

    Args:
      items: the items. No item may end with a backslash.
    """
    return ",".join(item.replace(",", "\\,") for item in items)
