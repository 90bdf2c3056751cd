"""The page of a run is complete, self-contained, escaped and reproducible."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from implicit_reasoning.__main__ import main
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.report import tables, write_report
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training.directory import begin
from implicit_reasoning.training.evaluation import Outcome
from implicit_reasoning.training.record import Record, add_intervals
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build
from implicit_reasoning.worlds.shortcuts import scored_probes, shortcut_correctness
from tests import shared
from tests.blank_figures import make_figures_blank

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return shared.finished_copy(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """Return a copy of a run that a test may change, without checkpoints, which are large."""
    skip = shutil.ignore_patterns("checkpoints", "report", "*.report")
    return Path(shutil.copytree(trained, tmp_path / "tiny", ignore=skip))


def text_only(workdir: Path) -> str:
    """Return the page without figures, which take seconds to draw."""
    return write_report(Run(workdir), providers=()).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reported(trained) -> Run:
    """Return a run with a page, whose figures are empty images."""
    run = Run(trained)
    with pytest.MonkeyPatch.context() as patch:
        make_figures_blank(patch)
        write_report(run)
    return run


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Run:
    """Return a run with a page and its figures."""
    run = Run(shared.finished_copy(tmp_path_factory.mktemp("drawn") / "tiny"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(reported) -> str:
    return reported.files.report.read_text(encoding="utf-8")


def begun(config, workdir: Path) -> Path:
    """Return a run with one evaluation of an untrained model; nothing is compiled for it."""
    dataset, files = build(config.task), Layout(workdir)
    begin(files, config, dataset)
    record = Record(Trial(config, dataset, files))
    n_probes = len(record.scoring.rows)
    record.open(-1)
    outcome = Outcome(np.full(n_probes, 3.0), np.full(n_probes, 7))
    record.write(0, {"window": {}, "param_norm": 1.0, "learning_rate": 0.0}, outcome, {})
    record.keep()
    record.close()
    return workdir


def edit_config(workdir: Path, change) -> None:
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_rows(workdir: Path, change) -> None:
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def test_it_has_every_split_with_its_numbers(page, reported):
    for split, size in reported.dataset.sizes().items():
        cells = _row_of(page, split)
        assert cells[1] == f"{size:,}"
        assert cells[3] == f"{len(reported.dataset.probes(split)):,}"
        accuracy = reported.metrics[-1][f"accuracy/{split}"]
        assert cells[4].startswith(f"{100 * accuracy:.1f}%")


def test_intervals_hold_the_accuracy_and_count_bridges(page, reported):
    dataset = reported.dataset
    probes = dataset.probes("test_ii")
    cells = _row_of(page, "test_ii")
    mean, low, high = (float(number) for number in re.findall(r"([\d.]+)%", cells[4]))
    assert low <= mean <= high
    assert int(cells[5]) == len(np.unique(dataset.truth["e2"][probes]))


def test_a_report_compiles_nothing(trained, tmp_path, blank_figures):
    """The report reads what training and instruments saved, and runs no model."""
    run = Run(shutil.copytree(trained, tmp_path / "tiny"))
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **details: compiled.append(event) if event == COMPILED else None
    )
    jax.clear_caches()  # otherwise a program that another test compiled would not be counted
    write_report(run)
    assert not compiled
    jax.jit(lambda x: x + 1)(1.0)
    assert compiled  # the listener works


def test_a_run_without_intervals_names_the_command_that_adds_them(trained, tmp_path, blank_figures):
    run = Run(shutil.copytree(trained, tmp_path / "tiny"))
    stored = run.metrics
    columns = ("accuracy_low/", "accuracy_high/", "accuracy_clusters/")
    edit_rows(
        run.files.workdir,
        lambda rows: [
            {key: value for key, value in row.items() if not key.startswith(columns)}
            for row in rows
        ],
    )
    old = run.metrics
    page = text_only(run.files.workdir)
    assert "report --workdir=DIR --intervals=true" in page
    cells, accuracy = _row_of(page, "test_ii"), stored[-1]["accuracy/test_ii"]
    assert cells[4] == f"{100 * accuracy:.1f}%" and not cells[5].isdecimal()

    main(["report", f"--workdir={run.files.workdir}", "--intervals=true"])
    assert run.metrics[-1] == stored[-1]  # training would have stored this
    assert run.metrics[:-1] == old[:-1]
    page = run.files.report.read_text("utf-8")
    assert "--intervals=true" not in page and "% to " in _row_of(page, "test_ii")[4]
    before = run.files.metrics.read_bytes()
    add_intervals(run)
    assert run.files.metrics.read_bytes() == before


def test_intervals_cannot_be_added_without_a_checkpoint(workdir):
    edit_rows(workdir, lambda rows: [{"step": row["step"], "time": 0.0} for row in rows])
    with pytest.raises(InputError, match="no step with both an evaluation and a checkpoint"):
        add_intervals(Run(workdir))


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("comparison", ["win rate", "10 of role O", "test_oo"], ["Coverage", "row completion"]),
        ("in_context", ["test_repeated", "x1"], ["shortcuts", "Facts", "Coverage", "composed"]),
    ],
)
def test_tasks_that_are_not_chains_are_told_as_they_are(tmp_path, name, there, absent):
    sizes = {"task.n_entities": 20} if name == "comparison" else {}
    config = apply_overrides(load_config(f"configs/{name}.py:pocket"), sizes)
    page = text_only(begun(config, tmp_path))
    said = html.unescape(page.split('<h2 id="config">')[0].split("</style>")[1])
    assert all(text in said for text in there)
    assert not [text for text in absent if text in said.replace("Splits and shortcuts", "")]


def test_phases_that_did_not_come_are_not_reached(page):
    assert page.count("<b>not reached</b>") == 5


def test_phases_that_came_are_told_with_their_steps(workdir):
    def grok(rows):
        for row in rows:
            if "accuracy/train_ii" in row:
                row["accuracy/train_ii"] = 1.0
                row["accuracy/test_ii"] = float(row["step"] >= 4)
        return rows

    edit_rows(workdir, grok)
    page = text_only(workdir)
    assert "<b>step 0</b>" in page
    assert "<b>step 4</b>" in page
    assert "<b>4 steps</b>" in page


def test_it_needs_no_network_and_no_script(page):
    resources = _Resources()
    resources.feed(page)
    assert not resources.scripts
    images = [value for tag, value in resources.values if tag == "img"]
    assert len(images) == 4
    assert all(value.startswith("data:image/svg+xml;base64,") for value in images)
    assert not [value for _, value in resources.values if re.match(r"[a-z]*:?//", value)]
    assert "@import" not in page
    assert "url(" not in page


def test_its_links_lead_to_files(page, reported):
    resources = _Resources()
    resources.feed(page)
    links = [value for tag, value in resources.values if tag == "a" and value[0] != "#"]
    assert "../metrics.jsonl" in links
    assert all((reported.files.report.parent / link).exists() for link in links)


@pytest.mark.slow
def test_figures_lie_beside_it_in_all_formats(drawn):
    folder = drawn.files.report.parent / "figures"
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    for name in ("accuracy", "loss", "first_correct", "optimisation"):
        for kind, start in starts.items():
            assert (folder / f"{name}.{kind}").read_bytes().startswith(start)


@pytest.mark.slow
def test_writing_it_again_changes_nothing(drawn, tmp_path):
    def contents(workdir):
        files = (path for path in (workdir / "report").rglob("*") if path.is_file())
        return {path.relative_to(workdir): path.read_bytes() for path in files}

    before = drawn.files.workdir
    again = Path(shutil.copytree(before, tmp_path / before.name))
    (again / "report" / "figures" / "of_an_older_report.png").write_bytes(b"")
    assert write_report(Run(again)) == again / "report" / "index.html"
    assert contents(again) == contents(before)
    assert len(list((again / "tensorboard").iterdir())) == 2


@pytest.mark.slow
def test_tensorboard_has_the_images_beside_the_curves(drawn):
    events = EventAccumulator(str(drawn.files.tensorboard)).Reload()
    assert "report/accuracy" in events.Tags()["images"]
    (image,) = events.Images("report/accuracy")
    assert image.step == 60
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) > (1000, 500)
    assert "accuracy/test_ii" in events.Tags()["scalars"]


def test_tensorboard_reads_the_report_before_the_curves_that_may_still_grow(reported):
    names = sorted(path.name for path in reported.files.tensorboard.iterdir())
    assert [name.endswith(".report") for name in names] == [True, False]


def test_a_run_without_tensorboard_gets_no_images_there(workdir):
    edit_config(workdir, lambda config: config["writers"].update(tensorboard=False))
    shutil.rmtree(workdir / "tensorboard")
    text_only(workdir)
    assert not (workdir / "tensorboard").exists()


def test_what_comes_from_the_configuration_is_escaped(workdir):
    nasty = "</script><img src=x onerror=alert(1)>&\"'"
    edit_config(workdir, lambda config: config["task"].update(name=nasty))
    page = text_only(workdir)
    assert "<img src=x" not in page
    assert nasty in html.unescape(page)


def test_a_shortcut_that_would_pass_for_generalising_is_told(workdir, monkeypatch):
    sentence = "does not show that the model composes facts"
    assert sentence not in text_only(workdir)
    rules = {"modal_r2": {"test_ii": 0.1}, "row_completion": {"test_ii": 0.96}}
    monkeypatch.setattr(tables, "shortcuts", lambda dataset: rules)
    page = text_only(workdir)
    assert "the shortcut row completion answers 96.0% of test_ii" in page
    assert sentence in page


def test_rows_that_no_shortcut_answers_are_counted(page, reported):
    """The sentence and the table agree with a plain count over the rules."""
    dataset = reported.dataset
    by_rule = shortcut_correctness(dataset, ("test_ii",))
    right = np.any([by_split["test_ii"] for by_split in by_rule.values()], axis=0)
    rows = scored_probes(dataset, "test_ii")
    assert 0 < (~right).sum() < len(rows)
    left = f"Of the {len(rows)} probe rows of test_ii, {(~right).sum()} are not answered correctly"
    assert left in page
    bridges = len(np.unique(dataset.truth["e2"][rows[~right]]))
    assert f"These rows have {bridges} bridges. An accuracy needs at least 20 bridges" in page
    assert "answered by no shortcut" in page
    none = tables._unanswered(dataset, "test_ii", {"test_ii": rows[:0]})
    assert none.startswith(f"Shortcuts answer all {len(rows)} probe rows of test_ii correctly, so")


def test_time_counts_only_what_led_to_the_rows(workdir):
    began = [
        {"step": 0, "time": 1000.0},
        {"step": 10, "time": 5000.0},
        {"step": 20, "time": 9000.0},
    ]
    path = workdir / "provenance.json"
    (start,) = json.loads(path.read_text())
    path.write_text(json.dumps([start | times for times in began]))
    times = {0: 1010.0, 10: 1030.0}
    edit_rows(workdir, lambda rows: [r | {"time": times.get(r["step"], 5060.0)} for r in rows])
    edit_rows(workdir, lambda rows: [r for r in rows if r["step"] in (0, 10, 20)])
    page = text_only(workdir)
    assert "in 1 min 30 s on" in page  # 30 s and 60 s; the last start had nothing to do
    assert [cell for cell in re.findall(r"<td>(\d+ s|1 min 0 s)</td>", page)] == [
        "30 s",
        "1 min 0 s",
    ]


def test_a_run_that_stopped_at_once_has_a_page(workdir, blank_figures):
    edit_rows(workdir, lambda rows: rows[:1])
    page = write_report(Run(workdir)).read_text()
    assert "0 of 60 steps" in page
    assert "not finished" in page
    assert "data:image/svg+xml" in page


def test_a_run_without_checkpoints_or_provenance_has_a_page(workdir):
    assert Run(workdir).steps == ()
    (workdir / "provenance.json").unlink()
    page = text_only(workdir)
    accuracy = Run(workdir).metrics[-1]["accuracy/test_ii"]
    assert _row_of(page, "test_ii")[4].startswith(f"{100 * accuracy:.1f}%")
    assert "Not recorded" in page


def test_a_run_without_rows_is_refused(workdir):
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl contains no rows yet"):
        write_report(Run(workdir))


def test_other_rooms_bring_figures_by_import_path(workdir, tmp_path, monkeypatch):
    (tmp_path / "my_instrument.py").write_text(
        "from implicit_reasoning.figures import Figure, new_drawing\n"
        "def figures(run):\n"
        "    return [Figure('mine', 'My figure', 'How to read it.', new_drawing()[0])]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    page = write_report(Run(workdir), ("my_instrument",)).read_text()
    assert "How to read it." in page
    assert page.count("<figure ") == 1
    assert (workdir / "report" / "figures" / "mine.svg").exists()


@pytest.mark.parametrize("path", ["implicit_reasoning.nothing", "json"])
def test_a_wrong_provider_is_named(workdir, path):
    with pytest.raises(InputError, match=path):
        write_report(Run(workdir), (path,))


def test_two_figures_of_one_name_are_refused(workdir):
    twice = ("implicit_reasoning.training.figures",) * 2
    with pytest.raises(InputError, match="more than once: accuracy"):
        write_report(Run(workdir), twice)


PAGES = """
from implicit_reasoning.figures import Page
def pages(run):
    return [
        Page("one", "First <b>", "A lead & more.", "<p id='mine'>Body.</p>", ".mine { top: 0; }"),
        Page("other", "Second", "Another lead.", "<p>More.</p>"),
    ]
"""


def test_other_rooms_bring_pages_too(workdir, tmp_path, monkeypatch):
    (tmp_path / "my_pages.py").write_text(PAGES)
    monkeypatch.syspath_prepend(tmp_path)
    folder = workdir / "report"
    folder.mkdir()
    (folder / "of_a_set_that_is_gone.html").write_text("")
    index = write_report(Run(workdir), ("my_pages",))
    assert {path.name for path in folder.glob("*.html")} == {"index.html", "one.html", "other.html"}
    one = (folder / "one.html").read_text("utf-8")
    assert "<h1>First &lt;b&gt;</h1>" in one and "A lead &amp; more." in one
    assert "<p id='mine'>Body.</p>" in one and ".mine { top: 0; }" in one
    for text, names in ((index.read_text("utf-8"), ["one", "other"]), (one, ["index", "other"])):
        resources = _Resources()
        resources.feed(text)
        linked = {value for tag, value in resources.values if tag == "a"}
        assert {f"{name}.html" for name in names} <= linked and not resources.scripts
        assert "--ink:" in text  # the page has the same style
    assert ".mine" not in index.read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("other", "one"), "names occur more than once: one"),
        (("other", "index"), "the page name 'index' is reserved for the report"),
    ],
)
def test_pages_that_would_overwrite_each_other_are_refused(
    workdir, tmp_path, monkeypatch, change, said
):
    name = f"pages_{change[1]}"  # a module name is imported only once
    (tmp_path / f"{name}.py").write_text(PAGES.replace(*change))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=said):
        write_report(Run(workdir), (name,))


class _Resources(HTMLParser):
    """Collects every src and href of a page, and its scripts."""

    def __init__(self):
        super().__init__()
        self.values: list[tuple[str, str]] = []
        self.scripts = 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.values += [(tag, value) for name, value in attributes if name in ("src", "href")]


def _row_of(page: str, split: str) -> list[str]:
    """Return the cells in the row of a split, as text."""
    row = re.search(rf"<td><code>{split}</code></td>.*?</tr>", page, re.DOTALL).group()
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td.*?</td>", row, re.DOTALL)]
