"""Lists: one syntax for all flags and overrides."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from implicit_reasoning.commands import VERBS
from implicit_reasoning.config import Flag, apply_overrides, join_list, parse_flags, split_list
from implicit_reasoning.errors import InputError
from implicit_reasoning.sweeps.launchers.base import LaunchRequest
from implicit_reasoning.sweeps.launchers.on_slurm import _parameters


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("  ", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        (" a , b ", ["a", "b"]),
        ("a,b,", ["a", "b"]),
        ("a,,b", ["a", "", "b"]),
        (r"a\,b", ["a,b"]),
        (r"a\,b,c", ["a,b", "c"]),
        (r"a\,", ["a,"]),
        (r"\d+,C:\x", [r"\d+", r"C:\x"]),
        ("a\tb,\nc", ["a\tb", "c"]),
    ],
)
def test_items(text, items):
    assert split_list(text) == items


@given(st.lists(st.text(min_size=1).map(str.strip).filter(lambda s: s and s[-1] != "\\")))
def test_items_survive_their_text(items):
    assert split_list(join_list(items)) == items


@pytest.mark.parametrize(
    ("verb", "flag", "texts", "value"),
    [
        ("analyze", "instruments", ["lens, geometry"], ("lens", "geometry")),
        ("analyze", "instruments", ["lens", "geometry,probes"], ("lens", "geometry", "probes")),
        ("analyze", "instruments", [r"a\,b.py:K"], ("a,b.py:K",)),
        ("analyze", "steps", [" 0, 1000 "], ("0", "1000")),
        ("analyze", "steps", ["last"], ("last",)),
        ("score", "seeds", ["1, 2", "3"], (1, 2, 3)),
        ("sweep", "rungs", ["500, 1e3"], (500, 1000)),
        ("sweep", "slurm", [r"a=1,b=x\,y"], ("a=1", "b=x,y")),
        ("sweep", "slurm", ["a=1", " b=2"], ("a=1", "b=2")),
    ],
)
def test_every_flag_that_takes_a_list(verb, flag, texts, value):
    flags, _ = parse_flags([f"--{flag}={text}" for text in texts], VERBS[verb].flags)
    assert flags[flag] == value


@pytest.mark.parametrize("text", ["a,,b", ",a", ", ,"])
def test_an_empty_item_is_refused(text):
    with pytest.raises(InputError, match=r"--instruments is .* which contains an empty item"):
        parse_flags([f"--instruments={text}"], VERBS["analyze"].flags)


@pytest.mark.parametrize(("verb", "flag"), [("score", "seeds"), ("analyze", "steps")])
def test_an_empty_list_is_refused_where_it_would_leave_nothing_to_do(verb, flag):
    with pytest.raises(InputError, match=f"--{flag} is an empty list"):
        parse_flags([f"--{flag}="], VERBS[verb].flags)
    assert parse_flags(["--instruments="], VERBS["score"].flags)[0]["instruments"] == ()


def test_overrides_have_the_same_syntax():
    config = ConfigDict({"names": ("x",), "sizes": (1,)}).lock()
    changed = apply_overrides(config, {"names": r"a\,b, c", "sizes": " 1 , 2,"})
    assert changed.names == ("a,b", "c") and changed.sizes == (1, 2)


def test_slurm_values_with_commas():
    given = {"slurm": ("slurm_exclude=node1,node2", "timeout_min=5", "slurm_setup=['a', 'b']")}
    files = type("Files", (), {"workdir": Path("x")})
    made = _parameters(LaunchRequest(files, None, {}, given))
    assert made["slurm_exclude"] == "node1,node2" and made["timeout_min"] == 5
    assert made["slurm_setup"] == ["a", "b"]
    text = {"slurm": r"slurm_exclude=node1\,node2,timeout_min=5"}  # Python callers may write this
    assert _parameters(LaunchRequest(files, None, {}, text))["slurm_exclude"] == "node1,node2"


def folders(text, *more):
    known = {"workdir": Flag(kind=Path, many=True)}
    flags, _ = parse_flags([f"--workdir={each}" for each in (text, *more)], known)
    return [str(path) for path in flags["workdir"]]


def test_folders_with_commas_in_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = "trials/decay=0.1,seed=0", "trials/decay=0.1,seed=1"
    for name in (one, two, "plain"):
        Path(name).mkdir(parents=True)
    assert folders(one) == [one]  # an existing name is one folder
    assert folders(one, two, "plain") == [one, two, "plain"]
    assert folders(join_list([one, two])) == [one, two]
    assert folders("plain, trials") == ["plain", "trials"]
    for text in (f"{one},{two}", f"plain,{one}"):
        with pytest.raises(InputError) as caught:
            folders(text)
        spelt = str(caught.value).partition("--workdir='")[2].removesuffix("'")
        assert folders(spelt) == [part for part in ("plain", one, two) if part in text]


def test_only_lists_may_be_repeated():
    with pytest.raises(InputError, match="--out is given twice"):
        parse_flags(["--out=a", "--out=b"], VERBS["score"].flags)
