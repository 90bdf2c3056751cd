"""For any input and any damage to a file there is an exit code and a sentence, and no traceback.

`tests/conftest.py` sets the number of examples. No example compiles anything. A valid configuration
gets a folder that cannot be created. A run directory is that of a finished run, or has a state that
is refused.
"""

import contextlib
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from implicit_reasoning.__main__ import main
from implicit_reasoning.config import apply_overrides, flatten, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import build
from implicit_reasoning.worlds.summary import describe
from tests import shared
from tests.training.tiny import TINY, tiny

CONFIG = f"--config={Path('configs').absolute()}/composition.py:pocket"
OVERRIDES = [f"--config.{key}={value}" for key, value in TINY.items()]
ANSWERS = {0, 2, 3, 74}

# Import paths are excluded because their code would run, and a mode that would join processes is
# excluded as well.
FIELDS = sorted(set(flatten(tiny())) - {"task.name", "distributed.mode", "writers.progress"})
# Numbers are either small or too large to be built; a world between these sizes is only slow.
NUMBERS = st.sampled_from([-(2**70), -7, -2, -1, 0, 1, 2, 3, 5, 12, 10**13, 2**62, 2**63, 2**70])
FLOATS = st.floats() | st.sampled_from([1e-320, 1e308, -0.0])
TEXTS = st.text(max_size=12) | st.sampled_from(["none", "true", "(1, 2)", "1e5", "nan", "epochs"])
OF_KIND = {int: NUMBERS, float: NUMBERS | FLOATS, bool: st.booleans(), str: TEXTS}


@st.composite
def changes(draw):
    """Draw some fields with a value of their type, reasonable or not, and sometimes of another
    type.
    """
    fields = flatten(tiny())
    keys = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4, unique=True))
    other = draw(st.integers(0, 9)) == 0
    return {key: draw(TEXTS if other else OF_KIND[type(fields[key])]) for key in keys}


def words(overrides):
    given = {**TINY, **overrides}
    return [f"--config.{key}={value}" for key, value in given.items()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=changes())
def test_any_configuration_is_answered(overrides, tmp_path, capsys):
    (tmp_path / "file").touch()
    code = main(["train", CONFIG, f"--workdir={tmp_path / 'file' / 'run'}", *words(overrides)])
    assert code in {2, 74}
    heard = capsys.readouterr().err
    assert heard.startswith("implicit_reasoning: ") and "Traceback" not in heard


PATHS = sorted(path.stem for path in Path("configs").glob("*.py"))


@st.composite
def worlds(draw):
    """Draw the task of a configuration, with some of its fields changed to values of their type."""
    task = load_config(f"configs/{draw(st.sampled_from(PATHS))}.py:pocket").task
    fields = sorted(set(task) - {"name"})
    keys = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=True))
    return apply_overrides(
        task, {key: draw(OF_KIND[type(task[key])].filter(sound)) for key in keys}
    )


def sound(value):
    """Overrides must be finite numbers."""
    return not isinstance(value, float) or math.isfinite(value)


@given(task=worlds())
def test_any_world_is_made_and_described_or_refused(task):
    with contextlib.suppress(InputError):
        describe(build(task))


@given(argv=st.lists(TEXTS | st.sampled_from(["train", "report", "--workdir", CONFIG, "--"])))
def test_any_command_line_is_answered(argv):
    assert main([word for word in argv if not word.startswith("world")]) in {0, 2}


@pytest.fixture(scope="module")
def finished():
    return shared.finished()


FILES = ("config.json", "world.npz", "metrics.jsonl", "provenance.json", "first_correct.npz")


@st.composite
def damaged(draw, content):
    """Cut the content short, flip bits, overwrite a stretch, or replace everything."""
    kind = draw(st.sampled_from(["cut", "flip", "overwrite", "other"]))
    where = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:where]
    if kind == "other":
        return draw(st.binary(max_size=40) | st.sampled_from([b"null", b"[]", b"{}", b"[1]\n"]))
    if kind == "flip":
        return (
            content[:where]
            + bytes([content[where] ^ 1 << draw(st.integers(0, 7))])
            + (content[where + 1 :])
        )
    noise = draw(st.binary(min_size=1, max_size=30))
    return content[:where] + noise + content[where + len(noise) :]


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=settings().max_examples // (2 if shared.THOROUGH else 3),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_damage_of_a_file_is_answered(name, data, finished, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(finished, workdir)
    path = workdir / name
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    assert main(["train", CONFIG, f"--workdir={workdir}", *OVERRIDES]) in ANSWERS
    assert "Traceback" not in capfd.readouterr().err
