"""Tutorials in the navigation, in the order of their numbers.

`docs/tutorials/N_NAME.md` is the executed `N_NAME.py`; `docs/tutorials/execute.py` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nav import fill


def on_config(config: Any) -> Any:
    """Add the tutorials to the navigation."""
    found = Path(config.docs_dir, "tutorials").glob("[0-9]*_*.md")
    pages = sorted(found, key=lambda page: int(page.name.partition("_")[0]))
    entries = ["tutorials/index.md", *(f"tutorials/{page.name}" for page in pages)]
    config.nav = fill(config.nav, "tutorials", entries)
    return config
