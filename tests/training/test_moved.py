"""A project with its own task file is moved before its run is finished."""

import shutil

import jax
import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides, changed_keys, from_json, load_config, to_json
from implicit_reasoning.config.trees import same_import
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training import directory, train
from implicit_reasoning.worlds import build
from tests.training.tiny import TINY

CONFIG = """
from pathlib import Path
from implicit_reasoning.config import load_config

def get_config():
    config = load_config("configs/composition.py:pocket")
    config.unlock()
    config.task.name = f"{Path(__file__).parent / 'tasks' / 'mine.py'}:mine"
    return config
"""
TASK = """
from implicit_reasoning.worlds.tasks import composition

def mine(task):
    return composition(task)

def other(task):
    return composition(task)
"""
SHORT = TINY | {"steps": 20, "resume_every": 10, "evaluation.every": 20, "checkpoints.every": 20}


def config_of(project, **changes):
    return apply_overrides(load_config(f"{project}/config.py"), SHORT | changes)


@pytest.fixture
def project(tmp_path):
    """Return a project folder with a configuration and a task."""
    folder = tmp_path / "project"
    (folder / "tasks").mkdir(parents=True)
    (folder / "config.py").write_text(CONFIG)
    (folder / "tasks" / "mine.py").write_text(TASK)
    return folder


def begin(project):
    """Return the files of a run that has begun in the project, without training."""
    files, config = Layout(project / "run"), config_of(project)
    files.workdir.mkdir()
    directory.begin(files, config, build(config.task))
    files.metrics.touch()
    return files


@pytest.mark.slow
def test_a_moved_run_trains_on_to_the_same_bits(project, tmp_path):
    train(config_of(project), project / "whole")
    train(config_of(project), project / "run", stop_at=10)
    moved = tmp_path / "elsewhere"
    shutil.move(project, moved)
    resumed = train(config_of(moved), moved / "run")
    whole = Run(moved / "whole")
    assert resumed.steps == whole.steps
    jax.tree.map(np.testing.assert_array_equal, resumed.params([0, 20]), whole.params([0, 20]))
    # The configuration has the new path from now on.
    assert resumed.config.task.name == f"{moved}/tasks/mine.py:mine"


def test_another_world_is_refused(project, tmp_path):
    files = begin(project)
    before = read_json(files.config)
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved)
    (moved / "tasks" / "mine.py").write_text(
        TASK.replace(
            "return composition(task)",
            "task = task.copy_and_resolve_references()\n"
            "    task.world_seed += 1\n    return composition(task)",
            1,
        )
    )
    at = Layout(moved / "run")
    with pytest.raises(
        InputError, match=r"the dataset of the run .* task .*elsewhere/tasks/mine\.py:mine"
    ):
        directory.open_dataset(at, config_of(moved))
    assert read_json(at.config) == before

    # A task that was changed in place is also refused.
    shutil.copy(moved / "tasks" / "mine.py", project / "tasks" / "mine.py")
    with pytest.raises(InputError, match="the dataset of the run"):
        directory.open_dataset(files, config_of(project))


@pytest.mark.parametrize("how", ["absolute", "relative", "link", "dots"])
def test_paths_to_the_same_task(project, tmp_path, monkeypatch, how):
    files = begin(project)
    (tmp_path / "link").symlink_to(project)
    monkeypatch.chdir(tmp_path)
    place = {
        "absolute": f"{project}/tasks/mine.py:mine",
        "relative": "project/tasks/mine.py:mine",
        "link": f"{tmp_path}/link/tasks/mine.py:mine",
        "dots": f"{project}/tasks/../tasks/mine.py:mine",
    }[how]
    config = from_json(to_json(config_before(files))).copy_and_resolve_references()
    with config.unlocked():
        config.task.name = place
    expected = build(config.task).fingerprint()
    assert directory.open_dataset(files, config).fingerprint() == expected


def config_before(files):
    return from_json(read_json(files.config))


@pytest.mark.parametrize("name", ["mine.py:other", "yours.py:mine"])
def test_another_function_or_file_is_another_configuration(project, name):
    files = begin(project)
    shutil.copy(project / "tasks" / "mine.py", project / "tasks" / "yours.py")
    config = config_before(files).copy_and_resolve_references()
    with config.unlocked():
        config.task.name = f"{project}/tasks/{name}"
    with pytest.raises(InputError, match=r"different configuration \(task\.name was"):
        directory.open_dataset(files, config)


def test_a_run_that_stayed_does_not_need_the_file_any_more(project):
    files = begin(project)
    config = config_of(project)
    (project / "tasks" / "mine.py").unlink()
    assert len(directory.open_dataset(files, config)) > 0


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("/a/task.py:f", "/b/c/task.py:f", True),
        ("/a/task.py:f", "task.py:f", True),
        ("C:\\a\\task.py:f", "D:\\task.py:f", True),
        ("/a/task.py:f", "/a/task.py:g", False),
        ("/a/task.py:f", "/a/my_task.py:f", False),
        ("/a/my_task.py:f", "/a/task.py:f", False),
        ("package.task:f", "other.task:f", False),
        ("/a/data", "/b/data", False),
        ("/a/task.py", "/b/task.py", False),
        (1, 2, False),
    ],
)
def test_what_counts_as_the_same_import(old, new, same):
    assert same_import(old, new) == same
    one, other = (from_json({"task": {"name": value}}) for value in (old, new))
    assert bool(changed_keys(one, other)) != same
