"""Flags of the scripts in experiments/ use the path and list types of the commands."""

import re
from pathlib import Path

import pytest

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.errors import InputError
from tests.experiments.scripts import FILES, load

# The only script for an environment that may lack this package.
ASKS_ITSELF = {"peer"}
PATHS = {"out", "runs", "run", "folder", "workdir"}
SCRIPTS = [path.stem for path in FILES if re.search(r"^FLAGS\b", path.read_text(), re.M)]
IN_MAIN = {"default_set", "startup"}  # they time imports, so main() completes FLAGS


@pytest.mark.parametrize("path", FILES, ids=str)
def test_affinity_and_lists_are_left_to_the_package(path):
    text = path.read_text()
    assert path.stem in ASKS_ITSELF or "sched_" not in text
    assert not re.search(r"""split\(["'],["']""", text)


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - IN_MAIN))
def test_paths_and_lists_have_flags_of_their_kind(name):
    flags = load(name).FLAGS
    given = {key: flag for key, flag in flags.items() if key in PATHS}
    assert all(isinstance(flag, Flag) for flag in given.values())
    for key in given:
        found, _ = parse_flags([f"--{key}=~/one"], flags)
        assert found[key] == Path.home() / "one"
        with pytest.raises(InputError, match="an address"):
            parse_flags([f"--{key}=gs://bucket/one"], flags)
    assert not any(isinstance(like, tuple) for like in flags.values())


@pytest.mark.parametrize("name", sorted(IN_MAIN))
def test_a_timed_script_refuses_an_address_before_it_measures(name):
    with pytest.raises(InputError, match="--out is 's3://one', which is an address"):
        load(name).main(["--out=s3://one"])


@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("worlds", ["--only=composition, shadow"], ("composition", "shadow")),
        ("worlds", ["--only=composition", "--only=shadow"], ("composition", "shadow")),
        ("worlds", [], ()),
        ("feature_birth", ["--arms=tied,"], ("tied",)),
        ("dictionaries", ["--cases= small , eight"], ("small", "eight")),
        ("phi_and_weight_decay", ["--phi=1, 1.5"], (1.0, 1.5)),
        ("transcoders_vs_saes", ["--sparsities=2", "--sparsities=4"], (2, 4)),
        ("checkpoints", [r"--instruments=mine.py:A\,B, lens"], ("mine.py:A,B", "lens")),
    ],
)
def test_lists_have_the_one_syntax(name, words, found):
    flags, _ = parse_flags(words, load(name).FLAGS)
    assert found in flags.values()


def test_launchers_are_timed_without_a_compilation_cache(monkeypatch):
    script, seen = load("populations"), []
    monkeypatch.setattr(script.subprocess, "run", lambda _, **how: seen.append(how["env"]))
    script.overhead({"launchers": ("vmap", "local"), "config": "experiments/smoke.py"})
    assert [env["JAX_ENABLE_COMPILATION_CACHE"] for env in seen] == ["false"] * 4
    assert all("PATH" in env for env in seen)


def test_a_peer_starts_where_the_system_knows_no_affinity(monkeypatch):
    peer = load("peer")
    monkeypatch.delattr(peer.os, "sched_getaffinity", raising=False)
    assert peer._cores() == peer.os.cpu_count()
