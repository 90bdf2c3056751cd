"""Every configuration builds at every scale and reads all its fields, and its rows are true."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec
from implicit_reasoning.training import Splits
from implicit_reasoning.training.batches import check_order
from implicit_reasoning.training.setup import check_config
from implicit_reasoning.worlds import TASKS, Dataset, build, shortcuts

FILES = sorted(Path("configs").glob("*.py"))
SCALES = {
    "composition": ["pocket", "desk", "paper", "paper_wang"],
    "modular_addition": ["pocket", "desk", "paper", "power"],
    "cue_conflict": ["pocket", "desk"],
    "ladder": ["pocket", "desk", "bench"],
    **{name: ["pocket", "desk"] for name in ("successor", "greater_than", "indirect_object")},
    "ood_ratio": ["pocket", "pocket_50", "pocket_70", "desk", "desk_70", "paper", "paper_70"],
}
EVERY = [
    (path.stem, scale)
    for path in FILES
    for scale in SCALES.get(path.stem, ["pocket", "desk", "paper"])
]


# Half a million sequences of up to 50 tokens take six seconds. Fewer of them are made in the same
# way.
LARGEST = {("in_context", "paper"): {"task.n_train": 5_000}}


class Recorder:
    """The settings of a task, which records the settings that are read."""

    def __init__(self, task):
        self._task, self.read = task, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._task, name)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        # Worlds of other sizes are made in the same way.
        pytest.param(*one, marks=pytest.mark.slow if one[1] in ("desk", "bench") else ())
        for one in EVERY
    ],
)
def test_every_configuration(name, scale):
    config = load_config(f"configs/{name}.py:{scale}")
    config = apply_overrides(config, LARGEST.get((name, scale), {}))
    check_config(config)
    task = Recorder(config.task)
    dataset = build(task)
    assert task.read == set(config.task)  # every setting has an effect
    check_order(config.order, config.batch_size, dataset.n_train)
    shape = {"d_vocab": dataset.n_vocab, "n_ctx": dataset.n_ctx}
    Spec.from_config(config.model.to_dict(), **shape)

    parts = Splits.of(dataset)
    assert parts.trained.startswith("train_") and parts.held_out.startswith("test_")
    if config.task.name != "scrambled":
        assert answers_of(dataset) == dataset.truth["answer"].tolist()
    last = dataset.targets[np.arange(len(dataset)), dataset.truth["position"]]
    assert (last == dataset.truth["answer"]).all()
    if scale == "pocket":
        found = shortcuts(dataset)
        assert all(0 <= a <= 1 for by_split in found.values() for a in by_split.values())


def answers_of(dataset):
    """Return the first answer token of every row, from the world and the query in its truth."""
    truth, world = dataset.truth, dataset.world
    if world is None:
        if "a" in truth:
            p = dataset.n_vocab - 1
            return ((truth["a"] + truth["b"]) % p).tolist()
        rows, place = np.arange(len(dataset)), truth["position"]
        if "alphabet" in truth:
            alphabet, value = truth["alphabet"], truth["value"]
            sizes = np.array([sum(w.startswith(f"<{a}_") for w in dataset.vocab) for a in range(9)])
            return ((np.cumsum(sizes) - sizes)[alphabet] + (value + 1) % sizes[alphabet]).tolist()
        if "right_first" in truth:  # any year after the start is right
            return np.clip(truth["answer"], truth["start"] + 1, truth["right_last"]).tolist()
        if "repeated_token" in truth:  # the other name
            is_name = np.array([word.startswith("<name_") for word in dataset.vocab])
            names = np.where(is_name[dataset.tokens], dataset.tokens, 0)
            return (names.sum(1) - 2 * truth["repeated_token"]).tolist()
        # The token after the earlier occurrence of the present token.
        return dataset.tokens[rows, place - truth["period"] + 1].tolist()
    if "label" in truth:
        a = truth["attribute"]
        value = [world.tail[truth[f"entity{i}"], a] for i in (1, 2)]
        label = np.select([value[0] < value[1], value[0] == value[1]], [0, 1], default=2)
        labels = world.n_entities + world.n_relations + 3 * a + label
        return np.where(truth["entity2"] >= 0, labels, value[0]).tolist()
    entity = truth["e1"]
    for hop in range(dataset.hops):
        relation = truth[f"r{hop + 1}"]
        entity = np.where(relation >= 0, world.tail[entity, relation], entity)
    if "decoy" in truth:  # of the other table, which the atomic rows teach
        entity = np.where(truth["r2"] >= 0, entity, truth["decoy"])
    if "decoy_answer" in truth:  # asked in splits of their own
        by_fact = [name.endswith("_fact") for name in dataset.splits]
        entity = np.where(np.array(by_fact)[dataset.split], truth["decoy_answer"], entity)
    if "answer2" in truth:  # the first of two name tokens
        entity = entity % (sum(word.startswith("<first_") for word in dataset.vocab))
    return entity.tolist()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_world_command_takes_it(path, tmp_path, capsys):
    assert main(["world", f"--config={path}:pocket", f"--out={tmp_path}"]) == 0
    dataset = Dataset.load(tmp_path / "world.npz")
    assert len(json.loads((tmp_path / "train.json").read_text())) == dataset.n_train
    said = capsys.readouterr().out
    assert all(split in said for split in dataset.splits)
    assert all(position in said for position in dataset.positions)


def test_every_task_has_a_configuration():
    names = {load_config(f"configs/{path.stem}.py").task.name for path in FILES}
    assert names == set(TASKS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_docstring_has_the_command_and_what_to_expect(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"python -m implicit_reasoning train --config={path}" in text
    if path.stem != "composition":  # its docstrings of the scales have these words
        for word in ("Controls for", "Published", "To expect", "Times|minutes"):
            assert re.search(word.replace(" ", r"\s+"), text, re.IGNORECASE), word


@pytest.mark.parametrize("path", FILES, ids=str)
def test_an_unknown_scale_is_refused(path):
    with pytest.raises(InputError, match="unknown choice 'pokcet'"):
        load_config(f"{path}:pokcet")


def test_relations_first_has_room_for_both_hops():
    for scale in ("desk", "paper"):
        assert load_config(f"configs/relations_first.py:{scale}").model.n_layers >= 4
