"""Full disks, folders that cannot be written, and damaged files give an error of one sentence.

Finished work is not lost: if the damage is repaired, the same command continues to the same run.
"""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training import train
from tests import shared
from tests.disks import read_only, small_disk, small_files
from tests.training.tiny import TINY, assert_same_run, tiny

CONFIG = f"--config={Path('configs').absolute()}/composition.py:pocket"
OVERRIDES = [f"--config.{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def finished():
    return Layout(shared.finished())


@pytest.fixture
def files(finished, tmp_path):
    """Return a copy of a run, to be damaged."""
    return Layout(shutil.copytree(finished.workdir, tmp_path / "run"))


def command(workdir):
    return main(["train", CONFIG, f"--workdir={workdir}", *OVERRIDES])


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 16
    path.write_bytes(content)


def checkpoint_data(folder):
    """Return the file that has the numbers of a small checkpoint."""
    [path] = (folder / "default" / "d").iterdir()
    return path


DAMAGE = {
    "config cut": (lambda f: cut(f.config), "config.json is not complete, valid JSON"),
    "config empty": (lambda f: f.config.write_text(""), "config.json is not complete"),
    "world cut": (lambda f: cut(f.world), "world.npz is not a complete dataset file"),
    "world flipped": (lambda f: flip(f.world), "world.npz"),
    "metrics spoilt": (
        lambda f: f.metrics.write_text('{"step": 0}\n{"st\n{"step": 2}\n'),
        "metrics.jsonl, line 2, is not JSON",
    ),
    "metrics of another kind": (
        lambda f: f.metrics.write_text('{"step": 0}\n["step", 1]\n'),
        "metrics.jsonl, line 2, is not a metrics row",
    ),
    "provenance cut": (lambda f: cut(f.provenance), "provenance.json is not complete"),
    "provenance of another kind": (
        lambda f: f.provenance.write_text('{"step": 3}'),
        "provenance.json is not a list of the starts of the run; remove",
    ),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_is_answered_in_a_sentence_and_nothing_is_touched(fault, files, capsys):
    damage, said = DAMAGE[fault]
    damage(files)
    before = {p: p.read_bytes() for p in files.workdir.rglob("*") if p.is_file()}
    assert command(files.workdir) == 2
    heard = capsys.readouterr().err
    assert said in heard and "Traceback" not in heard
    assert before == {p: p.read_bytes() for p in files.workdir.rglob("*") if p.is_file()}


def test_a_metrics_line_cut_by_a_crash_is_trained_again(finished, files):
    shutil.rmtree(files.resume / "60")
    cut(files.metrics, 0.97)
    assert command(files.workdir) == 0
    assert_same_run(finished.workdir, files.workdir)


def test_a_damaged_newest_state_falls_back_to_the_one_before(finished, files, capfd):
    cut(checkpoint_data(files.resume / "60"))
    # Checkpoints after the lost state are not mixed with those that are trained now.
    shutil.copytree(files.checkpoints / "50", files.checkpoints / "55")
    assert command(files.workdir) == 0
    heard = capfd.readouterr().err
    assert "resume/60 cannot be read" in heard and "trying the previous state" in heard
    assert_same_run(finished.workdir, files.workdir)
    assert 55 not in Run(files.workdir).steps


def test_without_a_whole_state_it_says_how_to_begin_again(finished, files, capfd):
    for step in ("40", "60"):
        cut(files.resume / step / "default" / "manifest.ocdbt")
    kept = Run(files.workdir).steps
    assert command(files.workdir) == 2
    assert "no state in" in capfd.readouterr().err
    assert Run(files.workdir).steps == kept  # no finished checkpoint is lost
    shutil.rmtree(files.resume)
    assert command(files.workdir) == 0
    assert_same_run(finished.workdir, files.workdir)


def test_a_damaged_checkpoint_is_named_and_the_others_open(files):
    cut(checkpoint_data(files.checkpoints / "25"))
    run = Run(files.workdir)
    with pytest.raises(ValueError, match=r"checkpoints/25 cannot be read"):
        run.params([25])
    assert run.params([0, 50])["embed"]["W_E"].shape[0] == 2


def test_a_damaged_first_correct_is_named_and_written_anew(finished, files):
    cut(files.first_correct)
    with pytest.raises(ValueError, match=r"first_correct.npz is not a complete record"):
        _ = Run(files.workdir).first_correct
    shutil.rmtree(files.resume / "60")
    assert command(files.workdir) == 0
    assert_same_run(finished.workdir, files.workdir)


@contextlib.contextmanager
def no_large_files(tmp_path):
    with small_files():
        yield tmp_path / "run"


@contextlib.contextmanager
def full_disk(tmp_path):
    """A file system with room for the world but not for the run; its contents are copied
    afterwards.
    """
    with small_disk(tmp_path / "disk", "400k") as disk:
        yield disk / "run"
        shutil.copytree(disk / "run", tmp_path / "run")


@pytest.mark.parametrize(
    ("limited", "said"),
    [
        (no_large_files, "File too large"),
        pytest.param(full_disk, "No space left on device", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_answered_and_with_room_the_run_goes_on(
    limited, said, finished, tmp_path, capfd
):
    with limited(tmp_path) as workdir:
        assert command(workdir) == 74
    heard = capfd.readouterr().err
    assert said in heard
    assert command(tmp_path / "run") == 0
    assert_same_run(finished.workdir, tmp_path / "run")


def test_an_unwritable_directory_is_answered_and_left_as_it_is(finished, tmp_path, capfd):
    with read_only(tmp_path / "read_only", finished.workdir) as folder:
        assert command(folder) == 74
    assert "Read-only file system" in capfd.readouterr().err


def test_stale_temporary_files_and_folders_are_cleaned_at_start(finished, files):
    half = files.checkpoints / "70.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    (half / "_METADATA").write_text('{"tree_')
    (files.workdir / ".config.json.abc.tmp").write_text("{")
    assert command(files.workdir) == 0
    assert_same_run(finished.workdir, files.workdir)


def test_after_a_change_of_mesh_nothing_of_the_old_trajectory_stays(files):
    """Checkpoints after the state to resume from are removed first."""
    shutil.rmtree(files.resume / "60")
    before = json.loads((files.checkpoints / "50" / "_CHECKPOINT_METADATA").read_text())
    train(tiny(mesh__data=1), files.workdir, stop_at=45)
    assert Run(files.workdir).steps == (0, 25)
    train(tiny(), files.workdir)
    after = json.loads((files.checkpoints / "50" / "_CHECKPOINT_METADATA").read_text())
    assert after["init_timestamp_nsecs"] > before["init_timestamp_nsecs"]
