"""Rows are written exactly, and after resuming nothing of the lost steps remains."""

import json
import math
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from implicit_reasoning.config import flatten, to_json
from implicit_reasoning.runs import Layout
from implicit_reasoning.runtime.writers import MetricsFile, TensorBoard, read_metrics
from implicit_reasoning.training import record
from tests.training.tiny import tiny

SPLITS = ["train_ii", "test_ii", "test_oo"]


def row(step):
    """Return numbers that are difficult to print; they must be read back exactly."""
    return {
        "step": step,
        "loss": 1 / (3 + step),
        "param_norm": 1e-7 * (step + 1),
        "accuracy/train_ii": step / 50,
        "accuracy/test_oo": 0.1 + 0.2,
        "time": 1_700_000_000.123 + step,
        "steps_per_second": 12.5,
    }


ROWS = [row(step) for step in (0, 10, 20, 30)]


@pytest.fixture
def metrics(tmp_path):
    """Return a complete file of four rows."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resumed_at=-1)
    for each in ROWS:
        file.write(each)
    file.close()
    return path


def test_rows_come_back_as_they_were(metrics):
    assert read_metrics(metrics) == ROWS


def test_every_row_is_on_disk_when_write_returns(tmp_path, monkeypatch):
    path, synced = tmp_path / "metrics.jsonl", []
    file = MetricsFile(path, resumed_at=-1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_text()))
    for n, each in enumerate(ROWS, start=1):
        file.write(each)
        assert read_metrics(path) == ROWS[:n] == file.rows
        assert synced[-1:] == [path.read_text()]  # the machine may crash, not only the process
    file.close()


@pytest.mark.parametrize("cut", ["", '{"step": 40, "loss": 0.', json.dumps(row(40))])
def test_resuming_drops_what_comes_after_and_leaves_the_rest_byte_for_byte(metrics, cut):
    lines = metrics.read_bytes().splitlines(keepends=True)
    with metrics.open("a") as file:
        file.write(cut)  # after a crash even a complete last row has no line end
    again = MetricsFile(metrics, resumed_at=20)
    assert metrics.read_bytes() == b"".join(lines[:3]) and again.rows == ROWS[:3]
    again.write(ROWS[3])
    again.close()
    assert metrics.read_bytes() == b"".join(lines)


def test_a_run_that_begins_anew_has_no_rows(metrics):
    MetricsFile(metrics, resumed_at=-1).close()
    assert metrics.read_bytes() == b""


@pytest.fixture
def files(tmp_path):
    return Layout(tmp_path)


def events_of(files, config, rows=()):
    """Like `record.open_tensorboard`, with other splits."""
    return TensorBoard(
        files.tensorboard,
        config=to_json(config),
        hyperparameters=record._hyperparameters(files, config),
        splits=SPLITS,
        rows=rows,
    )


def open_events(files, rows=()):
    return events_of(files, tiny(), rows)


def read(files):
    """Return TensorBoard's own reader; it merges all files, as its pages do."""
    return EventAccumulator(str(files.tensorboard), size_guidance={"scalars": 0}).Reload()


def assert_shows(reader, rows):
    """Check that the values of rows and the best values so far occur once, at their steps."""
    wanted, best = {}, {}
    for each in rows:
        for tag in each.keys() - {"step", "time"}:
            wanted.setdefault(tag, []).append((each["step"], each["time"], each[tag]))
            if tag.startswith("accuracy/"):
                best[tag] = max(best.get(tag, 0.0), each[tag])
                reached = (each["step"], each["time"], best[tag])
                wanted.setdefault(f"best_{tag}", []).append(reached)
    assert set(reader.Tags()["scalars"]) == wanted.keys()
    for tag, events in wanted.items():
        shown = [(event.step, event.wall_time) for event in reader.Scalars(tag)]
        assert shown == [(step, time) for step, time, _ in events], tag
        values = [event.value for event in reader.Scalars(tag)]
        assert values == pytest.approx([value for *_, value in events], rel=1e-6)  # float32


def test_scalars_are_the_rows(files):
    board = open_events(files, ROWS[:1])
    for each in ROWS[1:]:
        board.write(each)
    board.close()
    assert_shows(read(files), ROWS)


def test_resuming_leaves_neither_later_events_nor_two_of_one(files):
    board = open_events(files)
    for each in ROWS:
        board.write(each)
    board.close()
    # This file is opened at once and has the same name, because TensorBoard's names have a
    # resolution of a second.
    open_events(files, ROWS[:2]).close()
    assert_shows(read(files), ROWS[:2])
    # A later file has another name.
    (events,) = files.tensorboard.iterdir()
    events.rename(files.tensorboard / "events.out.tfevents.1600000000.elsewhere")
    other = [{**each, "loss": 7.0} for each in ROWS[2:]]
    board = open_events(files, ROWS[:2])
    for each in other:
        board.write(each)
    board.close()
    assert_shows(read(files), ROWS[:2] + other)


def test_a_number_that_is_nan_does_not_stop_the_writing(files):
    board = open_events(files)
    board.write({"step": 0, "time": 1.0, "accuracy_low95/test_oi": math.nan})
    board.close()
    (event,) = read(files).Scalars("accuracy_low95/test_oi")
    assert math.isnan(event.value)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    files = Layout(tmp_path_factory.mktemp("board"))
    open_events(files, ROWS).close()
    return read(files)


def test_one_chart_has_all_splits(reader):
    (event,) = reader.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    for quantity in ("accuracy", "loss", "reciprocal_rank"):
        # The tags are anchored, because TensorBoard reads them as regular expressions.
        assert charts[quantity] == [f"^{quantity}/{split}$" for split in SPLITS]
    assert len(charts) == 3


def plugin_data(reader, tag):
    content = reader.summary_metadata[f"_hparams_/{tag}"].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_what_makes_an_experiment_is_a_hyperparameter(reader):
    session = plugin_data(reader, "session_start_info").session_start_info
    routine = {"checkpoints", "distributed", "evaluation", "log_every", "mesh", "profile"}
    routine |= {"resume_every", "writers"}
    fields = {key for key in flatten(tiny()) if key.split(".")[0] not in routine}
    assert set(session.hparams) == fields and len(fields) > 35
    assert session.hparams["optimizer.learning_rate"].number_value == 1e-3
    assert session.hparams["model.d_model"].number_value == 8
    assert session.hparams["order"].string_value == "replacement"
    assert session.hparams["model.tied"].bool_value is False
    experiment = plugin_data(reader, "experiment").experiment
    assert {info.name for info in experiment.hparam_infos} == fields
    shown = {info.name.tag for info in experiment.metric_infos}
    assert shown == {
        f"{kind}/{split}" for split in SPLITS for kind in ("accuracy", "best_accuracy")
    }


def test_fields_that_are_none_or_tuples_are_written_in_words(files):
    config = tiny()
    with config.unlocked():
        config.task.nothing, config.task.some = None, (1, 2)
    events_of(files, config).close()
    session = plugin_data(read(files), "session_start_info").session_start_info
    assert session.hparams["task.nothing"].string_value == "None"
    assert session.hparams["task.some"].string_value == "(1, 2)"


def test_the_configuration_is_there_as_text(reader):
    (event,) = reader.Tensors("config")
    text = event.tensor_proto.string_val[0].decode()
    begin, end = "```json\n", "\n```"
    assert text.startswith(begin) and text.endswith(end)
    shown = json.loads(text.removeprefix(begin).removesuffix(end))
    assert shown == json.loads(tiny().to_json())
