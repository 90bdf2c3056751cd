"""JAX settings that change numbers are recorded, and a run does not resume under other settings."""

import json
import subprocess

import jax
import pytest

from implicit_reasoning.dictionaries import train
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Layout
from implicit_reasoning.runtime.machine import numerics, provenance
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import directory
from implicit_reasoning.training.population import train_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build
from tests.dictionaries.small import config as dictionary_config
from tests.training.tiny import tiny

# The first two are the settings that were reported.
OTHERS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_matmul_precision": "bfloat16",
    "jax_high_dynamic_range_gumbel": True,
    "jax_softmax_custom_jvp": True,
}


@pytest.fixture
def files(tmp_path):
    """Return the files of a run that has begun."""
    files, config = Layout(tmp_path / "run"), tiny()
    directory.begin(files, config, build(config.task))
    directory.record_start(files.provenance, 0)
    return files


@pytest.fixture(params=OTHERS.items(), ids=OTHERS)
def other(request):
    """Set one of these settings and yield its name."""
    name, value = request.param
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield name
    jax.config.update(name, before)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_start_notes_them(files):
    assert json.loads(files.provenance.read_text())[0]["numerics"] == numerics()
    assert provenance()["numerics"].keys() >= OTHERS.keys()


def test_every_start_notes_the_commit_of_a_checkout(files):
    def commit(name):
        command = ["git", "rev-parse", f"{name}^{{commit}}"]
        return subprocess.run(command, capture_output=True, text=True).stdout

    if not commit("HEAD"):
        pytest.skip("this is no checkout")
    noted = json.loads(files.provenance.read_text())[0]["commit"]
    assert commit(noted.removesuffix("-dirty")) == commit("HEAD")


def test_a_run_is_not_gone_on_with_under_another(files, other):
    before = contents(files.workdir)
    with pytest.raises(
        InputError, match=rf"different JAX settings \({other} was .*, is .*\); (un)?set"
    ):
        directory.open_dataset(files, tiny())
    assert contents(files.workdir) == before


def test_the_sentence_says_what_to_set(files):
    with jax.threefry_partitionable(False), pytest.raises(InputError) as caught:
        directory.open_dataset(files, tiny())
    assert "set JAX_THREEFRY_PARTITIONABLE=True to continue" in str(caught.value)
    with jax.default_matmul_precision("float32"), pytest.raises(InputError) as caught:
        directory.open_dataset(files, tiny())
    assert "unset JAX_DEFAULT_MATMUL_PRECISION to continue" in str(caught.value)


def test_a_trial_of_a_population_neither(files, tmp_path):
    config = tiny()
    trial = Trial(config, build(config.task), files)
    before = contents(files.workdir)
    with (
        jax.threefry_partitionable(False),
        pytest.raises(InputError, match="jax_threefry_partitionable was True, is False"),
    ):
        train_population([trial], Layout(tmp_path / "population"), 60, ShutdownRequest())
    assert contents(files.workdir).items() - before.items() <= {(files.workdir / ".lock", b"")}


def test_dictionaries_neither(tmp_path):
    files, config = Files(tmp_path / "dictionaries"), dictionary_config()
    train._begin(files, config)  # there is no state to resume from, so any setting is accepted
    with jax.threefry_partitionable(False):
        train._begin(files, config)
    (files.resume / "20").mkdir(parents=True)
    with pytest.raises(InputError, match="jax_threefry_partitionable was False, is True"):
        train._begin(files, config)
    with jax.threefry_partitionable(False):
        train._begin(files, config)
    starts = json.loads(files.provenance.read_text())
    assert [start["step"] for start in starts] == [0, 0, 20]


def test_a_run_that_noted_nothing_goes_on(files):
    starts = json.loads(files.provenance.read_text())
    del starts[0]["numerics"]
    files.provenance.write_text(json.dumps(starts))
    with jax.threefry_partitionable(False):
        assert len(directory.open_dataset(files, tiny()))


def test_a_setting_that_only_one_version_of_jax_has_is_no_difference(files):
    starts = json.loads(files.provenance.read_text())
    starts[0]["numerics"]["jax_of_old"] = 1
    files.provenance.write_text(json.dumps(starts))
    assert len(directory.open_dataset(files, tiny()))
