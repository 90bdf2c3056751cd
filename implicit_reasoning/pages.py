"""HTML pages from templates: the templates of a package, data for scripts, and complete documents.

The template `base.html` is the layout of all pages: colors, fonts, tables and print. A `Page` is a
part of a report, which adds links to its other pages. `write_page` writes a `Page` alone, as one
file that loads nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from implicit_reasoning.figures import Page
from implicit_reasoning.files import atomic_write

_ALONE = """\
{% extends "base.html" %}
{% block title %}{{ page.title }}{% endblock %}
{% block kind %}{{ kind }}{% endblock %}
{% block style %}{{ page.style|safe }}{% endblock %}
{% block header %}
  <h1>{{ page.title }}</h1>
  <p class="lead">{{ page.lead }}</p>
{% endblock %}
{% block main %}
{{ page.body|safe }}
{% endblock %}
"""


def make_environment(package: str) -> Environment:
    """Create the Jinja environment for the templates in the folder of a package.

    Text is escaped, and undefined names raise an error.

    Args:
      package: the import path of the package.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("implicit_reasoning", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_source(environment: Environment, name: str) -> Markup:
    """Return a file of the folder of an environment as it is, such as a script or a style."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def json_for_script(value: Any) -> Markup:
    """Return JSON for the inside of a `<script type="application/json">`.

    No text of the data can end the element or begin a comment in it.
    """
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def complete_page(page: Page, kind: str) -> str:
    """Return a page as a complete HTML document that loads nothing.

    Args:
      page: the page.
      kind: what kind of page it is, for the line above the heading.
    """
    return make_environment("implicit_reasoning").from_string(_ALONE).render(page=page, kind=kind)


def write_page(path: str | os.PathLike[str], page: Page, kind: str) -> None:
    """Write a page as one HTML file that needs no other file, atomically.

    Args:
      path: the file.
      page: the page.
      kind: what kind of page it is, for the line above the heading.
    """
    with atomic_write(path) as file:
        file.write(complete_page(page, kind))
