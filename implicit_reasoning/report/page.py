"""HTML pages about a run, which can be printed and need no network and no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Page
from implicit_reasoning.files import atomic_write
from implicit_reasoning.pages import make_environment
from implicit_reasoning.report import tables
from implicit_reasoning.report.collect import (
    FORMATS,
    PROVIDERS,
    Rendered,
    collect,
    collect_pages,
    render,
    write_files,
    write_tensorboard,
)
from implicit_reasoning.runs import Layout, Run

TEMPLATES = "implicit_reasoning.report"
"""The package whose folder has the templates of reports."""


def write_report(run: Run, providers: Sequence[str] = PROVIDERS) -> Path:
    """Write the report of a run: `report/index.html`, figures, pages and TensorBoard images.

    An existing report is replaced.

    Args:
      run: the run, finished or still training.
      providers: the import paths of modules that define `figures(run)`, `pages(run)` or both.

    Returns:
      The path of `index.html`.

    Raises:
      InputError: the run has no metrics yet, a provider is invalid, two figures or two pages have
        the same name, or a page is named `index`.
    """
    if not run.metrics:
        raise InputError(
            f"{run.files.metrics} contains no rows yet; write the report after the first "
            "evaluation, at step 0"
        )
    rendered = [render(figure) for figure in collect(run, providers)]
    pages, environment = collect_pages(run, providers), make_environment(TEMPLATES)
    _write_pages(run, environment, pages)
    page = _fill(run, environment, rendered, pages)
    write_files(rendered, run.files.report.parent / "figures")
    if run.config.writers.tensorboard:
        write_tensorboard(rendered, run)
    with atomic_write(run.files.report) as file:
        file.write(page)
    return run.files.report


def _write_pages(run: Run, environment: Environment, pages: Sequence[Page]) -> None:
    """Write `report/<name>.html` for each page. Delete other pages, from an older report."""
    template, folder = environment.get_template("extra.html"), run.files.report.parent
    written = {run.files.report}
    for page in pages:
        path = folder / f"{page.name}.html"
        if path == run.files.report:
            raise InputError(
                f"the page name {page.name!r} is reserved for the report; choose a different name"
            )
        others = [other for other in pages if other is not page]
        with atomic_write(path) as file:
            file.write(template.render(page=page, others=others, name=tables.name_of(run)))
        written.add(path)
    for old in set(folder.glob("*.html")) - written:
        old.unlink()


def _fill(
    run: Run, environment: Environment, rendered: Sequence[Rendered], pages: Sequence[Page]
) -> str:
    figures = [
        {
            "name": one.figure.name,
            "title": one.figure.title,
            "caption": one.figure.caption,
            "image": data_url(one),
        }
        for one in rendered
    ]
    page: str = environment.get_template("page.html").render(
        figures=figures,
        pages=pages,
        formats=FORMATS,
        links=_links(run.files, pages),
        **tables.context(run),
    )
    return page


def data_url(one: Rendered) -> str:
    """Return the SVG of a figure as a data URL, for a self-contained page."""
    return "data:image/svg+xml;base64," + base64.b64encode(one.files["svg"]).decode()


def _links(files: Layout, pages: Sequence[Page]) -> dict[str, str]:
    """Return a description of each existing file of a run, by path relative to the directory."""
    described = {
        **{files.report.parent / f"{page.name}.html": page.title for page in pages},
        files.metrics: "one JSON object per logged step, with every number of the curves",
        files.first_correct: "for each probe row, the step of its first correct answer, or -1",
        files.config: "the resolved configuration of the run",
        files.world: "the dataset: tokens, split and true variables of every row",
        files.provenance: "versions and hardware of every start of the run",
        files.checkpoints: "parameters of every checkpoint, by step (Orbax format)",
        files.tensorboard: "event files for TensorBoard",
        **{
            result: "result of an instrument, as labeled arrays"
            for result in sorted(files.analysis.glob("*.nc"))
        },
        **{page: "what an edit changes" for page in sorted(files.edits.glob("*.html"))},
        **{page: "attribution graphs of a query" for page in sorted(files.graphs.glob("*.html"))},
    }
    root = files.workdir
    return {
        f"{path.relative_to(root)}{'/' if path.is_dir() else ''}": text
        for path, text in described.items()
        if path.exists()
    }
