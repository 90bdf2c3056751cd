"""Worlds, the chains in them, and the datasets made of both. Numpy only.

    world.py      facts and their roles
    chains.py     facts in a row: all multi-hop chains of a world
    dataset.py    rows to train and test on, and the truth about each
    clusters.py   which rows repeat each other: the unit of intervals
    spelling.py   from chains to the tokens of rows
    tasks/        from a configuration to a dataset; the table of tasks
    shortcuts.py  what answers test chains without composing
    exchange.py   GrokkedTransformer's JSON folders (exchange_text.py: their syntax)

A task of your own is a function from its settings to a `Dataset`: the README writes one.
"""

from implicit_reasoning.worlds.chains import Chains, enumerate_chains, exposure, patterns
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows, prefix_keys
from implicit_reasoning.worlds.exchange import read_grokked, write_grokked
from implicit_reasoning.worlds.shortcuts import coverage, distinct_states, shortcuts
from implicit_reasoning.worlds.spelling import (
    Spelling,
    position_names,
    rows_from_chains,
    vocabulary,
)
from implicit_reasoning.worlds.tasks import TASKS, build, find_task
from implicit_reasoning.worlds.world import ROLES, World, make_world, stream, world_from_table

__all__ = [
    "ROLES",
    "TASKS",
    "Chains",
    "Dataset",
    "Rows",
    "Spelling",
    "World",
    "assemble",
    "build",
    "coverage",
    "distinct_states",
    "enumerate_chains",
    "exposure",
    "find_task",
    "make_rows",
    "make_world",
    "patterns",
    "position_names",
    "prefix_keys",
    "read_grokked",
    "rows_from_chains",
    "shortcuts",
    "stream",
    "vocabulary",
    "world_from_table",
    "write_grokked",
]
