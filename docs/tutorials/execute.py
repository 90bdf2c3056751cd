"""Execute tutorials and write their pages: `make tutorials`, or `make tutorials TUTORIALS=1_NAME`.

    python docs/tutorials/execute.py [NAME ...]

A tutorial is `docs/tutorials/N_NAME.py` in jupytext's percent format. Its page is `N_NAME.md`, with
figures in `N_NAME_files/`. Both are committed, so `make docs` executes nothing.

Cells tagged `smoke` are not on the page. They make the tutorial small where `TUTORIAL_SIZE=smoke`
is set, as in the tests. Cells tagged `hidden` are executed and not on the page either. The cell of
a figure has the alternative text of the figure: `# %% alt="..."`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HIDDEN = ("smoke", "hidden")
WIDGET = "application/vnd.jupyter.widget-view+json"
"""Type of the output of a progress bar if ipywidgets is installed."""


def execute(source: Path) -> Any:
    """Run a tutorial from the root of the repository; returns the notebook with its outputs."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=3600, resources=resources).execute()
    return notebook


def keep_what_is_shown(notebook: Any) -> None:
    """Remove hidden cells, progress bars, standard error, and paths of this machine."""
    cells = notebook.cells
    notebook.cells = [c for c in cells if not set(HIDDEN) & set(c.metadata.get("tags", ()))]
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        cell["outputs"] = [
            out for out in outputs if out.get("name") != "stderr" and WIDGET not in str(out)
        ]
        join_streams(cell)
        for out in cell["outputs"]:
            for holder in (out, out.get("data", {})):
                for key, value in holder.items():
                    if isinstance(value, str) and not key.startswith("image/"):
                        holder[key] = value.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")


def join_streams(cell: Any) -> None:
    """Join what a cell printed before and after an output that was removed."""
    joined: list[Any] = []
    for out in cell["outputs"]:
        if joined and out["output_type"] == joined[-1]["output_type"] == "stream":
            joined[-1]["text"] += out["text"]
        else:
            joined.append(out)
    cell["outputs"] = joined


def alternative_texts(notebook: Any) -> Iterator[str]:
    """Yield the alternative text of every figure: `# %% alt="..."` above the cell that draws it."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if any(kind.startswith("image/") for kind in out.get("data", {})):
                if "alt" not in cell.metadata:
                    raise ValueError(f'write `# %% alt="..."` above this cell:\n{cell.source}')
                yield cell.metadata["alt"]


def write_page(notebook: Any, source: Path) -> Path:
    """Write the page of a tutorial, and its figures."""
    from nbconvert import MarkdownExporter

    name = f"{source.stem}_files"
    shutil.rmtree(HERE / name, ignore_errors=True)
    resources: Any = {"output_files_dir": name, "unique_key": source.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    texts = alternative_texts(notebook)
    text = re.sub(r"!\[png\]", lambda _: f"![{next(texts)}]", text)
    for file, data in resources["outputs"].items():
        (HERE / file).parent.mkdir(exist_ok=True)
        (HERE / file).write_bytes(data)
    note = f"[The code of this page]({source.name}) is one Python file that you can run.\n"
    title, _, rest = text.strip().partition("\n")
    page = source.with_suffix(".md")
    page.write_text(f"{title}\n\n{note}{rest}\n", encoding="utf-8")
    return page


def main(names: list[str]) -> None:
    """Execute the tutorials that are named, or all."""
    os.environ.pop("TUTORIAL_SIZE", None)
    os.environ["PYTHONPATH"] = str(ROOT)
    for source in sorted(HERE.glob("[0-9]*_*.py")):
        if not names or source.stem in names:
            began = time.perf_counter()
            notebook = execute(source)
            keep_what_is_shown(notebook)
            page = write_page(notebook, source)
            print(f"{page.relative_to(ROOT)}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
