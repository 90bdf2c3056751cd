"""Paths in which checkpoints would be lost are refused, and a lost checkpoint is noticed."""

import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import train_dictionaries
from implicit_reasoning.errors import InputError
from implicit_reasoning.grokked_transformer import import_grokked
from implicit_reasoning.runs import Checkpoints, DamagedCheckpoint, Layout, Run, checkpoints
from implicit_reasoning.runs.stores import read_tree
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.sweeps import define, run_sweep
from implicit_reasoning.training import train
from implicit_reasoning.training.population import train_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build
from tests.dictionaries.small import config as dictionary_config
from tests.training.tiny import tiny

REFUSED = ["lr=[0.1]", "[!a]x", "[[]", "a[b", "a*b", "a?b", "a**b", "a\\b", "gs:/bucket"]
FINE = ["a]b", "a{b}", "a b", "ünï", "a%20b", "lr=0.1,seed=2", "a:b", "x" * 200]


def save(folder):
    store = Checkpoints(folder)
    store.save(3, {"a": jnp.arange(4.0)})
    store.wait()
    store.close()


def read(folder):
    return read_tree(folder, 3, {"a": np.zeros(4)})["a"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_orbax_misreads_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="which Orbax interprets as part of a pattern"):
        Checkpoints(tmp_path / name / "run" / "checkpoints")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FINE)
def test_what_orbax_reads_is_not_refused(name, tmp_path):
    save(tmp_path / name / "run")
    np.testing.assert_array_equal(read(tmp_path / name / "run"), np.arange(4))


def test_the_path_counts_as_it_is_given_not_as_links_resolve_it(tmp_path, monkeypatch):
    (tmp_path / "real[x]").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / "real[x]")
    save(tmp_path / "plain" / "run")
    np.testing.assert_array_equal(read(tmp_path / "plain" / "run"), np.arange(4))
    (tmp_path / "real").mkdir()
    (tmp_path / "link[y]").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match=r"link\[y\]"):
        Checkpoints(tmp_path / "link[y]" / "run")
    monkeypatch.chdir(tmp_path / "link[y]")  # its real name is plain, and so is the absolute path
    save(Path("run"))
    monkeypatch.chdir(tmp_path / "real[x]")
    with pytest.raises(InputError, match=r"real\[x\]"):
        Checkpoints(Path("other"))


def _train(workdir):
    train(tiny(), workdir)


def _sweep(workdir):
    run_sweep(define("configs/composition.py:pocket", "seeds", {}), workdir)


def _population(workdir):
    config = tiny()
    trial = Trial(config, build(config.task), Layout(workdir))
    train_population([trial], Layout(workdir.parent / "population"), 60, ShutdownRequest())


def _dictionaries(workdir):
    run = object.__new__(Run)
    run.files = Layout(workdir)
    train_dictionaries(run, dictionary_config())


def _named_dictionaries(workdir):
    run = object.__new__(Run)
    run.files = Layout(workdir.parent / "run")
    train_dictionaries(run, dictionary_config(name=workdir.name))


def _import(workdir):
    import_grokked(workdir.parent, workdir.parent, workdir)


@pytest.mark.parametrize(
    "write", [_train, _sweep, _population, _dictionaries, _named_dictionaries, _import]
)
def test_whatever_writes_checkpoints_refuses_before_it_writes(write, tmp_path):
    with pytest.raises(InputError, match=r"lr=\[0\.1\]"):
        write(tmp_path / "lr=[0.1]")
    assert not list(tmp_path.iterdir())


def test_a_step_without_its_manifest_is_noticed_and_recovered_as_documented(tmp_path, monkeypatch):
    folder = tmp_path / "lr=[0.1]" / "checkpoints"
    monkeypatch.setattr(checkpoints, "check_path", lambda folder: None)
    store = Checkpoints(folder)
    store.save(3, {"a": jnp.arange(4.0)})
    with pytest.raises(OSError, match="parts were not merged") as caught:
        store.save(4, {"a": jnp.arange(4.0)})  # this checks the previous save
    assert caught.value.filename == str(folder / "3")
    with pytest.raises(OSError, match="parts were not merged"):
        store.close()
    with pytest.raises(DamagedCheckpoint, match=r"docs/how-to/checkpoints\.md"):
        read(folder)
    shutil.copytree(tmp_path / "lr=[0.1]", tmp_path / "runs" / "copied")
    page = Path("docs/how-to/checkpoints.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/how-to/checkpoints.md", "exec"), {})
    np.testing.assert_array_equal(read(tmp_path / "runs" / "copied" / "checkpoints"), np.arange(4))
