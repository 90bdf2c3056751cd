"""An opened sweep: its trials along one axis, its page, and its table in TensorBoard."""

import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from implicit_reasoning.__main__ import main
from implicit_reasoning.errors import InputError
from implicit_reasoning.report import write_sweep_report
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import Runs, define, make_sweep, run_sweep
from implicit_reasoning.sweeps.directory import FAILED, Journal
from implicit_reasoning.sweeps.figures import figures, median_time
from tests import shared
from tests.training.tiny import tiny

FILE = shared.SWEEP


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("few")
    run_sweep(define(FILE, "few"), workdir)
    return Runs(workdir)


def test_trials_are_runs_by_name_and_number(runs):
    assert len(runs) == 3 and len(list(runs)) == 3
    assert isinstance(runs[0], Run) and runs[-1].config.task.phi == 1.5
    assert runs["weight_decay=0.1,phi=1.2,seed=1"].config.task.phi == 1.2
    assert [run.config.seed for run in runs[:2]] == [0, 1]
    with pytest.raises(InputError, match=r"trial 'x' of .* has not started"):
        runs["x"]
    few = Runs(runs.files.workdir, chosen=lambda overrides: overrides["seed"] == 0)
    assert len(few) == 2 and {run.config.seed for run in few} == {0}


def test_metrics_have_the_axis_of_trials_and_what_each_sets(runs):
    accuracy = runs.metric("accuracy/test_ii")
    assert accuracy.dims == ("trial", "step") and accuracy.step.values[-1] == 60
    for name in runs.names:
        last = runs[name].metrics[-1]["accuracy/test_ii"]
        assert float(accuracy.sel(trial=name, step=60)) == last
    decayed = accuracy.isel(trial=(accuracy["optimizer.weight_decay"] == 1.0).values)
    assert decayed.sizes["trial"] == 1
    with pytest.raises(InputError, match=r"no trial of .* has a metric 'loos'"):
        runs.metric("loos")


@pytest.mark.slow
def test_an_instrument_is_mapped_over_trials_and_checkpoints(runs):
    both = runs.analyze("lens", steps=[0, 60], progress=False)
    assert both.sizes["trial"] == 3 and list(both.step.values) == [0, 60]
    alone = runs[1].result("lens").sel(step=[0, 60])
    name = next(iter(alone.data_vars))
    np.testing.assert_array_equal(both[name].isel(trial=1).values, alone[name].values)
    assert both["task.phi"].values.tolist() == [1.2, 1.2, 1.5]


def test_runs_of_one_point_differ_in_seeds_only(runs):
    one, other = "weight_decay 0.1, phi 1.2", "weight_decay 1.0, phi 1.5"
    assert list(runs.points.values()) == [one, one, other]


def test_phases_not_reached_are_nan(runs):
    phases = runs.phases()
    assert np.isnan(phases["in_distribution"].values).all() and phases.sizes["trial"] == 3


@pytest.mark.parametrize(
    ("times", "median"),
    [
        ([1, 2, 3], 2),
        ([1, 2, np.nan], 2),
        ([1, np.nan, np.nan], np.nan),
        ([], np.nan),
        ([1, 3, 5, np.nan], 4),
    ],
)
def test_what_was_not_reached_is_later_than_all_that_was(times, median):
    np.testing.assert_equal(median_time(np.array(times, float)), float(median))


def test_the_page_has_every_trial_and_figure(runs):
    page = write_sweep_report(runs).read_text()
    assert [figure.name for figure in figures(runs)] == [
        *("accuracy_test_ii", "accuracy_train_ii", "times", "grid")
    ]
    for name in runs.names:
        assert name in page
    assert page.count("<tr>") == 1 + 3
    assert not re.findall(r'(?:src|href)="(?!data:|figures/|\.\./trials/|#)', page)  # a single file
    links = set(re.findall(r'href="(figures/[^"]+)"', page))
    assert len(links) == 4 * 3
    assert all((runs.files.report.parent / link).exists() for link in links)


def test_the_page_names_what_failed(tmp_path, blank_figures):
    shared.swept_copy(tmp_path, 20)
    journal = Journal(Runs(tmp_path).files)
    journal.note("seed=1", FAILED, step=20, why="<script>alert(1)</script>")
    journal.close()
    assert main(["report", f"--workdir={tmp_path}"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Trials that failed, and why" in page and "&lt;script&gt;alert(1)" in page


def test_before_anything_has_begun_there_is_a_page(tmp_path):
    from implicit_reasoning.sweeps.directory import SweepLayout, begin

    begin(SweepLayout(tmp_path), define(FILE, "seeds"))
    runs = Runs(tmp_path)
    assert len(runs) == 0 and "0 of 3 trials started" in repr(runs)
    page = write_sweep_report(runs).read_text()
    assert "No trial has been evaluated yet" in page and page.count("waiting") >= 3
    with pytest.raises(InputError, match=r"no trial of .* has started"):
        runs.analyze("lens")


def test_tensorboard_has_what_was_chosen_and_the_final_and_best_outcome(runs):
    run = runs["weight_decay=0.1,phi=1.2,seed=1"]
    reader = events_of(run)
    assert chosen(reader) == {"optimizer.weight_decay": 0.1, "task.phi": 1.2, "seed": 1}
    experiment = content(reader, "experiment").experiment
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"accuracy/test_ii", "best_accuracy/test_ii"} <= tags
    final, best = (
        [event.value for event in reader.Scalars(tag)]
        for tag in ("accuracy/test_ii", "best_accuracy/test_ii")
    )
    np.testing.assert_allclose(best, np.maximum.accumulate(final))


def events_of(run):
    reader = EventAccumulator(str(run.files.tensorboard), size_guidance={"scalars": 0})
    reader.Reload()
    return reader


def content(reader, tag):
    metadata = reader.summary_metadata[f"_hparams_/{tag}"]
    return plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)


def chosen(reader):
    session = content(reader, "session_start_info").session_start_info
    return {key: value.number_value for key, value in session.hparams.items()}


@pytest.mark.slow
def test_where_trials_set_different_fields_and_one_is_lost(tmp_path, capsys):
    """The table has all fields of all trials; instruments skip trials that they cannot measure."""
    lost = {"optimizer.learning_rate": 1e30, "optimizer.weight_decay": 7.0}
    run_sweep(make_sweep(tiny(), [{"seed": 3}, lost, {"seed": 4}]), tmp_path)
    runs = Runs(tmp_path)
    rows = [chosen(events_of(run)) for run in runs]
    assert [set(row) for row in rows] == [set(runs.sweep.keys)] * 3
    assert [row["seed"] for row in rows] == [3, 0, 4]
    assert [row["optimizer.weight_decay"] for row in rows] == [0.5, 7.0, 0.5]
    found = runs.analyze("lens", steps=[0, 60], progress=False)
    assert found.trial.values.tolist() == [runs.names[0], runs.names[2]]
    assert found["seed"].values.tolist() == [3, 4]
    assert "trials without checkpoints of all steps" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"no trial of .* has checkpoints of all steps"):
        runs.analyze("lens", steps=[7], progress=False)


@pytest.mark.slow
def test_the_command_analyzes_all_trials(runs, capsys):
    words = ["analyze", f"--workdir={runs.files.workdir}", "--instruments=lens", "--steps=last"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("lens.nc") == 3
