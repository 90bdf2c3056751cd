"""User-given paths: `~` is expanded, and anything that is not a local path is refused."""

from pathlib import Path

import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.commands import VERBS
from implicit_reasoning.dictionaries.exchange.circuit_tracer import load_transcoder_set
from implicit_reasoning.dictionaries.exchange.saelens import load_saelens
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, read_npz, write_json, write_npz
from implicit_reasoning.grokked_transformer import import_grokked
from implicit_reasoning.model.exchange import arrays
from implicit_reasoning.model.exchange.gpt2 import load_gpt2
from implicit_reasoning.paths import local_folder, local_path
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import Runs, make_sweep, run_sweep
from implicit_reasoning.training import train
from tests.training.tiny import tiny

WRONG = [
    ("gs://bucket/run", "an address"),
    ("s3://bucket/run", "an address"),
    ("file:///tmp/run", "an address"),
    ("http://host/run", "an address"),
    ("hdfs://host:9000/run", "an address"),
    ("gs:/bucket/run", "an address"),  # pathlib turns gs:// into this
    ("user@host:/data/run", "an address"),
    ("C:/runs/a", "an address"),
    ("C:\\runs\\a", "an address"),
    ("", "is empty"),
    ("   ", "is empty"),
    ("runs/a\n", "a control character"),
    ("runs/\0a", "a control character"),
    ("runs/a ", "a blank"),
    (" runs/a", "a blank"),
    ("$HOME/run", r"variable \$HOME"),
    ("runs/${USER}/a", r"variable \$\{USER\}"),
    ("~nobody-of-this-name/run", "the user 'nobody-of-this-name' does not exist"),
]


@pytest.mark.parametrize(("text", "why"), WRONG)
def test_what_is_no_path_of_this_machine_is_refused(text, why):
    with pytest.raises(InputError, match=f"--out .*{why}"):
        local_path(text, "--out ")


@pytest.mark.parametrize(
    "text", ["runs/a", "/tmp/a:b", "a=1,b=2", "runs/lr=0.1:x", "a b", "..", "a~b", "x$", "größe"]
)
def test_other_paths_stay_as_they_are(text):
    assert local_path(text) == Path(text)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs/a") == tmp_path / "runs" / "a"
    assert local_path(Path("~")) == tmp_path
    assert local_path("~root/x").is_absolute()


def test_what_looks_like_a_variable_may_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("$HOME").mkdir()
    assert local_path("$HOME") == Path("$HOME")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir is .*, which is a file; give a folder"):
        local_folder(tmp_path / "file", "--workdir")


FLAGS = [
    (verb, name)
    for verb, row in VERBS.items()
    for name, flag in row.flags.items()
    if flag.kind is Path
]


@pytest.mark.parametrize(("verb", "name"), FLAGS)
@pytest.mark.parametrize("text", ["gs://bucket/run", "$NOWHERE/x", ""])
def test_every_flag_that_is_a_path_refuses_it(verb, name, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = {key: "x" for key, flag in VERBS[verb].flags.items() if flag.required} | {name: text}
    assert main([verb, *(f"--{key}={value}" for key, value in others.items())]) == 2
    heard = capsys.readouterr().err
    assert f"--{name}" in heard and "Traceback" not in heard
    assert not list(tmp_path.iterdir())


def test_paths_are_flags_of_their_kind():
    """A flag for a path that is declared as text would not be checked."""
    assert {name for _, name in FLAGS} == {"workdir", "out", "cache", "source", "data", "save"}
    assert len(FLAGS) == 14


def test_files_of_python_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'a': 1})"
    (tmp_path / "c.py").write_text(text)
    from implicit_reasoning.config import load_config

    assert load_config("~/c.py").a == 1
    with pytest.raises(InputError, match="an address"):
        load_config("gs://bucket/c.py:pocket")


def test_files_that_are_written_and_read_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_json("~/a.json", 1)
    assert (tmp_path / "a.json").exists() and read_json("~/a.json") == 1
    write_npz("~/a.npz", {"x": np.arange(2)})
    assert read_npz("~/a.npz", "file")["x"].tolist() == [0, 1]
    for call in (lambda: write_json("s3://b/a.json", 1), lambda: read_json("s3://b/a.json")):
        with pytest.raises(InputError, match="an address"):
            call()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", ["gs://bucket/run", "", "~nobody-of-this-name/x"])
def test_python_functions_refuse_it(text, tmp_path, monkeypatch):
    config = tiny()
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: train(config, text),
        lambda: Run(text),
        lambda: Runs(text),
        lambda: run_sweep(make_sweep(config, [{"seed": 1}]), text),
        lambda: import_grokked(text, tmp_path, tmp_path / "run"),
        lambda: import_grokked(tmp_path, tmp_path, text),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"workdir is|source is"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_run_is_found_by_its_home_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"^{tmp_path}/run is not a run directory"):
        Run("~/run")


def test_weights_are_saved_and_loaded_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert arrays.checked("~/weights.npz") == tmp_path / "weights.npz"
    with pytest.raises(InputError, match="address"):
        arrays.checked("gs://bucket/weights.npz")
    for load in (load_gpt2, load_saelens, load_transcoder_set):
        with pytest.raises(InputError) as error:
            load("~/nothing")
        assert str(tmp_path / "nothing") in str(error.value)
    assert not list(tmp_path.iterdir())
