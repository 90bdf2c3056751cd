"""The README is short, its Python example runs, and the files that it links to exist."""

import re
from pathlib import Path

import pytest

from implicit_reasoning.__main__ import VERBS
from tests import shared
from tests.training.tiny import TINY

README = Path("README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1500


def test_the_notebook_example_runs(tmp_path, monkeypatch, capsys):
    """The example runs on the finished run that many tests share."""
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 12
    workdir = shared.finished_copy(tmp_path / "runs" / "notebook")
    monkeypatch.chdir(tmp_path)
    example = re.sub(r"\{.*?\}", "TINY", example)
    exec(compile(example, "README.md", "exec"), {"TINY": TINY})
    said = capsys.readouterr().out
    assert re.match(r"0\.\d+\npos +e1 +r1 +r2\nlayer +\n0 ", said), said
    assert (workdir / "analysis" / "lens.nc").exists()


def test_the_commands_exist():
    for verb in re.findall(r"^    implicit_reasoning (\w+)", README, re.MULTILINE):
        assert verb in VERBS


def test_the_number_of_configurations_is_right():
    [count] = re.findall(r"(\d+) configurations", README)
    assert int(count) == len(list(Path("configs").glob("*.py")))


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_the_files_it_links_to_exist(file):
    text = Path(file).read_text(encoding="utf-8")
    for target in re.findall(r"!?\[.*?\]\((?!http)(.*?)\)", text):
        assert Path(target).exists(), target
