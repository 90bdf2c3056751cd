"""Tasks: functions from a configuration to a dataset, found by name or by import path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains, enumerate_chains, patterns
from implicit_reasoning.worlds.dataset import Dataset, assemble, rows_from_chains, vocabulary
from implicit_reasoning.worlds.world import Stream, check_range, make_world, stream


def build(task: Any) -> Dataset:
    """Build the dataset that `task.name` names, with the settings in `task`.

    Args:
      task: anything with attributes, such as an ml_collections.ConfigDict. `name` is a key of
        `TASKS`, or `package.module:function`, or `/path/to/file.py:function`; the function gets
        `task` whole, and returns a `Dataset`.

    Raises:
      InputError: the name is unknown, its module or function is missing, or a setting is wrong.
    """
    dataset = find_task(task.name)(task)
    if not isinstance(dataset, Dataset):
        raise InputError(f"task {task.name!r} returned {type(dataset).__name__}, not a Dataset")
    return dataset


def composition(task: Any) -> Dataset:
    """Multi-hop composition: learn `(e1, r1, r2) -> e3` from single facts and examples of chains.

    Trained on: all facts, and `round(phi * n_id_facts)` chains of `I` facts. Tested on: `I` chains
    held out, and chains with `O` facts, by pattern. All chains are shuffled once by the world's
    seed, and every split is cut from that one order: `train_ii` from its front, so that a smaller
    phi is a prefix of a larger one; `test_ii` from its back, so that it is the same for all phi.

    Args:
      task: with attributes world_seed, n_entities, n_relations, out_degree, ood_fraction (see
        `make_world`); hops, at least 2; phi, training chains per `I` fact; holdout, the share of
        all-`I` chains kept from training; probes, the most rows of a split to evaluate on;
        mixed_chains, False to leave out the patterns that mix `I` and `O`, as Wang et al. do;
        end_token, True to supervise `</a>` too.

    Raises:
      InputError: a setting is out of bounds, or there are fewer chains than phi asks for.

    Source: Wang et al. 2024, section 3.1; Ye et al. 2025 (mixed patterns). Ye's notebook takes phi
    for a share of all chains and so trains on every one; here it is the ratio that they report.
    """
    check_range("hops", task.hops, 2)
    check_range("holdout", task.holdout, 0, 1)
    check_range("phi", task.phi, 0)
    check_range("probes", task.probes, 1)
    seed, all_inside = task.world_seed, "i" * task.hops
    world = make_world(task.n_entities, task.n_relations, task.out_degree, task.ood_fraction, seed)
    facts = enumerate_chains(world, 1).shuffled(stream(seed, Stream.FACT_ORDER))
    chains = enumerate_chains(world, task.hops).shuffled(stream(seed, Stream.CHAIN_ORDER))

    id_triples, inside = facts.where("i"), chains.where(all_inside)
    n_held_out = round(task.holdout * len(inside))
    n_train = _n_train_chains(task.phi, len(id_triples), len(inside) - n_held_out)
    trained = {
        "id_triples": id_triples,
        "ood_triples": facts.where("o"),
        f"train_{all_inside}": inside[:n_train],
    }
    tested = {f"test_{all_inside}": inside[::-1][: min(n_held_out, task.probes)]}
    for pattern in patterns(task.hops):
        mixed = len(set(pattern)) > 1
        if pattern != all_inside and (task.mixed_chains or not mixed):
            tested[f"test_{pattern}"] = chains.where(pattern)[: task.probes]

    def rows(splits: dict[str, Chains]) -> dict:
        return {name: rows_from_chains(part, task.end_token) for name, part in splits.items()}

    vocab = vocabulary(world, task.end_token)
    return assemble(rows(trained), rows(tested), vocab=vocab, probes=task.probes, world=world)


TASKS: dict[str, Callable[[Any], Dataset]] = {"composition": composition}
"""The tasks that come with the lab; others are found by import path."""


def find_task(name: str) -> Callable[[Any], Dataset]:
    """The function behind a task's name; see `build`."""
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" - did you mean {close[0]!r}?" if close else ""
        known = ", ".join(TASKS)
        raise InputError(
            f"unknown task {name!r}{hint} Known: {known}; or package.module:function"
            " or /path/to/file.py:function for one of your own"
        )
    source, _, function = name.rpartition(":")
    module = imports.load(source, "task")
    if not callable(getattr(module, function, None)):
        raise InputError(f"task {name!r}: {source} has no function {function!r}")
    return getattr(module, function)


def _n_train_chains(phi: int | float, n_id_facts: int, available: int) -> int:
    # phi is a ratio of counts: phi * n_id_facts chains, not a share of the chains there are.
    wanted = round(phi * n_id_facts)
    if wanted > available:
        largest = math.floor(1000 * available / n_id_facts) / 1000
        raise InputError(
            f"phi = {phi} asks for {wanted} training chains ({n_id_facts} I facts x phi), but after"
            f" the holdout there are {available}: phi can be at most {largest}"
        )
    return wanted
