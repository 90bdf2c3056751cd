"""Run directories: their files, configurations and checkpoints, and `Run`, which opens a directory.

fields.py       every field of a configuration config.py       configurations: defaults, completion
of old ones, reading and writing layout.py       paths of the files checkpoints.py  writing and
reading pytrees under step numbers, atomically stores.py       sources of parameters at each step
stacked.py      the checkpoints of a trial that was trained in populations starts.py reading the log
of a run's starts and resumptions arrays.py       reading and writing labelled arrays; fingerprints
results.py finding the saved results of an analysis by its current or old name run.py `Run`
summary.py      the HTML that shows a run in a notebook
"""

from implicit_reasoning.runs.arrays import fingerprint, load_arrays, save_arrays
from implicit_reasoning.runs.checkpoints import Checkpoints, DamagedCheckpoint, check_path
from implicit_reasoning.runs.config import completed, default_config, read_config, write_config
from implicit_reasoning.runs.layout import Layout
from implicit_reasoning.runs.results import (
    current_instrument,
    find_result,
    load_result,
    result_names,
)
from implicit_reasoning.runs.run import Run
from implicit_reasoning.runs.stacked import begin_segment, end_segment, read_segments
from implicit_reasoning.runs.starts import read_starts
from implicit_reasoning.runs.stores import CachedStore, FolderStore, Store

__all__ = [
    "CachedStore",
    "Checkpoints",
    "DamagedCheckpoint",
    "FolderStore",
    "Layout",
    "Run",
    "Store",
    "begin_segment",
    "check_path",
    "completed",
    "current_instrument",
    "default_config",
    "end_segment",
    "find_result",
    "fingerprint",
    "load_arrays",
    "load_result",
    "read_config",
    "read_segments",
    "read_starts",
    "result_names",
    "save_arrays",
    "write_config",
]
