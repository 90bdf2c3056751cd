"""TensorBoard's event files, with TensorBoard's own protocols and no TensorFlow.

Written by the thread that calls, not by a worker: on a full disk the caller hears of it at once,
where a queue's worker would die unheard, and its queue fill up until the caller waits for ever.
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

# Of a hyperparameter: TensorBoard's type and the field of its value.
_KINDS: dict[type, tuple[Any, str]] = {
    bool: (api_pb2.DATA_TYPE_BOOL, "bool_value"),
    int: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    float: (api_pb2.DATA_TYPE_FLOAT64, "number_value"),
    str: (api_pb2.DATA_TYPE_STRING, "string_value"),
}


class EventFile:
    """One event file; what is written is on disk, for TensorBoard to see, when `write` returns."""

    def __init__(self, path: Path, begun: float) -> None:
        """Make the file and its folder; TensorBoard sorts runs by `begun`, seconds since 1970."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2", wall_time=begun))

    def write(self, summary: Summary, *, step: int = 0, when: float | None = None) -> None:
        """Add everything of a summary at a step and a time (now)."""
        wall_time = time.time() if when is None else when
        self._write(Event(summary=summary, step=step, wall_time=wall_time))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def scalars(values: Mapping[str, float]) -> Summary:
    """A point of each of several curves."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()])


def text(tag: str, markdown: str) -> Summary:
    """A page of text."""
    return text_pb(tag, markdown)


def charts(title: str, curves: Mapping[str, Sequence[str]]) -> Summary:
    """Charts with several curves each: name to tags, under one title of the custom scalars."""
    category = layout_pb2.Category(
        title=title,
        chart=[
            # The page takes tags for regular expressions, and finds them anywhere in a name.
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
    """A row of the table of runs: what was chosen, and the tags of what came out.

    What is no number, truth value or text is shown as `str` has it. The session has no end, so that
    a run which is resumed need not take one back.
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
    """A picture; a PNG has its width and height at bytes 16 to 24."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    content = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])
