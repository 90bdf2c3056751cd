"""Text and HTML that describe objects in notebooks and reports: numbers, fields and tables.

The HTML has no scripts and no external resources. It inherits its colors from the page, so it is
readable in light and dark themes. All data in the HTML is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

MAX_ROWS = 10
"""Maximum number of rows of a table in a notebook."""

_STYLE = Markup(
    "<style>"
    ".implicit-reasoning{line-height:1.45}"
    ".implicit-reasoning .ir-title{font-weight:600;padding-bottom:.2em;"
    "border-bottom:1px solid rgba(128,128,128,.5)}"
    ".implicit-reasoning table{border-collapse:collapse;border:0;margin:.4em 0 0;width:auto;"
    "font-size:inherit;color:inherit}"
    ".implicit-reasoning th,.implicit-reasoning td{text-align:left;vertical-align:top;border:0;"
    "padding:.1em 1.2em .1em 0;color:inherit;background:none;max-width:60em;"
    "overflow-wrap:anywhere;white-space:normal}"
    ".implicit-reasoning th{font-weight:600}"
    ".implicit-reasoning tr{background:none}"
    ".implicit-reasoning thead th{border-bottom:1px solid rgba(128,128,128,.5)}"
    ".implicit-reasoning .ir-number{text-align:right;font-variant-numeric:tabular-nums}"
    ".implicit-reasoning .ir-note{opacity:.75}"
    "</style>"
)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 layer`, `2,000 layers`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_count(count: int) -> str:
    """Return a count with three significant digits and a unit: `950`, `1.23k`, `45.6M` or `7B`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def listed(values: Sequence[Any], limit: int = MAX_ROWS) -> str:
    """Return values separated by commas, or `none` if there are no values.

    For more than `limit` values, the text contains the first `limit` values and the number of
    omitted values.
    """
    more = f" and {len(values) - limit:,} more" if len(values) > limit else ""
    return (", ".join(map(str, values[:limit])) or "none") + more


def attempt(make: Callable[[], Any]) -> Any:
    """Return `make()`, or a text with the error message if `make` raises an exception.

    The display of objects in notebooks uses this function, because display must never fail.
    """
    try:
        return make()
    except Exception as error:
        return f"cannot be read: {error}"


def card(kind: str, name: object, *parts: str) -> str:
    """Return the HTML of an object.

    Args:
      kind: the type of the object.
      name: text that identifies the object. It is escaped.
      *parts: HTML from `fields`, `table` or `note`. Plain text is escaped.
    """
    title = Markup('<div class="ir-title">{} {}</div>').format(kind, name)
    body = Markup("").join((title, *parts))
    return str(Markup('<div class="implicit-reasoning">{}{}</div>').format(_STYLE, body))


def fields(values: Mapping[str, object]) -> Markup:
    """Return the HTML of named values, one per line; names and values are escaped."""
    line = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>')
    lines = Markup("").join(line.format(name, value) for name, value in values.items())
    return Markup("<table><tbody>{}</tbody></table>").format(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], limit: int = MAX_ROWS) -> Markup:
    """Return the HTML of a table. Cells are escaped; cells that are not text are aligned right.

    Args:
      header: the names of the columns.
      rows: the rows, with one cell per column. A float is shown with three decimal places. None
        gives an empty cell.
      limit: the maximum number of rows to show. A line below the table says how many rows were
        omitted.

    Raises:
      ValueError: a row does not have one cell per column.
    """
    shown = rows[:limit]
    head = Markup("").join(
        _cell(name, "th", all(not isinstance(cell, str) for cell in column))
        for name, *column in zip(header, *shown, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(_cell(cell, "td", not isinstance(cell, str)) for cell in row)
        )
        for row in shown
    )
    found = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
    return found + note(f"and {len(rows) - limit:,} more") if len(rows) > limit else found


def note(text: object) -> Markup:
    """Return the HTML of a line of text. The text is escaped."""
    return Markup('<div class="ir-note">{}</div>').format(text)


def _cell(value: object, tag: str, is_number: bool) -> Markup:
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else value
    text = f"{text:,}" if type(text) is int else text
    kind = Markup(' class="ir-number"') if is_number else ""
    return Markup(f"<{tag}{kind}>") + escape(text) + Markup(f"</{tag}>")
