"""The configuration of a run: defaults, completion of old configurations, reading and writing."""

from __future__ import annotations

import difflib
from pathlib import Path

from ml_collections import ConfigDict

from implicit_reasoning.config import complete, from_json, make_config, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import FORMAT_VERSION, check_format, read_json, write_json
from implicit_reasoning.runs.fields import schema, task_schema
from implicit_reasoning.worlds.tasks import fields as task_fields

CONFIG_FORMAT = 1
"""The version of the format of `config.json`.

A new field does not increase the version; see `completed`.
"""


def default_config(task: str = "composition") -> ConfigDict:
    """Return a new, unlocked configuration with the default values for a built-in task.

    Raises:
      InputError: no built-in task has this name.
    """
    if task not in task_fields.FIELDS:
        near = difflib.get_close_matches(task, task_fields.FIELDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(task_fields.FIELDS)
        raise InputError(
            f"there are no defaults for task {task!r}{hint} (available tasks: {known})"
        )
    return make_config(task_schema(task))


def completed(config: ConfigDict) -> ConfigDict:
    """Return a locked copy of a configuration, with missing fields filled in.

    A missing field gets the value `Field.before`, which reproduces the behavior from before the
    field existed. This value may differ from the default of a new configuration.
    """
    return complete(config, schema(config))


def read_config(path: Path) -> ConfigDict:
    """Read a configuration that `write_config` wrote, and fill in missing fields by `completed`.

    Raises:
      InputError: the file is missing or damaged, or its format version is too new.
    """
    kept = read_json(path)
    if isinstance(kept, dict):
        check_format(path, kept.pop(FORMAT_VERSION, 1), CONFIG_FORMAT)
    return completed(from_json(kept))


def write_config(path: Path, config: ConfigDict) -> None:
    """Write a configuration as JSON, atomically."""
    write_json(path, {FORMAT_VERSION: CONFIG_FORMAT, **to_json(config)})
