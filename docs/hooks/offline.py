"""The built site loads nothing from other hosts: no scripts, styles, fonts or images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

LOADS = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?![^>]*\brel=["']?(?:canonical|next|prev)\b)[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//[^"']+)"""
    r"""|(<(?:pre|div) class="mermaid")"""  # the theme would load Mermaid from a CDN
)


def loaded_from_outside(text: str) -> list[str]:
    """Return the addresses on other hosts from which a page or a style sheet loads anything."""
    return [next(filter(None, match.groups())) for match in LOADS.finditer(text)]


def on_post_build(config: Any) -> None:
    """Raise an error if a page or a style sheet loads anything from another host."""
    found = []
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css"):
            for address in loaded_from_outside(path.read_text(encoding="utf-8")):
                found.append(f"{path.relative_to(config.site_dir)} loads {address}")
    if found:
        raise PluginError("the site must work offline: " + "; ".join(found[:5]))
