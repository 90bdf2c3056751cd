"""Tasks: functions that build a dataset from settings.

A task is found by its name or by its import path (see `implicit_reasoning.imports`).

    composition.py        multi-hop chains of facts, and variants that serve as controls
    cut.py                the training and test splits of composition
    rows.py               chains as rows of tokens
    identity.py           optional rows that lead from an entity to itself
    ladder.py             facts that occur in two training chains, grouped by evidence
    cue_conflict.py       facts whose triple and whose training chains contradict each other
    comparison.py         comparison of the values of two entities
    pairs.py              pairs of entities for comparison.py
    transitivity.py       comparisons that can be inferred from other comparisons
    modular_addition.py   sums modulo p
    in_context.py         repeated random sequences
    successor.py          the next token of an ordered alphabet
    greater_than.py       years that are greater than a start year
    indirect_object.py    the one of two names that is not repeated
    held_out.py           contexts that are held out
    settings.py           checks that a task reads all its settings
    fields.py             the settings of every task
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.tasks.comparison import comparison, complex
from implicit_reasoning.worlds.tasks.composition import (
    composition,
    held_out_id_triples,
    scrambled,
    second_hop_restricted,
    shadow,
    without_id_triples,
)
from implicit_reasoning.worlds.tasks.cue_conflict import cue_conflict
from implicit_reasoning.worlds.tasks.greater_than import greater_than
from implicit_reasoning.worlds.tasks.in_context import in_context
from implicit_reasoning.worlds.tasks.indirect_object import indirect_object
from implicit_reasoning.worlds.tasks.ladder import ladder
from implicit_reasoning.worlds.tasks.modular_addition import modular_addition
from implicit_reasoning.worlds.tasks.settings import MissingSetting, check_all_read, track_reads
from implicit_reasoning.worlds.tasks.successor import successor

TASKS: dict[str, Callable[[Any], Dataset]] = {
    "composition": composition,
    "without_id_triples": without_id_triples,
    "held_out_id_triples": held_out_id_triples,
    "second_hop_restricted": second_hop_restricted,
    "shadow": shadow,
    "scrambled": scrambled,
    "ladder": ladder,
    "cue_conflict": cue_conflict,
    "comparison": comparison,
    "complex": complex,
    "modular_addition": modular_addition,
    "in_context": in_context,
    "successor": successor,
    "greater_than": greater_than,
    "indirect_object": indirect_object,
}
"""Tasks of this package. A user's own task is specified by its import path."""


def build(task: Any) -> Dataset:
    """Build the dataset of the task `task.name` with the settings in `task`.

    Args:
      task: any object with attributes, such as an ml_collections.ConfigDict. `task.name` is a key
        of `TASKS`, `package.module:function` or `/path/to/file.py:function`. The function receives
        `task` and returns a `Dataset`.

    Raises:
      InputError: the name is unknown, its module or function does not exist, or a setting is
        missing, invalid, or not read by the task.
    """
    function, settings = find_task(task.name), track_reads(task)
    try:
        dataset = function(settings)
    except MissingSetting as error:
        raise InputError(f"the task {task.name!r} cannot be built: {error}") from None
    check_all_read(settings, task.name)
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"the task {task.name!r} must return a Dataset; it returned a value of type "
            f"{type(dataset).__name__}"
        )
    return dataset


def find_task(name: str) -> Callable[[Any], Dataset]:
    """Return the function that builds the dataset of a task.

    Args:
      name: a key of `TASKS`, or an import path (see `build`).

    Raises:
      InputError: no such task exists.
    """
    found: Callable[[Any], Dataset] = imports.find(name, TASKS, "task")
    return found
