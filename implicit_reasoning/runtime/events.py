"""Writing of TensorBoard's event files with TensorBoard's own protocol buffers, not TensorFlow's.

The calling thread writes the file, so the caller gets an error at once if the disk is full. A
worker thread would die silently in this case, and its queue would fill up and block the caller.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

# TensorBoard's data type of a hyperparameter, and the field for its value, by Python type.
_KINDS: dict[type, tuple[Any, str]] = {
    bool: (api_pb2.DATA_TYPE_BOOL, "bool_value"),
    int: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    float: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    str: (api_pb2.DATA_TYPE_STRING, "string_value"),
}


class EventFile:
    """A TensorBoard event file. When `write` returns, TensorBoard can read the data."""

    def __init__(self, path: Path, begun: float) -> None:
        """Create the file and its folder.

        Args:
          path: the file.
          begun: start of the run in seconds since 1970, by which TensorBoard sorts runs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2", wall_time=begun))

    def write(self, summary: Summary, *, step: int = 0, when: float | None = None) -> None:
        """Write a summary.

        Args:
          summary: the summary.
          step: the step of the values in the summary.
          when: the time of these values in seconds since 1970; by default now.
        """
        wall_time = time.time() if when is None else when
        self._write(Event(summary=summary, step=step, wall_time=wall_time))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def scalars(values: Mapping[str, float]) -> Summary:
    """Return a summary with one point per curve. The keys of `values` are tags of curves."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()])


def text(tag: str, markdown: str) -> Summary:
    """Return a summary with a page of text."""
    return text_pb(tag, markdown)


def charts(title: str, curves: Mapping[str, Sequence[str]]) -> Summary:
    """Return a summary with charts. A chart shows several curves.

    Args:
      title: title of the group of charts (custom scalars).
      curves: dict from the name of a chart to the tags of its curves.
    """
    category = layout_pb2.Category(
        title=title,
        chart=[
            # TensorBoard interprets a tag as a regular expression and searches for it within names.
            layout_pb2.Chart(title=name, multiline={"tag": [f"^{re.escape(tag)}$" for tag in tags]})
            for name, tags in curves.items()
        ],
    )
    layout = layout_pb2.Layout(category=[category]).SerializeToString()
    metadata = custom_scalar.create_summary_metadata()
    tensor = make_tensor_proto(layout, dtype=np.object_)
    tag = custom_scalar.CONFIG_SUMMARY_TAG
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def hyperparameters(values: Mapping[str, Any], metrics: Sequence[str], begun: float) -> Summary:
    """Return a summary with one row for TensorBoard's table of hyperparameters.

    The summary has no end time, because a resumed run would continue past the end time.

    Args:
      values: the hyperparameters. Values other than numbers, bools and strings are shown as `str`.
      metrics: tags of the metrics to show in the row.
      begun: start of the run in seconds since 1970.
    """
    experiment = api_pb2.Experiment(
        metric_infos=[api_pb2.MetricInfo(name={"tag": tag}) for tag in metrics],
        time_created_secs=begun,
    )
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=begun)
    for name, value in values.items():
        kind, field = _KINDS.get(type(value), _KINDS[str])
        experiment.hparam_infos.add(name=name, type=kind)
        setattr(session.hparams[name], field, value if type(value) in _KINDS else str(value))
    return Summary(
        value=[
            _plugin_data(hparams.EXPERIMENT_TAG, experiment=experiment),
            _plugin_data(hparams.SESSION_START_INFO_TAG, session_start_info=session),
        ]
    )


def _plugin_data(tag: str, **content: Any) -> Summary.Value:
    data = plugin_data_pb2.HParamsPluginData(**content)
    metadata = hparams.create_summary_metadata(data)
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams.NULL_TENSOR)


def image(tag: str, png: bytes) -> Summary:
    """Return a summary with a PNG image."""
    # Bytes 16 to 24 of a PNG file are the width and the height.
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    content = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])
