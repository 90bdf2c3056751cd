"""Entries of `nav` in mkdocs.yml that a hook fills: `- Studies: generated/studies`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PREFIX = "generated/"


def fill(nav: Any, name: str, entries: Iterable[Any]) -> Any:
    """Return a copy of `nav` in which a list of entries replaces the value `generated/NAME`."""
    if isinstance(nav, list):
        return [fill(item, name, entries) for item in nav]
    if isinstance(nav, dict):
        return {key: fill(value, name, entries) for key, value in nav.items()}
    return list(entries) if nav == PREFIX + name else nav
