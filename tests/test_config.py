"""Configurations: accepted overrides, messages for wrong ones, and values read back from files."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from implicit_reasoning.config import (
    ABSENT,
    apply_overrides,
    changed_keys,
    choose,
    flatten,
    from_json,
    load_config,
    loading,
    parse_flags,
    to_json,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.sweeps import define

FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(10**30), 10**30)


def example() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.name = "run"
    config.resume = None
    config.task = ConfigDict({"phi": 7.2, "hops": 2, "sizes": (100, 10), "splits": ("a", "b")})
    config.optimizer = ConfigDict({"lr": 1e-3, "weight_decay": 0.5, "nesterov": False})
    config.writers = ConfigDict({"every": 10})
    config.limit = config_dict.placeholder(int)
    return config.lock()


def fault(overrides: dict) -> str:
    with pytest.raises(InputError) as caught:
        apply_overrides(example(), overrides)
    return str(caught.value)


# ---- overriding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "1e5", 100_000),
        ("seed", "100_000", 100_000),
        ("seed", "1000.0", 1000),
        ("seed", " -3 ", -3),
        ("seed", 4.0, 4),
        ("seed", np.int64(4), 4),
        ("task.phi", "3", 3.0),
        ("task.phi", 3, 3.0),
        ("task.phi", np.float32(0.5), 0.5),
        ("optimizer.nesterov", "Yes", True),
        ("optimizer.nesterov", "0", False),
        ("optimizer.nesterov", True, True),
        ("name", "none", "none"),
        ("name", "", ""),
        ("task.sizes", "1,2,3", (1, 2, 3)),
        ("task.sizes", "(1, 2)", (1, 2)),
        ("task.sizes", "[1e3,]", (1000,)),
        ("task.sizes", "5", (5,)),
        ("task.sizes", "", ()),
        ("task.sizes", "()", ()),
        ("task.sizes", [1, 2.0], (1, 2)),
        ("task.splits", "x, y", ("x", "y")),
        ("task.splits", "(x,y)", ("x", "y")),
        ("task.splits", "('x,y', 'z')", ("x,y", "z")),
        ("resume", "none", None),
        ("resume", "null", None),
        ("resume", "true", True),
        ("resume", "1e5", 1e5),
        ("resume", "12", 12),
        ("resume", "runs/a:3", "runs/a:3"),
        ("resume", "[1, [2, None]]", (1, (2, None))),
        ("resume", ("3",), ("3",)),
        ("limit", "1e3", 1000),
        ("limit", "none", None),
    ],
)
def test_a_value_takes_the_type_of_its_default(key, text, value):
    config = example()
    changed = apply_overrides(config, {key: text})
    assert flatten(changed)[key] == value
    assert type(flatten(changed)[key]) is type(value)
    assert changed.is_locked
    assert flatten(config) == flatten(example()), "the original changed"
    assert [change.key for change in changed_keys(config, changed)] in ([key], [])


@pytest.mark.parametrize(
    ("key", "bad", "wanted"),
    [
        ("seed", "0.5", "an int"),
        ("seed", 0.5, "an int"),
        ("seed", True, "an int"),
        ("seed", "many", "an int"),
        ("seed", "1e400", "an int"),
        ("seed", "1e23", "an int"),  # a float of this size denotes no single int
        ("seed", None, "an int"),
        ("limit", "x", "an int"),
        ("task.phi", "nan", "a finite float"),
        ("task.phi", math.inf, "a finite float"),
        ("task.phi", 10**400, "a float"),
        ("task.phi", "none", "a float"),
        ("task.phi", False, "a finite float"),
        ("optimizer.nesterov", 1, "true or false"),
        ("optimizer.nesterov", "maybe", "true or false"),
        ("name", 3, "a string"),
        ("task.sizes", "1,x", "an int"),
        ("task.sizes", 3, "a tuple"),
        ("task.splits", (1,), "a string"),
        ("resume", "{1: 2}", "none, true, false"),
        ("resume", {"a": 1}, "none, true, false"),
        ("resume", math.nan, "none, true, false"),
    ],
)
def test_a_wrong_type_says_what_was_given_and_what_is_wanted(key, bad, wanted):
    message = fault({key: bad})
    assert message.startswith(f"configuration override: {key} must be")
    assert wanted in message and "got" in message


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("optimizer.weight_decy", "did you mean optimizer.weight_decay?"),
        ("weight_decay", "did you mean optimizer.weight_decay?"),
        ("wieght_decay", "did you mean optimizer.weight_decay?"),
        ("task.lr", "did you mean optimizer.lr?"),
        ("optimiser.lr", "did you mean optimizer.lr?"),
        ("optimizer.lr.x", "did you mean optimizer.lr?"),
        ("optimizer", "is a group, not a field: set one of optimizer.lr, optimizer.nest"),
        ("", "is not a field"),
        ("zzzzzz", "zzzzzz is not a field"),
    ],
)
def test_an_unknown_key_gets_the_nearest(key, says):
    message = fault({key: "1"})
    assert says in message
    assert "\n" not in message


def test_all_faults_are_reported_at_once_and_nothing_is_applied():
    message = fault({"phi": 3, "seed": 0.5, "task": "x", "name": "fine", "zzzzzz": 1})
    assert "4 faults" in message and message.count("\n  - ") == 4
    for key in ("phi is not", "seed must be", "task is a group", "zzzzzz is not"):
        assert key in message
    assert "name" not in message


def test_a_derived_field_follows_its_source():
    config = ConfigDict({"width": 64})
    config.hidden = config.get_ref("width") * 4
    changed = apply_overrides(config, {"width": 8})
    assert (changed.hidden, config.hidden) == (32, 256)


@given(
    st.fixed_dictionaries(
        {
            "seed": INTS,
            "task.phi": FINITE,
            "optimizer.nesterov": st.booleans(),
            "name": st.text(),
            "task.sizes": st.lists(INTS).map(tuple),
            "task.splits": st.lists(st.text()).map(tuple),
            "limit": st.none() | INTS,
        }
    )
)
def test_every_value_survives_its_text_and_a_file(values):
    typed = apply_overrides(example(), values)
    spoken = apply_overrides(example(), {key: str(value) for key, value in values.items()})
    assert flatten(typed) == flatten(spoken) == flatten(example()) | values
    assert flatten(from_json(to_json(typed))) == flatten(typed)


@given(
    st.recursive(
        st.none() | st.booleans() | INTS | FINITE | st.text(),
        lambda inner: st.lists(inner).map(tuple),
    )
)
def test_a_field_without_default_reads_back_what_python_prints(value):
    assert apply_overrides(example(), {"resume": repr(value)}).resume == value


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)
NUMBERLIKE = st.text("0123456789.e+-_, ()[]{}'\"\\xnaif", max_size=12)
KEYS = (
    st.sampled_from([*flatten(example()), "task", "optimizer"])
    | st.text("abit.", max_size=8)
    | st.text()
)


@given(st.dictionaries(KEYS, ANYTHING | NUMBERLIKE))
def test_fuzzed_overrides_give_a_good_config_or_an_input_error(overrides):
    try:
        changed = apply_overrides(example(), overrides)
    except InputError as error:
        assert str(error).count("\n  - ") != 1
    else:
        assert from_json(to_json(changed)) == changed.copy_and_resolve_references()
        assert {type(leaf) for leaf in flatten(changed).values()} <= {
            type(None), bool, int, float, str, tuple
        }  # fmt: skip


@given(
    st.lists(st.text() | NUMBERLIKE.map("--config.seed=".__add__) | st.just("--steps"), max_size=6)
)
def test_fuzzed_command_lines_give_flags_or_an_input_error(argv):
    try:
        flags, _ = parse_flags(argv, {"steps": 3, "workdir": str})
    except InputError:
        return
    assert set(flags) == {"steps", "workdir"}


@pytest.mark.parametrize("text", ["(" * 5000, "9" * 5000, "\0", "\ud800", "-" * 3000 + "1", "1,"])
@pytest.mark.parametrize("key", list(flatten(example())))
def test_hostile_text_is_no_crash(key, text):
    try:
        apply_overrides(example(), {key: text})
    except InputError as error:
        assert len(str(error)) < 300


# ---- command lines -----------------------------------------------------------------------------

KNOWN = {"config": str, "workdir": "runs", "stop_at": int, "dry_run": False, "seeds": (0,)}


def test_flags_in_every_form():
    flags, overrides = parse_flags(
        [
            *("--config=a.py:b", "--workdir", "here", "--stop_at", "1e3", "--dry_run"),
            *("--config.task.phi=3=4", "--config.seed", "-1", "--seeds=1,2", "--config.nesterov"),
        ],
        KNOWN,
    )
    assert flags == dict(config="a.py:b", workdir="here", stop_at=1000, dry_run=True, seeds=(1, 2))
    assert overrides == {"task.phi": "3=4", "seed": "-1", "nesterov": True}


def test_flags_that_are_not_given_keep_their_defaults():
    flags, overrides = parse_flags([], KNOWN)
    assert flags == dict(config=None, workdir="runs", stop_at=None, dry_run=False, seeds=(0,))
    assert overrides == {}


def test_a_bool_flag_leaves_the_next_word_alone():
    with pytest.raises(InputError, match="unexpected argument 'true'"):
        parse_flags(["--dry_run", "true"], KNOWN)
    assert parse_flags(["--dry_run=no"], KNOWN)[0]["dry_run"] is False


def test_all_faults_of_a_command_line_at_once():
    argv = ["train", "--workdri=x", "--stop_at=soon", "--config=a", "--config=b", "--workdir"]
    with pytest.raises(InputError) as caught:
        parse_flags([*argv, "--config.a=1", "--config.a=2"], KNOWN)
    message = str(caught.value)
    assert "6 faults" in message
    for part in (
        "unexpected argument 'train'",
        "there is no flag --workdri; did you mean --workdir?",
        "--stop_at must be an int, got 'soon'",
        "--config is given twice",
        "--workdir has no value",
        "--config.a is given twice",
    ):
        assert part in message


# ---- loading -----------------------------------------------------------------------------------

FILE = """
from ml_collections import ConfigDict
from implicit_reasoning.config import choose

def get_config(scale{default}):
    return ConfigDict({{"width": choose(scale, {{"pocket": 8, "desk": 16}}), "sizes": [1, [2]]}})
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "composition.py"
    path.write_text(FILE.format(default=""))
    return path


def test_load_by_path_locks_and_makes_tuples(config_file):
    config = load_config(f"{config_file}:desk")
    assert config.is_locked and config.to_dict() == {"width": 16, "sizes": (1, (2,))}


def test_load_without_argument_lists_the_scales_or_takes_the_default(config_file):
    with pytest.raises(InputError, match=r"a choice is missing \(available: pocket, desk"):
        load_config(str(config_file))
    config_file.write_text(FILE.format(default="='pocket'"))
    assert load_config(str(config_file)).width == 8


def test_load_by_module_name(config_file, monkeypatch):
    config_file.rename(config_file.with_name("of_mine.py"))
    monkeypatch.syspath_prepend(config_file.parent)
    assert load_config("of_mine:pocket").width == 8


def test_load_by_name_takes_the_file_that_comes_with_the_package(config_file, monkeypatch):
    monkeypatch.syspath_prepend(config_file.parent)  # the folder also has a module of this name
    monkeypatch.chdir(config_file.parent)
    assert load_config("composition:pocket").task.name == "composition"
    assert load_config("ood_ratio:desk_70").task.ood_fraction == 0.7
    assert set(define("composition:pocket", "seeds").trials)


def test_a_wheel_has_its_configurations_inside_of_the_package(tmp_path, monkeypatch):
    inside = tmp_path / "configs"
    inside.mkdir()
    (inside / "lonely.py").write_text(FILE.format(default=""))
    monkeypatch.setattr(loading, "PACKAGE", tmp_path)
    assert list(loading.shipped_configs()) == ["lonely"]
    assert load_config("lonely:desk").width == 16


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{}:dsk", "unknown choice 'dsk'; did you mean desk\\? \\(available: pocket, desk"),
        ("{}/composition.py", "does not exist"),
        ("{folder}/compositon.py", "did you mean .*composition.py"),
        ("no.such.module:x", "there is no configuration 'no.such.module'"),
        (
            "compositon:x",
            "use a name \\(comparison, .*or package.module; did you mean composition\\?",
        ),
        ("configs/shadows/shadow.py", "does not exist; use --config=shadow"),
        ("configs/composition", "there is no configuration"),
        ("", "there is no configuration"),
        (".", "there is no configuration"),
        ("json:x", "json does not define a function get_config"),
    ],
)
def test_load_says_what_is_wrong(config_file, spec, says):
    with pytest.raises(InputError, match=says):
        load_config(spec.format(config_file, folder=config_file.parent))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def get_config(): return {}", "returned a dict; it must return a ConfigDict"),
        ("def other(): pass", "does not define a function get_config"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): return ConfigDict({'a': {'b': object, 'c': [{'d': 1}]}, 'e': 1})",
            "2 faults\n  - a.b: .*\n  - a.c: ",
        ),
    ],
)
def test_load_refuses_what_is_no_configuration(tmp_path, body, says):
    path = tmp_path / "c.py"
    path.write_text(body)
    with pytest.raises(InputError, match=says):
        load_config(str(path))
    with pytest.raises(InputError):
        load_config(f"{path}:arg")


@pytest.mark.parametrize(
    ("body", "error"),
    [("import module_that_is_not_there", ModuleNotFoundError), ("int('x')", ValueError)],
)
def test_a_bug_in_the_file_keeps_its_traceback(tmp_path, monkeypatch, body, error):
    (tmp_path / "config_with_a_bug.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    for spec in (str(tmp_path / "config_with_a_bug.py"), "config_with_a_bug"):
        with pytest.raises(error) as caught:
            load_config(spec)
        assert not isinstance(caught.value, InputError)


def test_choose():
    assert choose("a", {"a": 1, "b": 2}) == 1
    with pytest.raises(InputError, match="did you mean desk"):
        choose("dsek", {"pocket": 1, "desk": 2})


# ---- storing and comparing ---------------------------------------------------------------------


def test_a_config_file_reads_back_equal_with_tuples(tmp_path):
    config = apply_overrides(example(), {"resume": (1, ("a", None))})
    write_json(tmp_path / "config.json", to_json(config))
    again = from_json(read_json(tmp_path / "config.json"))
    assert again == config.copy_and_resolve_references() and again.is_locked
    assert again.resume == (1, ("a", None)) and type(again.seed) is int


@pytest.mark.parametrize("value", [[], None, 3, {"a.b": 1}, {"a": math.nan}, {"a": [{"b": 1}]}])
def test_from_json_refuses_what_is_no_configuration(value):
    with pytest.raises(InputError):
        from_json(value)


def test_changed_keys():
    new = apply_overrides(example(), {"task.phi": 3, "seed": 1, "writers.every": 99}).unlock()
    new.added = 1
    del new.name
    assert changed_keys(example(), new) == [
        ("added", ABSENT, 1),
        ("name", "run", ABSENT),
        ("seed", 0, 1),
        ("task.phi", 7.2, 3.0),
    ]
    assert [change.key for change in changed_keys(example(), new, ignore=("task", "added"))] == [
        "name", "seed", "writers.every"
    ]  # fmt: skip
    assert changed_keys(example(), example()) == []
