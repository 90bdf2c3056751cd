"""Figures are links to their files, so that small text in them can be enlarged."""

from __future__ import annotations

import re
from typing import Any

IMAGE = re.compile(r'<img\b[^>]*\bsrc="([^"]+)"[^>]*>')


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Put every image of a page into a link to its file."""
    return IMAGE.sub(r'<a class="figure" href="\1">\g<0></a>', html)
