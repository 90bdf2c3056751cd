"""Pictures of attention patterns in notebooks and in files: HTML without scripts and network.

Colors are shades of one hue whose opacity is the attention, so the picture is readable on light and
dark pages. Weights of at least .05 are also written in the cells, in percent, where a cell is large
enough. Each cell has a tooltip.

Source of the idea: CircuitsVis (`attention_patterns`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float
from markupsafe import Markup, escape

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.formatting import card, note

_HUE = "#2b83d6"  # at least 3.9 to 1 against both white and #111
_LARGE, _SMALL = 22, 12  # pixels of a cell
_MANY = 12  # prompts with more tokens have small cells
_CHARACTER = 6.2  # pixels of a character of a label
_LONGEST = 14  # characters of a label

_STYLE = Markup(
    "<style>"
    ".ir-heads{display:flex;flex-wrap:wrap;gap:.4em 1.2em;align-items:flex-end;margin:.2em 0 .8em}"
    ".ir-heads figure{margin:0}"
    ".ir-heads figcaption{text-align:right;font-size:.85em;opacity:.75}"
    ".ir-attention text{fill:currentColor;font:10px ui-monospace,monospace}"
    ".ir-attention .ir-percent{font-size:9px;text-anchor:middle}"
    ".ir-attention .ir-frame{fill:none;stroke:currentColor;stroke-opacity:.35}"
    ".ir-attention .ir-query:hover rect{stroke:currentColor}"
    "</style>"
)

_PAGE = Markup(
    "<!doctype html>\n"
    '<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    "<title>{}</title><style>body{{font-family:system-ui,sans-serif;margin:1.5em}}</style></head>"
    "<body>{}</body></html>\n"
)


class AttentionPatterns:
    """The attention patterns of one prompt, which a notebook shows as a picture.

    Rows are queries, and columns are keys. The first layer is on top.

    Attributes:
      attention: [layer, head, query, key].
      labels: a label for each position.
      title: the title of the picture.
    """

    def __init__(
        self, attention: Float[np.ndarray, "layer head query key"], labels: list[str], title: str
    ):
        self.attention, self.labels, self.title = attention, labels, title

    def html(self) -> str:
        """Return the picture as HTML, to be put into a page."""
        rows = Markup("")
        for layer, heads in enumerate(self.attention):
            panels = Markup("").join(
                Markup("<figure>{}<figcaption>L{}H{}</figcaption></figure>").format(
                    _panel(pattern, self.labels), layer, head
                )
                for head, pattern in enumerate(heads)
            )
            rows += Markup('<div class="ir-heads">{}</div>').format(panels)
        about = "Rows are queries, columns are keys. Shade and number: attention in percent."
        return card("Attention patterns", self.title, _STYLE, rows, note(about))

    _repr_html_ = html

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as an HTML page that needs no other file, atomically."""
        with atomic_write(path) as file:
            file.write(_PAGE.format(self.title, Markup(self.html())))


def attention_patterns(
    tokens: Sequence[str],
    attention: Float[Array | np.ndarray, "*layer head query key"],
    title: str = "",
) -> AttentionPatterns:
    """Return a picture of the attention patterns of one prompt; a notebook shows it.

    For a cache of several prompts, `cache.stack_activation("pattern")[:, 0]` has the patterns of
    the first prompt.

    Args:
      tokens: a label for each position, for example `[dataset.vocab[token] for token in prompt]`.
      attention: the patterns of all heads of one layer, or of several layers.
      title: the title; by default, the tokens.

    Raises:
      InputError: the patterns do not have one row and one column for each token.
    """
    values = np.asarray(attention, np.float32)
    if values.ndim not in (3, 4) or values.shape[-2:] != (len(tokens), len(tokens)):
        raise InputError(
            f"attention has the shape {values.shape}; with {len(tokens)} tokens, it must be "
            f"[head, {len(tokens)}, {len(tokens)}] or [layer, head, {len(tokens)}, {len(tokens)}]"
        )
    labels = [str(token) for token in tokens]
    return AttentionPatterns(
        values.reshape(-1, *values.shape[-3:]), labels, title or " ".join(labels)
    )


def _panel(pattern: np.ndarray, labels: Sequence[str]) -> Markup:
    """Return the SVG of the pattern [query, key] of one head."""
    size, n = _LARGE if len(labels) <= _MANY else _SMALL, len(labels)
    shown = [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in labels]
    margin = 6 + _CHARACTER * max(map(len, shown))
    parts = []
    for place, text in enumerate(shown):
        middle = margin + size * (place + 0.5)
        parts.append(f'<text x="{margin - 4:.1f}" y="{middle + 3:.1f}" text-anchor="end">')
        parts.append(f"{escape(text)}</text>")
        turned = f"translate({middle + 3:.1f} {margin - 4:.1f}) rotate(-90)"
        parts.append(f'<text transform="{turned}">{escape(text)}</text>')
    for query in range(n):
        parts.append('<g class="ir-query">')
        for key in range(query + 1):
            parts.append(_cell(float(pattern[query, key]), query, key, labels, size, margin))
        parts.append("</g>")
    steps = "".join(f"h{size}v{size}" for _ in range(n))
    parts.append(f'<path class="ir-frame" d="M{margin} {margin}{steps}H{margin}Z"/>')
    side = margin + size * n + 2
    box = f'width="{side:.0f}" height="{side:.0f}" viewBox="0 0 {side:.0f} {side:.0f}"'
    return Markup(f'<svg class="ir-attention" {box} role="img">{"".join(parts)}</svg>')


def _cell(
    weight: float, query: int, key: int, labels: Sequence[str], size: int, margin: float
) -> str:
    x, y = margin + size * key, margin + size * query
    tip = f"{labels[query]} (position {query}) attends to {labels[key]} (position {key}): "
    rect = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" fill="{_HUE}" '
        f'fill-opacity="{min(max(weight, 0), 1):.3f}"><title>{escape(tip)}{weight:.3f}</title>'
        "</rect>"
    )
    if size < _LARGE or round(100 * weight) < 5:
        return rect
    middle = f'x="{x + size / 2:.1f}" y="{y + size / 2 + 3:.1f}"'
    return (
        f'{rect}<text class="ir-percent" {middle} pointer-events="none">{100 * weight:.0f}</text>'
    )
