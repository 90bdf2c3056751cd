"""Fields in a configuration file that nothing reads are refused, with the nearest name."""

import json
import re

import pytest
from ml_collections import ConfigDict

from implicit_reasoning.__main__ import main
from implicit_reasoning.config import apply_overrides, flatten, load_config, schema_faults
from implicit_reasoning.dictionaries import fields as dictionary_fields
from implicit_reasoning.dictionaries.steps import DictionaryTrainingSettings
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec
from implicit_reasoning.runs import Layout, default_config, fields
from implicit_reasoning.sweeps import make_sweep
from implicit_reasoning.training.directory import check_same
from implicit_reasoning.training.setup import check_config
from implicit_reasoning.worlds import TASKS, build
from implicit_reasoning.worlds.tasks import fields as task_fields
from tests.training.tiny import tiny

DEFAULTS = "implicit_reasoning.dictionaries.defaults"


def changed(config, **values):
    """Return the configuration with fields set, of any name and type; `__` stands for the dot."""
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            *groups, name = key.split("__")
            group = config
            for each in groups:
                if each not in group:
                    group[each] = ConfigDict()
                group = group[each]
            with group.unlocked(), group.ignore_type():
                group[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model__act_fun", "model.act_fn"),
        ("model__n_layer", "model.n_layers"),
        ("optimizer__weight_decy", "optimizer.weight_decay"),
        ("weight_decay", "optimizer.weight_decay"),
        ("evaluations__every", "evaluation.every or checkpoints.every"),
        ("task__phy", "task.phi"),
        ("task__n_entitys", "task.n_entities"),
        ("batchsize", "batch_size"),
        ("note", ""),
    ],
)
def test_a_field_that_nothing_reads_is_refused(key, near):
    name = key.replace("__", ".")
    with pytest.raises(InputError, match=f"{name} is not a field") as caught:
        check_config(changed(tiny(), **{key: 5}))
    hint = str(caught.value).partition("did you mean ")[2]
    assert hint == (f"{near}?" if near else "")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("model__tied", "false", "true or false"),
        ("model__tied", 0, "true or false"),
        ("model__act_fn", None, "a string"),
        ("model__eps", "1e-5", "a number"),
        ("steps", 60.0, "an int"),
        ("steps", True, "between 1 and"),
        ("log_every", "7", "an int"),
        ("mesh__fsdp", 1, "true or false"),
        ("task__mixed_chains", "no", "true or false"),
        ("task__hops", "2", "an int"),
        ("task__order", ("e", "r", "r"), "a string"),
        ("distributed__timeout", "30", "between 5 and 3600"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, wanted):
    name = key.replace("__", ".")
    with pytest.raises(InputError, match=rf"{name} is .*; it must be {wanted}"):
        check_config(changed(tiny(), **{key: value}))


CHOICES = [key for key, field in fields.FIELDS.items() if field.choices]


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_that_is_no_choice_is_refused(key):
    choices = fields.FIELDS[key].choices
    name = key.replace(".", "__")
    for value in choices:
        check_schema(changed(tiny(), **{name: value}))
    said = f"{key} is 'another'; it must be one of {', '.join(map(repr, choices))}"
    with pytest.raises(InputError, match=re.escape(said)):
        check_config(changed(tiny(), **{name: "another"}))
    if key.startswith("model."):
        values = tiny().model.to_dict() | {key.removeprefix("model."): "another"}
        with pytest.raises(InputError, match=re.escape(said)):
            Spec.from_config(values, d_vocab=5, n_ctx=3)


def check_schema(config):
    """Check the schema without the rules that relate several fields."""
    assert schema_faults(flatten(config), fields.schema(config)) == []


def test_which_fields_are_a_choice():
    assert set(CHOICES) == {
        *("order", "optimizer.schedule", "distributed.mode", "loss.early_supervision.rows"),
        *("model.act_fn", "model.normalization", "model.dtype", "model.precision"),
    }


@pytest.mark.parametrize("name", ["n_layers", "d_model", "n_heads", "d_mlp", "n_loops"])
def test_a_spec_has_the_bounds_of_the_table(name):
    values = tiny().model.to_dict()
    with pytest.raises(InputError, match=rf"model\.{name} is 0; it must be between 1 and"):
        Spec.from_config(values | {name: 0}, d_vocab=5, n_ctx=3)
    with pytest.raises(InputError, match=r"model\.n_ctx is 0; it must be at least 1"):
        Spec.from_config(values, d_vocab=5, n_ctx=0)


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_a_configuration_that_can_be_built(task):
    config = default_config(task)
    check_config(config)
    assert config.task.name == task
    assert build(config.task).n_train > 0


def test_there_are_no_defaults_of_a_task_that_the_lab_has_not():
    with pytest.raises(InputError, match="no defaults for task 'compositon'; did you mean 'compos"):
        default_config("compositon")


def test_an_int_is_a_float_and_a_missing_setting_of_the_task_is_named():
    check_config(changed(tiny(), task__phi=1, distributed__timeout=30, model__eps=1))
    config = tiny()
    with config.unlocked():
        del config.task.phi
    with pytest.raises(InputError, match=r"trained: task\.phi is missing$"):
        check_config(config)


def test_what_was_optional_still_is():
    """Configurations from before these fields get the defaults of `Spec`."""
    config = tiny()
    with config.unlocked():
        for key, field in fields.FIELDS.items():
            group, _, name = key.rpartition(".")
            if not field.required:
                del config[group][name]
    check_config(config)


def test_the_schema_has_every_field_there_is():
    config = load_config("configs/composition.py")
    optional = {key for key, field in fields.FIELDS.items() if not field.required}
    shape = {f"model.{name}" for name in Spec.__dataclass_fields__} - {
        "model.d_vocab",
        "model.n_ctx",
    }
    assert set(fields.schema(config)) == set(flatten(config))
    assert {key for key in optional if key.startswith("model.")} < shape < {*fields.FIELDS}
    assert all(field.doc for field in fields.schema(config).values())
    assert set(task_fields.FIELDS) == set(TASKS)
    config = load_config(DEFAULTS)
    named = set(flatten(config))
    assert named == set(dictionary_fields.FIELDS)
    training = {key for key in named if key.startswith("training.")}
    assert training == {
        f"training.{name}" for name in DictionaryTrainingSettings.__dataclass_fields__
    }


@pytest.mark.parametrize("kind", ["train", "plan", "world", "sweep"])
def test_the_commands_refuse_such_a_file(kind, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from implicit_reasoning.config import load_config\n"
        "def get_config(arg=''):\n"
        "    config = load_config('configs/composition.py:pocket').unlock()\n"
        "    config.task.phy = 3.0\n"
        "    return config\n"
        "def sweep_seeds():\n"
        "    yield {'seed': 1}\n"
    )
    words = {"train": ["--workdir=x"], "plan": [], "world": ["--out=x"]}
    more = words.get(kind, ["--sweep=seeds", "--workdir=x"])
    more = [word.replace("=x", f"={tmp_path}/x") for word in more]
    assert main([kind, f"--config={path}", *more]) == 2
    heard = capsys.readouterr().err
    assert "task.phy" in heard and "did you mean task.phi?" in heard
    assert not (tmp_path / "x").exists()


def test_a_sweep_of_such_a_configuration_is_refused():
    with pytest.raises(InputError, match=r"trial 0, 1: .*model\.act_fun is not a field"):
        make_sweep(changed(tiny(), model__act_fun="relu").lock(), [{"seed": 0}, {"seed": 1}])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sparsity", (4.0,), "sparsity is not a field; did you mean sparsities?"),
        ("training__lerning_rate", 1e-3, "did you mean training.learning_rate?"),
        ("training__warmup", 5, "did you mean training.warmup_steps?"),
        ("normalise", True, "did you mean normalize?"),
        ("width", "512", "width is '512'; it must be between"),
        ("sparsities", 4.0, "sparsities is 4.0; it must be a tuple"),
        ("training__unit_decoder", "yes", "it must be true or false"),
    ],
)
def test_dictionaries_have_a_schema_too(key, value, said):
    config = load_config(DEFAULTS)
    dictionary_fields.check_config(config)
    with pytest.raises(InputError) as caught:
        dictionary_fields.check_config(changed(config, **{key: value}))
    assert said in str(caught.value)


def test_missing_fields_of_dictionaries_are_named():
    config = load_config(DEFAULTS).unlock()
    del config.width, config.options, config.training.b1  # the last of these has a default
    with pytest.raises(InputError) as caught:
        dictionary_fields.check_config(config)
    assert str(caught.value).endswith("invalid: width is missing; options is missing")


def test_a_run_that_began_with_a_stray_field_goes_on_without_it(tmp_path):
    """Such fields were once accepted and had no effect."""
    old = changed(tiny(), model__act_fun="relu")
    (tmp_path / "config.json").write_text(old.to_json())
    check_same(Layout(tmp_path), tiny())
    with pytest.raises(InputError, match="seed was 0, is 1"):
        check_same(Layout(tmp_path), tiny(seed=1))


# A user's own tasks ------------------------------------------------------------------------------

TASK = '''
"""A composition with settings of its own."""
from types import SimpleNamespace
from implicit_reasoning.worlds import build

def attributes(task):
    return make(task, task.extra)

def items(task):
    return make(task, task["extra"])

def whole(task):
    return make(task, dict(task)["extra"])

def by_method(task):
    return make(task, task.to_dict()["extra"])

def unpacked(task):
    return make(task, (lambda extra, **_: extra)(**task))

def optional(task):
    return make(task, task.get("extra", 1))

def guarded(task):
    return make(task, task.extra if hasattr(task, "absent") or "extra" in task else 0)

def bug(task):
    return task.extra.no_such_attribute

def make(task, extra):
    from implicit_reasoning.worlds.tasks.modular_addition import modular_addition
    return modular_addition(task)
'''
WAYS = ["attributes", "items", "whole", "by_method", "unpacked", "optional", "guarded"]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(TASK)
    task = {"world_seed": 0, "modulus": 5, "train_fraction": 0.5, "probes": 9, "extra": 2}

    def config(function, **more):
        return ConfigDict({**task, **more, "name": f"{tmp_path / 'own.py'}:{function}"}).lock()

    return config


@pytest.mark.parametrize("way", WAYS)
def test_a_task_may_read_its_settings_in_any_way(way, own):
    assert build(own(way)).n_train == 12


@pytest.mark.parametrize("way", ["attributes", "items", "optional", "guarded"])
def test_a_setting_that_the_task_does_not_read_is_refused(way, own):
    with pytest.raises(InputError, match=r"not read task\.modulu \(did you mean task\.modulus"):
        build(own(way, modulu=7))


def test_a_setting_that_the_task_looks_for_is_named(own):
    config = own("attributes").unlock()
    del config.extra
    config.xtra = 2
    with pytest.raises(InputError, match=r"task\.extra is missing \(did you mean task\.xtra\?\)"):
        build(config)


def test_a_bug_in_the_task_keeps_its_traceback(own):
    with pytest.raises(AttributeError, match="no_such_attribute") as caught:
        build(own("bug"))
    assert not isinstance(caught.value, InputError)


def test_check_config_leaves_the_settings_of_such_a_task_alone(own):
    config = tiny()
    with config.unlocked():
        config.task = own("attributes")
    check_config(config)
    assert json.loads(config.to_json())["task"]["extra"] == 2
    assert apply_overrides(config, {"task.extra": 3}).task.extra == 3
