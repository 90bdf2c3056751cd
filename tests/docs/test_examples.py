"""The Python examples of the guides run at small sizes, and tables of names are complete."""

import re
import textwrap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.analysis import INSTRUMENTS, Claim, find_instrument, judge, measure
from implicit_reasoning.dictionaries import train_dictionaries
from implicit_reasoning.report import write_report
from implicit_reasoning.report.collect import collect
from implicit_reasoning.runs import Run
from tests import shared
from tests.analysis import planted_subject
from tests.dictionaries.small import config as small_config
from tests.training.tiny import TINY


def python_of(page):
    """Return the only block of Python on a page."""
    text = Path("docs", page).read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return example


@pytest.mark.slow
def test_the_notebook_example_runs(tmp_path, monkeypatch, capsys):
    """The tiny model replaces that of the example, because it is already compiled."""
    example = python_of("getting-started.md").replace(
        '"model.d_model": 64, "task.phi": 5', "**TINY"
    )
    example = example.replace("[0, 40]", "[0, 60]")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "getting-started.md", "exec"), {"TINY": TINY})
    said = capsys.readouterr().out
    assert re.search(r"\(2, \d+, 3, 8\)", said)
    assert (tmp_path / "runs" / "notebook" / "metrics.jsonl").exists()


def test_the_example_of_the_cache_adds_up(tmp_path, monkeypatch, capsys):
    example, found = python_of("concepts/sites-and-edits.md"), {}
    shared.finished_copy(tmp_path / "runs" / "pocket")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "sites-and-edits.md", "exec"), found)
    hooked, answers = found["hooked"], found["answers"]
    bias = hooked.params["ln_final"]["b"] @ hooked.W_U
    logits = np.take_along_axis(
        np.asarray(found["logits"][:, -1] - bias[None]), answers[:, None], 1
    )
    np.testing.assert_allclose(found["attributions"].sum(0), logits[:, 0], rtol=1e-3, atol=1e-3)
    assert re.findall(r"^(\w+) adds", capsys.readouterr().out, re.MULTILINE) == found["labels"]
    assert "L0H0" in Path("attention.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_of_dictionaries_runs(tmp_path, monkeypatch, capsys):
    example = python_of("how-to/dictionaries.md")
    assert len([line for line in example.splitlines() if line]) <= 20
    shared.finished_copy(tmp_path / "runs" / "pocket")
    monkeypatch.chdir(tmp_path)
    small = '"width": 24, "training.steps": 30, "training.batch_size": 64, '
    small += '"progress": False, "baselines": False,'
    exec(compile(example.replace('{"name"', "{" + small + '"name"'), "dictionaries.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"Member\(steps=\(60,\), .* explains \S+", said)
    assert re.search(r"with bridges shuffled at most: 0\.\d+", said)
    assert (tmp_path / "my_sae" / "sae_weights.safetensors").exists()


@pytest.mark.slow
def test_the_examples_of_attribution_graphs_run(tmp_path, monkeypatch):
    """The page is one program. Only the front end of circuit-tracer needs another environment."""
    text = Path("docs/how-to/attribution-graphs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    code = "".join(textwrap.dedent(block) for block in blocks if "circuit_tracer" not in block)
    shared.finished_copy(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run: Run = Run("run")
    found: dict[str, Any] = {}
    train_dictionaries(run, small_config("transcoder", sparsities=(3.0,)))
    found["run"] = run
    exec(compile(code, "attribution-graphs.md", "exec"), found)
    scores = run.model.forward(
        found["params"], found["prompts"], sites=("blocks.1.attn.hook_attn_scores",)
    )[1]["blocks.1.attn.hook_attn_scores"][:, 0, 2]
    np.testing.assert_allclose(found["prefers"].sum((1, 2)), scores[:, 1] - scores[:, 0], atol=1e-4)
    assert (tmp_path / "graphs.html").exists() and list((tmp_path / "graphs").glob("step-*.json"))


@pytest.mark.slow
def test_the_activation_function_of_your_own_is_trained(tmp_path, monkeypatch):
    example = python_of("how-to/activation-function.md")
    shared.finished_copy(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Path("root_penalty.py").write_text(example, encoding="utf-8")
    changes = {"activation_fn": "root_penalty.py:RootPenalty", "checkpoints": 1}
    made = train_dictionaries(Run("run"), small_config(**changes, sparsities=(0.0, 0.3)))
    rows = jnp.tile(jnp.eye(8), (4, 1))
    active = [(made.dictionary.encode(made.params_of(i), rows) > 0).sum() for i in (0, 1)]
    assert active[1] < active[0]


@pytest.mark.slow
def test_the_example_of_sweeps_runs(tmp_path, monkeypatch):
    example = python_of("how-to/sweeps.md").replace("6000", "60")
    shared.swept_copy(tmp_path / "runs" / "seeds")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(example, "sweeps.md", "exec"), found)
    assert found["accuracy"].dims == ("trial", "step") and found["lens"].sizes["trial"] == 3


def test_the_task_of_your_own_is_trained_and_reported(tmp_path, monkeypatch):
    example = python_of("how-to/task.md")
    assert len([line for line in example.splitlines() if line]) <= 48  # about 40 without imports
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inverse.py").write_text(example, encoding="utf-8")
    small = {"steps": 6, "batch_size": 16, "evaluation.every": 2, "checkpoints.every": 6}
    small |= {"task.n_entities": 12, "task.n_relations": 3, "task.probes": 10}
    small |= {"model.n_layers": 1, "model.d_model": 8, "model.n_heads": 2, "model.d_mlp": 8}
    words = [f"--config.{key}={value}" for key, value in small.items()]
    command = ["train", "--config=inverse.py", "--workdir=runs/inverse", *words]
    assert main([*command, "--config.writers.progress=false"]) == 0
    run = Run("runs/inverse")
    page = write_report(run, providers=()).read_text(encoding="utf-8")  # drawing takes seconds
    assert "test_backward" in page and "In-distribution" in page

    assert run.dataset.sizes() == {"forward": 36, "train_backward": 18, "test_backward": 18}
    forward = {tuple(row) for row in run.dataset.tokens[:36]}
    assert len(forward) == 36
    answer = {
        tuple(t): int(a) for t, a in zip(run.dataset.tokens, run.dataset.answers[:, 0], strict=True)
    }
    for (entity, relation), said in answer.items():
        if relation >= 12 + 3:  # the inverse of the inverse of a fact is the fact
            assert answer[said, relation - 3] == entity
    assert "accuracy/test_backward" in run.metrics[-1]


def test_the_instrument_of_your_own_measures_and_is_drawn(tmp_path, monkeypatch, capsys):
    example = python_of("how-to/instrument.md")
    assert len([line for line in example.splitlines() if line]) <= 48  # about 40 without imports
    run = Run(shared.finished_copy(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "knock_out.py").write_text(example, encoding="utf-8")
    where = "knock_out.py:KnockOut"
    assert main(["analyze", f"--workdir={run.files.workdir}", f"--instruments={where}"]) == 0
    assert capsys.readouterr().out.strip().endswith("analysis/knock_out.nc")
    result = run.result("knock_out")
    sizes = {"step": len(run.steps), "group": 5, "change": 2, "layer": 3, "pos": 3}
    assert dict(result.right.sizes) == sizes
    assert "knock_out" in [figure.name for figure in collect(run)]
    # Its statement about the last layer is true: without the state at r2 there is no answer.
    last = result.isel(step=-1).sel(layer=2, change="mean").right
    np.testing.assert_array_equal(last.sel(pos="e1"), last.sel(pos="r1"))


@pytest.mark.slow
def test_the_instrument_of_your_own_is_right_on_planted_models(tmp_path):
    """It is right on a model that composes, and on one that only seems to compose."""
    (tmp_path / "knock_out.py").write_text(python_of("how-to/instrument.md"), encoding="utf-8")
    where = f"{tmp_path}/knock_out.py:KnockOut"
    for known in map(planted_subject.known, ("composer", "prefix_memoriser")):
        told = measure(find_instrument(where), known.subject, progress=False)
        claims = find_instrument(where).claims(told.isel(step=0))
        assert Claim("carried", "r2", 3, "r2") in claims
        assert judge(claims, known.mechanism) == "right"


def test_every_instrument_is_on_the_page_of_instruments():
    page = Path("docs/concepts/instruments.md").read_text(encoding="utf-8")
    firsts = " ".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    starred = dict(re.findall(r"`(\w+)`(\\?\*?)", firsts))
    assert starred.keys() == INSTRUMENTS.keys()
    for name, star in starred.items():
        assert bool(star) != find_instrument(name).default, name


def test_every_configuration_is_in_the_table_of_worlds():
    page = Path("docs/concepts/worlds.md").read_text(encoding="utf-8")
    table = page.split("\n## Worlds\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))))
    assert named - {"configuration"} == {path.stem for path in Path("configs").glob("*.py")}


@pytest.mark.slow
def test_the_example_of_graphs_runs():
    """The blocks are indented, and belong to one program."""
    text = Path("docs", "how-to/attribution-graphs.md").read_text(encoding="utf-8")
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    found: dict = {"run": Run(shared.finished())}
    exec(
        compile(
            f"{code}\nscores = graph_scores(normalized, flow, kinds.weights, "
            "kinds.error, kinds.token)",
            "attribution-graphs.md",
            "exec",
        ),
        found,
    )
    assert 0 < float(found["scores"].replacement) <= 1
