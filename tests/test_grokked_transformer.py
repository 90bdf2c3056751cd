"""Import of GrokkedTransformer runs, from folders written here in the same layout."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from implicit_reasoning.__main__ import main
from implicit_reasoning.errors import InputError
from implicit_reasoning.grokked_transformer import GPT2_TOKENS, import_grokked
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.exchange import save_gpt2
from implicit_reasoning.report import write_report
from implicit_reasoning.runs import Run
from implicit_reasoning.training import train
from implicit_reasoning.worlds import Dataset, build, read_grokked, write_grokked
from tests.model.exchange.models import assert_same_logits, filled, logits_of
from tests.model.exchange.numpy_gpt2 import gpt2
from tests.training.tiny import tiny

OFFSET = 11  # tokens before those of the world; the real vocabulary has 50,257
STEPS = (2, 10, 100)  # in alphabetic order, 10 and 100 would come before 2
SPEC = Spec(d_vocab=1, n_ctx=9, n_layers=2, d_model=8, n_heads=2, d_mlp=32, tied=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a run in its published layout: `data/`, and `output/` with three checkpoints."""
    root = tmp_path_factory.mktemp("published")
    write_grokked(build(tiny().task), root / "data")
    (root / "data" / "meta.json").unlink()  # published data has no such file
    for step in STEPS:
        save_checkpoint(root, step)
    (root / "output" / "training_progress_scores.csv").write_text("global_step\n")
    return root


def save_checkpoint(root, step, offset=OFFSET, **changes):
    symbols = json.loads((root / "data" / "vocab.json").read_text())
    size = -(-(offset + len(symbols)) // 8) * 8
    model = Transformer(dataclasses.replace(SPEC, **{"d_vocab": size, **changes}))
    folder = root / "output" / f"checkpoint-{step}"
    save_gpt2(folder, model, filled(model, seed=step))
    write(folder / "added_tokens.json", {name: offset + i for i, name in enumerate(symbols)})
    write(folder / "model_args.json", {"weight_decay": 0.3, "warmup_steps": 2000, "labels": []})


def write(path, value):
    path.write_text(json.dumps(value))


def edit(path, **changes):
    write(path, json.loads(path.read_text()) | changes)


@pytest.fixture
def copy(published, tmp_path):
    """Return a copy, to be damaged."""
    shutil.copytree(published, tmp_path / "theirs")
    return tmp_path / "theirs"


def imported(root, workdir):
    return import_grokked(root / "output", root / "data", workdir)


def full_logits(checkpoint, tokens):
    """Return the logits of a checkpoint over its whole vocabulary, in numpy."""
    config = json.loads((checkpoint / "config.json").read_text())
    return gpt2(load_file(checkpoint / "model.safetensors"), config, tokens)


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
    return imported(published, tmp_path_factory.mktemp("runs") / "run")


def test_it_is_a_run(published, run):
    assert isinstance(run, Run) and run.steps == STEPS
    expected = read_grokked(published / "data")
    assert run.dataset.fingerprint() == expected.fingerprint()
    assert build(run.config.task).fingerprint() == expected.fingerprint()
    assert run.config.model.dropout == 0.1 and run.config.steps == 100
    assert run.config.recipe.to_dict() == {"weight_decay": 0.3, "warmup_steps": 2000}
    assert run.starts[0]["imported"] == str(published / "output")
    assert run.starts[0]["versions"]["jax"]
    left = {path.name for path in run.files.workdir.parent.iterdir()}
    assert left == {"run"}


@pytest.mark.parametrize("row", range(len(STEPS)))
def test_logits_and_accuracies_are_those_of_the_whole_vocabulary(published, run, row):
    """The ids are written by hand, so that the expected values do not use the importer."""
    dataset, step = run.dataset, STEPS[row]
    ids = OFFSET + np.arange(12 + 4 + 4)[[*range(16), 19]]  # </a> is the fourth special token
    assert dataset.vocab[-1] == "</a>" and dataset.n_vocab == len(ids)
    probes = np.flatnonzero(dataset.probe)
    tokens, position = dataset.tokens[probes], dataset.truth["position"][probes]
    theirs = full_logits(published / "output" / f"checkpoint-{step}", ids[tokens])[..., ids]
    assert_same_logits(logits_of(run.model, params_of(run, step), tokens), theirs)

    predicted = theirs[np.arange(len(probes)), position].argmax(-1)
    correct = predicted == dataset.truth["answer"][probes]
    metrics = run.metrics[row]
    assert metrics["step"] == step
    for index, split in enumerate(dataset.splits):
        mine = dataset.split[probes] == index
        if mine.any():
            assert metrics[f"accuracy/{split}"] == pytest.approx(correct[mine].mean(), abs=1e-12)
    found = run.first_correct
    np.testing.assert_array_equal(found["row"], probes)
    assert (correct <= ((found["step"] >= 0) & (found["step"] <= step))).all()


def params_of(run, step):
    return jax.tree.map(lambda leaf: leaf[0], run.params([step]))


@pytest.mark.slow
def test_the_command_and_the_report(published, tmp_path, capsys, blank_figures):
    workdir = tmp_path / "run"
    flags = [f"--source={published / 'output'}", f"--data={published / 'data'}"]
    assert main(["import", *flags, f"--workdir={workdir}"]) == 0
    assert "3 checkpoints up to step 100" in capsys.readouterr().out
    page = write_report(Run(workdir)).read_text()
    assert "100 of 100 steps" in page and "0 s on" not in page  # its duration is unknown
    assert list((workdir / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_a_looped_run_maps_to_loops(copy, tmp_path):
    for step in STEPS:
        edit(copy / "output" / f"checkpoint-{step}" / "config.json", add_recurrence=True)
    run = imported(copy, tmp_path / "run")
    assert (run.model.spec.n_loops, run.model.spec.depth) == (2, 4)
    tokens = run.dataset.tokens[:5]
    ids = np.array([*range(OFFSET, OFFSET + 16), OFFSET + 19])
    theirs = full_logits(copy / "output" / "checkpoint-10", ids[tokens])[..., ids]
    assert_same_logits(logits_of(run.model, params_of(run, 10), tokens), theirs)


@pytest.mark.parametrize(
    "name",
    [
        "added_tokens.json",
        pytest.param("tokenizer.json", marks=pytest.mark.slow),
        pytest.param("tokenizer_config.json", marks=pytest.mark.slow),
    ],
)
def test_numbers_come_from_whichever_tokenizer_file_there_is(copy, tmp_path, name):
    """The ids have another order, because a tokenizer may already have contained some symbols."""
    folder = copy / "output" / "checkpoint-2"
    symbols = list(json.loads((folder / "added_tokens.json").read_text()))
    (folder / "added_tokens.json").unlink()
    numbers = dict(zip(symbols, np.random.default_rng(0).permutation(30).tolist(), strict=False))
    entries = {str(i): {"content": symbol} for symbol, i in numbers.items()}
    write(
        folder / name,
        {
            "added_tokens.json": numbers,
            "tokenizer.json": {"added_tokens": [{"id": numbers[s], "content": s} for s in symbols]},
            "tokenizer_config.json": {"added_tokens_decoder": entries},
        }[name],
    )
    run = imported(copy, tmp_path / "run")
    state = load_file(folder / "model.safetensors")
    expected = state["transformer.wte.weight"][[numbers[s] for s in run.dataset.vocab]]
    np.testing.assert_array_equal(run.params([2])["embed"]["W_E"][0], expected)


def test_without_a_tokenizer_the_order_of_the_data_counts_if_the_size_agrees(copy, tmp_path):
    for step in (10, 100):
        shutil.rmtree(copy / "output" / f"checkpoint-{step}")
    (copy / "output" / "checkpoint-2" / "added_tokens.json").unlink()
    with pytest.raises(
        InputError, match=r"has 40 tokens, but 50,280 are expected .* add a tokenizer file"
    ):
        imported(copy, tmp_path / "run")
    save_checkpoint(copy, 2, offset=GPT2_TOKENS)
    (copy / "output" / "checkpoint-2" / "added_tokens.json").unlink()
    run = imported(copy, tmp_path / "run")
    state = load_file(copy / "output" / "checkpoint-2" / "model.safetensors")
    ids = [*range(GPT2_TOKENS, GPT2_TOKENS + 16), GPT2_TOKENS + 19]
    expected = state["transformer.wte.weight"][ids]
    np.testing.assert_array_equal(run.params([2])["embed"]["W_E"][0], expected)


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d / "output"), "output is not a folder; give"),
        (
            lambda d: [shutil.rmtree(d / "output" / f"checkpoint-{step}") for step in STEPS],
            "no folder checkpoint-<step>",
        ),
        (lambda d: (d / "data" / "test.json").unlink(), "test.json does not exist"),
        (lambda d: cut(d / "data" / "train.json"), "train.json is not complete, valid JSON"),
        # The last checkpoint is damaged, when the others have been written.
        (lambda d: cut(d / "output/checkpoint-100/model.safetensors"), "not a complete weights"),
        (lambda d: (d / "output/checkpoint-100/model.safetensors").unlink(), "contains no weights"),
        (
            lambda d: (d / "output/checkpoint-100/config.json").unlink(),
            "config.json does not exist",
        ),
        (lambda d: cut(d / "output/checkpoint-100/added_tokens.json"), "not complete, valid JSON"),
        (
            lambda d: write(d / "output/checkpoint-100/added_tokens.json", ["<e_0>"]),
            "is not a valid list of a tokenizer's added tokens",
        ),
        (
            lambda d: edit(d / "output/checkpoint-100/added_tokens.json", **{"<e_3>": 40}),
            "the symbol <e_3> of .*data.* has the token id 40 .* from 0 to 39; check that",
        ),
        (
            lambda d: edit(d / "output/checkpoint-100/added_tokens.json", **{"<e_3>": 12}),
            "two symbols of .*data.* have the same token id",
        ),
        (
            lambda d: write(d / "output/checkpoint-100/added_tokens.json", {"<e_0>": 11}),
            "the symbol <e_1> of .*data.* has the token id None",
        ),
        (lambda d: write(d / "output/checkpoint-100/model_args.json", []), "contain a JSON object"),
        (lambda d: save_checkpoint(d, 100, n_layers=1), ".*checkpoint-2 contain different models"),
        (lambda d: save_checkpoint(d, 2, n_ctx=2), "has 2 positions, but the rows of .* 4 tokens"),
        (
            lambda d: edit(d / "output/checkpoint-2/config.json", add_memory=True),
            "add_memory = True",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_sentence_and_leaves_nothing(
    copy, tmp_path, damage, message
):
    damage(copy)
    with pytest.raises(InputError, match=message):
        imported(copy, tmp_path / "runs" / "run")
    assert not list((tmp_path / "runs").glob("*"))


def test_a_directory_with_something_in_it_is_left_alone(published, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        imported(published, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_directory_will_do_even_by_a_link(published, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    assert imported(published, tmp_path / "here").steps == STEPS
    assert Dataset.load(tmp_path / "there" / "world.npz").n_ctx == 4


def test_nobody_trains_on_in_an_imported_run(run):
    with pytest.raises(InputError, match="contains a run with a different configuration"):
        train(tiny(), run.files.workdir)
