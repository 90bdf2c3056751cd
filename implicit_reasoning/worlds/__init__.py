"""Worlds of facts, multi-hop chains, and the datasets made from them; requires only NumPy.

    world.py      facts and their roles
    chains.py     chains of facts; lists all multi-hop chains of a world
    dataset.py    rows for training and testing, with the truth about each row
    clusters.py   clusters of dependent rows, for confidence intervals
    spelling.py   conversion of chains to tokens
    tasks/        functions that build a dataset from a configuration
    shortcuts.py  baseline rules that answer test chains without composition
    votes.py      votes of training rows, which the shortcuts count
    oracle.py     upper bound for rules that group prefixes by bridge
    evidence.py   number of training chains that support the bridge of a chain
    exchange.py   JSON folders of GrokkedTransformer (exchange_text.py: their syntax)
    summary.py    text summary of a dataset

A user-defined task is a function that takes its settings and returns a `Dataset`. The README has an
example.
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
