"""The commands as users type them: their files, their messages and their exit codes."""

import json
from pathlib import Path

import pytest

from implicit_reasoning.__main__ import VERBS, main
from implicit_reasoning.runs import Run
from implicit_reasoning.worlds import Dataset
from tests.training.tiny import TINY

CONFIG = f"--config={Path('configs').absolute()}/composition.py:pocket"
OVERRIDES = [f"--config.{key}={value}" for key, value in TINY.items()]


def test_train_then_report(tmp_path, capsys, blank_figures):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert main(["train", CONFIG, workdir, "--stop_at=20", *OVERRIDES]) == 0
    assert Run(tmp_path / "run").metrics[-1]["step"] == 20
    assert "memorised: not reached" in capsys.readouterr().out
    assert main(["report", workdir]) == 0
    assert "report/index.html" in capsys.readouterr().out
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_world_writes_and_describes(tmp_path, capsys):
    assert main(["world", CONFIG, f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "1,000 facts" in said and "row_completion" in said and "100 at e1, 1,000 at r1" in said
    assert Dataset.load(tmp_path / "world.npz").sizes()["train_ii"] == 6650
    assert len(json.loads((tmp_path / "train.json").read_text())) == 7650
    types = {row["type"] for row in json.loads((tmp_path / "test.json").read_text())}
    assert types >= {"ID Triples", "Train-II", "Test-OI"}


def test_world_speaks_wangs_names_too(tmp_path):
    argv = [CONFIG, "--config.task.mixed_chains=false", f"--out={tmp_path}", "--wang_types"]
    assert main(["world", *argv]) == 0
    types = {row["type"] for row in json.loads((tmp_path / "test.json").read_text())}
    assert types >= {"id_atomic", "train_inferred", "test_inferred_ood"}


@pytest.mark.parametrize("argv", [["help"], ["--help"], ["-h"]])
def test_help_lists_every_command(argv, capsys):
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert all(f"    {verb} " in said for verb in VERBS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "there is no command 'trian'"),
        (["train", CONFIG], "train needs --workdir="),
        (["train", CONFIG, "--workdri=x"], "did you mean --workdir"),
        (
            ["train", CONFIG.replace("pocket", "pokcet"), "--workdir=x"],
            "did you mean pocket?",
        ),
        (["train", "--config=configs/compositoin.py", "--workdir=x"], "does not exist"),
        (["train", CONFIG, "--workdir=x", "--config.task.ph=3", "--config.steps=.5"], "2 faults"),
        (["train", CONFIG, "--workdir=x", "--config.task.name=compsition"], "'composition'"),
        (["world", CONFIG, "--out=x", "--config.task.phi=12"], "phi can be at most"),
        (["world", CONFIG, "--out=x", "--config.task.out_degree=11"], "out_degree"),
        (
            ["world", CONFIG, "--out=x", "--wang_types"],
            "Wang et al. do not have the split 'test_io'",
        ),
        (["report", "--workdir=nowhere"], "is not a run directory"),
        (["report", "--workdir=nowhere", "--config.steps=3"], "takes no --config"),
    ],
)
def test_mistakes_are_answered_in_a_sentence_exit_2_and_leave_nothing(
    argv, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    heard = capsys.readouterr().err
    assert said in heard and "Traceback" not in heard
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory_is_answered_in_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", CONFIG, f"--workdir={tmp_path / 'file' / 'run'}", *OVERRIDES]) == 74
    assert "Not a directory" in capsys.readouterr().err


def test_divergence_exits_3_and_names_the_step(tmp_path, capsys):
    argv = ["train", CONFIG, f"--workdir={tmp_path}", *OVERRIDES]
    assert main([*argv, "--config.optimizer.learning_rate=1e30"]) == 3
    assert "not finite at step" in capsys.readouterr().err
