"""One run directory: where its files are, its checkpoints, and opening it all as a `Run`.

fields.py       every field of a configuration
config.py       the configuration: new, completed, kept
layout.py       where the files are
checkpoints.py  pytrees under step numbers, written whole
stores.py       where parameters are read from
stacked.py      a trial's rows of the checkpoints of its populations
starts.py       the starts of a run, read
arrays.py       labelled arrays, in and out; fingerprints
results.py      results of instruments by name, also by the names that they had
run.py          `Run`
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
