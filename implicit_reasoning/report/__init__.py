"""HTML reports of runs (`write_report`) and of sweeps (`write_sweep_report`).

    collect.py   collects figures and pages from the providers; writes figure files and TensorBoard
                 images
    tables.py    text and tables of the report of a run
    page.py      the report of a run (page.html) and its further pages (extra.html)
    sweep.py     the report of a sweep (sweep.html)

The common layout of all pages is `base.html` in the folder of the package (`pages.py`).

The report does not depend on specific instruments. Figures and pages come from providers. A
provider is a module that defines `figures(run)`, `pages(run)` or both functions. `PROVIDERS` lists
the import paths of the providers.
"""

from implicit_reasoning.report.collect import PROVIDERS
from implicit_reasoning.report.page import write_report
from implicit_reasoning.report.sweep import write_sweep_report

__all__ = ["PROVIDERS", "write_report", "write_sweep_report"]
