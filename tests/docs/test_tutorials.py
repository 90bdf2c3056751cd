"""Tutorials run at a smoke size, and their pages show their code."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests import shared

TUTORIALS = sorted(Path("docs/tutorials").glob("[0-9]*_*.py"))
HIDDEN = ("smoke", "hidden")
GROK = "runs/tutorials/grok"  # the run of tutorial 1, which others open if it is there


def cells(text):
    """Return `(header, body)` of every cell of a file in percent format."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], (body.strip() for body in parts[1::2]), strict=True))


# They compile many programs; mypy (`make lint`) checks their names and calls.
@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    # The whole path, so that the source of what it defines can be read from another folder.
    code = compile(path.read_text(encoding="utf-8"), str(path.resolve()), "exec")
    monkeypatch.setenv("TUTORIAL_SIZE", "smoke")
    monkeypatch.setattr(plt, "show", plt.close)
    if GROK in path.read_text(encoding="utf-8") and not path.stem.startswith("1_"):
        shared.finished_copy(tmp_path / GROK)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_its_page_shows_its_cells(path):
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    for header, body in cells(path.read_text(encoding="utf-8")):
        if any(f'"{tag}"' in header for tag in HIDDEN):
            assert body not in page
        elif "[markdown]" in header:
            lines = [re.sub("^# ?", "", line) for line in body.splitlines()]
            title, _, rest = "\n".join(lines).partition("\n")
            assert title in page and rest.strip() in page, "run `make tutorials`"
        else:
            assert f"```python\n{body}\n```" in page, "run `make tutorials`"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_figure_has_an_alternative_text(path):
    drawn = [header for header, body in cells(path.read_text("utf-8")) if "plt.show()" in body]
    texts = [re.fullmatch(r' alt="([^"]{20,})"', header)[1] for header in drawn]
    assert re.findall(r"!\[(.*?)\]\(", path.with_suffix(".md").read_text("utf-8")) == texts


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_its_page_is_of_any_machine(path):
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert not re.search(r" at 0x[0-9a-f]{6}|/home/|/root/|/tmp/", page)


def test_the_page_shows_what_runs_in_transformer_lens():
    """The blocks of tutorial 3 that need PyTorch are the cells of a script."""
    page = Path("docs/tutorials/3_patching_as_in_transformer_lens.md").read_text(encoding="utf-8")
    script = Path("docs/tutorials/transformer_lens_part.py").read_text(encoding="utf-8")
    *shown, last = cells(script)
    assert len(shown) == 4 and "savez" in last[1]
    for _, body in shown:
        assert f"```python\n{body}\n```" in page


def test_there_are_tutorials():
    assert TUTORIALS
