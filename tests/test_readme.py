"""What the README says is run: its Python, and the names of its commands and files."""

import re
from pathlib import Path

import pytest

from implicit_reasoning.__main__ import VERBS

README = Path("README.md").read_text(encoding="utf-8")


def test_the_notebook_example_runs(tmp_path, monkeypatch, capsys):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    configs = Path("configs").absolute()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(configs)
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"\(2, \d+, 3, 64\)", said)
    assert (tmp_path / "runs" / "notebook" / "metrics.jsonl").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_in_the_table_with_its_flags(verb):
    [row] = re.findall(rf"^\| `({verb} .*?)` \|", README, re.MULTILINE)
    assert re.findall(r"--(\w+)=", row) == list(VERBS[verb].flags)


def test_the_files_it_links_to_exist():
    for target in re.findall(r"!?\[.*?\]\((?!http)(.*?)\)", README):
        assert Path(target).exists(), target
