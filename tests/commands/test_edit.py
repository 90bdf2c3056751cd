"""The command `edit`: which hops follow, what is saved, and what is refused."""

import contextlib
import dataclasses
import html
import io
import json
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from implicit_reasoning.__main__ import main
from implicit_reasoning.analysis.editing.edit_cases import KINDS, choose_edits, consequences
from implicit_reasoning.analysis.editing.edit_effects import (
    change_size,
    measure_effects,
    random_like,
    read_layers,
)
from implicit_reasoning.analysis.editing.fact_edit import choose_method, edit_fact, parse_edit
from implicit_reasoning.analysis.editing.fine_tuning import Tuning
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.report import write_report
from implicit_reasoning.runs import (
    Checkpoints,
    Layout,
    Run,
    default_config,
    edited,
    save_edited,
    write_config,
)
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.training import train
from implicit_reasoning.worlds import build
from tests.analysis.planted_subject import dataset, known
from tests.training.tiny import tiny

STEPS = (3, 7)


def write_planted(folder, name):
    """Write a planted model as a run directory with two equal checkpoints."""
    subject, files = known(name).subject, Layout(folder)
    store = Checkpoints(files.checkpoints)
    for step in STEPS:
        store.save(step, subject.checkpoints[0])
    store.close()
    shape = dataclasses.asdict(subject.model.spec)
    del shape["d_vocab"], shape["n_ctx"]
    subject.dataset.save(files.world)
    rows = [{"step": step, "accuracy/train_ii": 1.0, "time": time.time()} for step in (0, *STEPS)]
    files.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(files.provenance, [{"step": 0, "time": time.time(), **provenance()}])
    task, writers = tiny().task.to_dict(), {"tensorboard": False}
    model = shape | {"dropout": 0.0}
    config = {"steps": STEPS[-1], "task": task, "model": model, "writers": writers}
    write_config(files.config, ConfigDict(config))
    return Run(folder)


@pytest.fixture(scope="module")
def wanted():
    """Choose a fact and a new tail that have consequences at both hops."""
    data, edits = dataset(), choose_edits(dataset(), 40, seed=1)
    kinds = consequences(data, edits).kind
    counts = np.stack([(kinds == KINDS.index(hop)).sum(1) for hop in ("first hop", "second hop")])
    number = int(np.flatnonzero((counts >= 2).all(0))[0])
    head, relation = (int(column[edits.fact[number]]) for column in data.world.facts[:2])
    return parse_edit(data.world, f"e{head},r{relation}", f"e{edits.new[number]}")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def words(edit):
    return [f"--fact=e{edit.head},r{edit.relation}", f"--to=e{edit.new}"]


class Edited(NamedTuple):
    """A planted run, the run of its edited model, and what the command printed and wrote."""

    run: Run
    saved: Run
    said: str
    page: str


def edited_planted(folder, name, edit):
    run, said = write_planted(folder / "run", name), io.StringIO()
    workdir, saved = f"--workdir={run.files.workdir}", folder / "saved"
    with contextlib.redirect_stdout(said):
        assert main(["edit", workdir, *words(edit), "--step=3", f"--save={saved}"]) == 0
    [page] = run.files.edits.iterdir()
    return Edited(run, Run(saved), said.getvalue(), page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def composer(tmp_path_factory, wanted):
    return edited_planted(tmp_path_factory.mktemp("composer"), "composer", wanted)


def answers_of(run, tokens):
    params = jax.tree.map(lambda stacked: stacked[0], run.params([3]))
    logits = jax.jit(lambda params, tokens: run.model.forward(params, tokens)[0])(params, tokens)
    return np.asarray(logits.argmax(-1))


def test_a_saved_composer_follows_at_the_first_hop_and_not_at_the_second(composer, wanted):
    """The saved run has the answers of the edited table of facts, except at the second hop."""
    assert composer.saved.steps == (3,)
    listed = consequences(composer.run.dataset, wanted.as_edits())
    kind, tokens, position, before, after = (
        getattr(listed, name)[0] for name in ("kind", "tokens", "position", "before", "after")
    )
    for run, right in (
        (composer.run, before),
        (composer.saved, np.where(kind == 2, before, after)),
    ):
        found = np.take_along_axis(answers_of(run, tokens), position[:, None], axis=1)[:, 0]
        np.testing.assert_array_equal(found, right)
    chains = [int((kind == number).sum()) for number in (1, 2)]
    assert f"first hop: {chains[0]} of {chains[0]} chains" in composer.said
    assert f"second hop: 0 of {chains[1]} chains" in composer.said


def test_the_page_has_the_same_numbers_and_loads_nothing(composer, wanted):
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", composer.page)).split())
    for sentence in composer.said.split("\n"):
        name, _, sentence = sentence.partition(": ")
        if name in ("fact", "first hop", "second hop", "everything else"):
            assert sentence in text
    assert f"(e{wanted.head}, r{wanted.relation}): e{wanted.old} becomes e{wanted.new}" in text
    assert not re.search(r"(src|href)=.https?:|<script", composer.page)
    assert composer.page.count('tabindex="0"') == 2 + len(KINDS)  # every wide table scrolls by keys


def test_the_saved_run_is_the_source_up_to_the_step(composer, wanted):
    run, saved = composer.run, composer.saved
    assert saved.dataset.fingerprint() == run.dataset.fingerprint()
    assert saved.config == run.config
    assert saved.metrics == [row for row in run.metrics if row["step"] <= 3] != run.metrics
    *earlier, last = saved.starts
    assert [start["time"] for start in earlier] == [start["time"] for start in run.starts]
    about = last["edited"]
    assert about["fact"] == f"e{wanted.head},r{wanted.relation}"
    assert (about["from"], about["to"]) == (f"e{wanted.old}", f"e{wanted.new}")
    assert (about["method"], about["layers"], about["step"]) == ("rome", [0], 3)
    assert about["source"] == str(run.files.workdir)
    assert about["fingerprint"] == run.fingerprint(3) != saved.fingerprint(3)


def test_the_report_says_that_the_model_was_edited(composer):
    page = write_report(composer.saved, providers=()).read_text(encoding="utf-8")
    assert "This is an edited model" in page and "is not finished" not in page
    page = write_report(composer.run, providers=()).read_text(encoding="utf-8")
    assert "This is an edited model" not in page
    assert "what an edit changes" in page  # the link to the page


def test_nobody_trains_on_in_an_edited_run(composer):
    with pytest.raises(InputError, match=r"edited model, which cannot be continued.*init_from"):
        train(tiny(), composer.saved.files.workdir)


def test_an_interrupted_save_leaves_nothing(composer, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(edited.shutil, "copyfile", interrupt)
    params = jax.tree.map(lambda stacked: stacked[0], composer.run.params([3]))
    with pytest.raises(KeyboardInterrupt):
        save_edited(composer.run, tmp_path / "new", 3, params, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fact=e1"], "--fact is 'e1'; it must be an entity and a relation, such as e12,r3"),
        (["--fact=e99,r0"], "--fact contains e99, but the world has the entities e0 to e23"),
        (["--fact={e},r99"], "--fact contains r99, but the world has the relations r0 to r"),
        (["--fact={e},{no_fact}"], "the world has no fact ({e}, {no_fact}); {e} has facts with"),
        (["--to=r2"], "--to is 'r2'; it must be an entity, such as e40"),
        (["--to=e99"], "--to contains e99, but the world has the entities e0 to e23"),
        (["--to={old}"], "--to is {old}, which is already the tail of the fact"),
        (["--to={e}"], "--to is {e}, which is the entity of the fact"),
        (["--method=rmoe"], "--method is 'rmoe'; did you mean rome?; choose from rome, memit, tun"),
        (["--layer=3"], "layer is 3; the model has the blocks 0 to 2"),
        (["--layer=0,1"], "--layer has 2 blocks, but --method=rome changes one block"),
        (["--method=tuned", "--layer=0"], "--method=tuned changes the weights of all blocks"),
        (["--step=4"], "--step is 4, but {run} contains no checkpoint of this step; the nearest"),
        (["--save={run}"], "--save is '{run}', which exists already; give a new folder"),
        (["--workdir={other}"], "(task modular_addition) cannot be edited: this instrument needs"),
        (["--workdir=nowhere"], "nowhere is not a run directory"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    flags, said, composer, wanted, tmp_path, capsys
):
    other = Layout(tmp_path / "addition")
    other_config = default_config("modular_addition")
    write_config(other.config, other_config)
    build(other_config.task).save(other.world)
    world, folder = dataset().world, composer.run.files.workdir
    missing = int(np.flatnonzero(world.tail[wanted.head] < 0)[0])
    names = {"e": f"e{wanted.head}", "old": f"e{wanted.old}", "no_fact": f"r{missing}"}
    names |= {"run": folder, "other": other.workdir}
    flags = [flag.format(**names) for flag in flags]
    given = {flag.partition("=")[0] for flag in flags}
    base = [f"--workdir={folder}", *words(wanted)]
    there = listing(folder), listing(tmp_path)
    command = ["edit", *(flag for flag in base if flag.partition("=")[0] not in given), *flags]
    assert main(command) == 2
    heard = capsys.readouterr().err
    assert said.format(**names) in heard and heard.count("\n") == 1
    assert (listing(folder), listing(tmp_path)) == there


def test_methods_have_one_spelling_on_the_command_line_and_in_python():
    model = known("composer").subject.model
    for name in ("tuned_W_out", "tuned W_out"):
        assert choose_method(model, name, [1]) == ("tuned W_out", (1,))
    assert choose_method(model, "rome") == ("rome", (0,))
    assert choose_method(model, "memit", [1, 0]) == ("memit", (0, 1))
    assert choose_method(model, "tuned") == ("tuned", ())
    assert read_layers(model, choose_method(model, "memit", [0, 1])) == (2,)
    assert read_layers(model, choose_method(model, "tuned")) == (2,)


def test_random_changes_have_the_norm_of_the_edit_and_rank_one():
    random = np.random.default_rng(0)
    before = {"a": random.normal(size=(5, 7)), "b": random.normal(size=(2, 3, 4)), "c": np.ones(4)}
    before = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), before)
    after = before | {"a": before["a"] + 1, "b": before["b"] * 1.5}
    drawn = random_like(jax.random.key(0), before, after, (True, True, False))
    for name in ("a", "b"):
        size = np.linalg.norm(drawn[name] - before[name])
        np.testing.assert_allclose(size, np.linalg.norm(after[name] - before[name]), rtol=1e-5)
    assert np.linalg.matrix_rank(drawn["a"] - before["a"], tol=1e-4) == 1
    assert drawn["c"] is before["c"]
    changed = np.sqrt(35 + 0.25 * (before["b"] ** 2).sum())
    whole = np.sqrt((before["a"] ** 2).sum() + (before["b"] ** 2).sum())
    np.testing.assert_allclose(change_size(before, after), changed / whole, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memit", "tuned_W_out", "tuned"])
def test_other_methods_answer_the_new_tail(name, wanted):
    subject = known("composer").subject
    model, before = subject.model, subject.checkpoints[0]
    method = choose_method(model, name)
    tuning = Tuning(steps=60, rate=0.02)  # weights of planted models are larger than trained ones
    after = edit_fact(model, before, subject.dataset, wanted, method, tuning=tuning)
    found = measure_effects(model, before, after, subject.dataset, wanted, method)
    assert found.after.is_new[0] and not found.after.is_old[0]
    assert found.random.is_old[:, 0].mean() > 0.7


@pytest.mark.slow
def test_an_edit_of_a_shared_store_reaches_the_second_hop(wanted, tmp_path):
    found = edited_planted(tmp_path, "shared_store", wanted)
    chains = int((consequences(dataset(), wanted.as_edits()).kind == 2).sum())
    assert f"second hop: {chains} of {chains} chains" in found.said
    assert "The second hop follows the edit." in found.said
