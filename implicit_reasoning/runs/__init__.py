"""Run directories: their files, configurations and checkpoints, and `Run`, which opens a directory.

fields.py       all fields of a configuration
config.py       configurations: defaults, missing fields, reading and writing
layout.py       paths of the files
checkpoints.py  checkpoints: pytrees with step numbers, written atomically
stores.py       stores: objects from which a run reads parameters
stacked.py      checkpoints of a trial that was trained together with other trials
starts.py       reading the log of a run's starts
arrays.py       reading and writing labeled arrays; fingerprints
results.py      access to saved results by current or old names of instruments
run.py          `Run`
edited.py       run directories of edited models
summary.py      the HTML that shows a run in a notebook
"""

from implicit_reasoning.runs.arrays import fingerprint, load_arrays, save_arrays
from implicit_reasoning.runs.checkpoints import Checkpoints, DamagedCheckpoint, check_path
from implicit_reasoning.runs.config import completed, default_config, read_config, write_config
from implicit_reasoning.runs.edited import check_new, edited_from, save_edited
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
    "check_new",
    "check_path",
    "completed",
    "current_instrument",
    "default_config",
    "edited_from",
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
    "save_edited",
    "write_config",
]
