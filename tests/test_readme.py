"""What the README says is run: its Python, and the names of its commands and files."""

import re
from pathlib import Path

import pytest

from implicit_reasoning.__main__ import VERBS, main
from implicit_reasoning.report import write_report
from implicit_reasoning.runs import Run

README = Path("README.md").read_text(encoding="utf-8")


def python_of(heading):
    """The one block of Python in a section."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    [example] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return example


def test_the_notebook_example_runs(tmp_path, monkeypatch, capsys):
    example = python_of("In a notebook")
    configs = Path("configs").absolute()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(configs)
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"\(2, \d+, 3, 64\)", said)
    assert (tmp_path / "runs" / "notebook" / "metrics.jsonl").exists()


def test_the_task_of_your_own_is_trained_and_reported(tmp_path, monkeypatch):
    example = python_of("A task of your own")
    assert len(example.splitlines()) <= 52  # some 40 without its blank lines
    configs = Path("configs").absolute()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(configs)
    (tmp_path / "inverse.py").write_text(example, encoding="utf-8")
    small = {"steps": 6, "batch_size": 16, "evaluation.every": 2, "checkpoints.every": 6}
    small |= {"task.n_entities": 12, "task.n_relations": 3, "task.probes": 10}
    small |= {"model.n_layers": 1, "model.d_model": 8, "model.n_heads": 2, "model.d_mlp": 8}
    words = [f"--config.{key}={value}" for key, value in small.items()]
    command = ["train", "--config=inverse.py", "--workdir=runs/inverse", *words]
    assert main([*command, "--config.writers.progress=false"]) == 0
    run = Run("runs/inverse")
    page = write_report(run, providers=()).read_text(encoding="utf-8")  # figures take seconds
    assert "test_backward" in page and "In-distribution" in page

    assert run.dataset.sizes() == {"forward": 36, "train_backward": 18, "test_backward": 18}
    forward = {tuple(row) for row in run.dataset.tokens[:36]}
    assert len(forward) == 36
    answer = {
        tuple(t): int(a) for t, a in zip(run.dataset.tokens, run.dataset.answers[:, 0], strict=True)
    }
    for (entity, relation), said in answer.items():
        if relation >= 12 + 3:  # the inverse of an inverse is the fact
            assert answer[said, relation - 3] == entity
    assert "accuracy/test_backward" in run.metrics[-1]


def test_every_configuration_is_in_the_table_of_worlds():
    table = README.split("\n## Worlds\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))))
    assert named == {path.stem for path in Path("configs").glob("*.py")}


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_in_the_table_with_its_flags(verb):
    [row] = re.findall(rf"^\| `({verb} .*?)` \|", README, re.MULTILINE)
    assert re.findall(r"--(\w+)=", row) == list(VERBS[verb].flags)


def test_the_files_it_links_to_exist():
    for target in re.findall(r"!?\[.*?\]\((?!http)(.*?)\)", README):
        assert Path(target).exists(), target
