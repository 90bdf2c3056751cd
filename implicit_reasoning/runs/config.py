"""The configuration of a run: new, completed, and as `config.json` holds it."""

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
"""Of `config.json`. A new field does not raise it, see `completed`."""


def default_config(task: str = "composition") -> ConfigDict:
    """A new configuration of a task of the lab: every field, with its default. It is not locked.

    Raises:
      InputError: the lab has no task of that name.
    """
    if task not in task_fields.FIELDS:
        near = difflib.get_close_matches(task, task_fields.FIELDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(task_fields.FIELDS)
        raise InputError(f"there are no defaults for task {task!r}{hint} (there are: {known})")
    return make_config(task_schema(task))


def completed(config: ConfigDict) -> ConfigDict:
    """A locked copy with every field that was added after the configuration was written.

    Such a field gets the value that reproduces what was done before it existed (`Field.before`),
    which need not be the default of a new configuration.
    """
    return complete(config, schema(config))


def read_config(path: Path) -> ConfigDict:
    """The configuration that `write_config` wrote, completed.

    Raises:
      InputError: the file is missing, damaged, or of a newer format.
    """
    kept = read_json(path)
    if isinstance(kept, dict):
        check_format(path, kept.pop(FORMAT_VERSION, 1), CONFIG_FORMAT)
    return completed(from_json(kept))


def write_config(path: Path, config: ConfigDict) -> None:
    """Write a configuration as JSON, atomically."""
    write_json(path, {FORMAT_VERSION: CONFIG_FORMAT, **to_json(config)})
