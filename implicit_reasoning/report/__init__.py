"""The page of a run, `write_report(run) -> Path`, and of a sweep, `write_sweep_report(runs)`.

    collect.py   asks the rooms for their figures and pages; files, and TensorBoard's images
    tables.py    what the page says in words and numbers
    page.py      puts both into page.html, and what else rooms have to show into extra.html
    sweep.py     the page of a sweep, sweep.html
    base.html    the look that pages share

The report knows no instrument by name: a room that has figures gives `figures(run)` in a module of
its own, one that has a page of its own `pages(run)`, and the module's import path goes into
`PROVIDERS`.
"""

from implicit_reasoning.report.collect import PROVIDERS
from implicit_reasoning.report.page import write_report
from implicit_reasoning.report.sweep import write_sweep_report

__all__ = ["PROVIDERS", "write_report", "write_sweep_report"]
