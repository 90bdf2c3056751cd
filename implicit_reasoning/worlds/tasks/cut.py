"""Training and test splits of composition, taken from one random order of all chains."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.chains import Chains, enumerate_chains, patterns, random_order
from implicit_reasoning.worlds.spelling import Spelling
from implicit_reasoning.worlds.world import Stream, World, check_range, make_world, stream

MAX_HOPS = 6  # the number of role patterns doubles with each hop
MAX_CHAINS = 2**28  # all chains are enumerated, which takes tens of bytes per chain


class Cut(NamedTuple):
    """The training and test splits of a composition task.

    Attributes:
      chains: all chains of the world.
      order: the indices of all chains in random order.
      trained: the training splits by name.
      tested: the test splits by name.
    """

    chains: Chains
    order: Int[np.ndarray, " chain"]
    trained: dict[str, Chains]
    tested: dict[str, Chains]

    def in_order(self, which: Bool[np.ndarray, " chain"]) -> Chains:
        """Return the selected chains in the order `order`.

        Args:
          which: bool [chain], the selected chains.
        """
        return self.chains[self.order[which[self.order]]]


class Exceptions(NamedTuple):
    """Masks of the chains that a task treats in a special way.

    An all-`I` chain consists of facts with the role `I` (used in training chains).

    Attributes:
      withheld: all-`I` chains that are neither in the training split nor in the test split of
        all-`I` chains.
      required: all-`I` chains that are trained on for every phi. phi counts these chains.
      added: further chains that are trained on. phi does not count these chains.
    """

    withheld: Bool[np.ndarray, " chain"]
    required: Bool[np.ndarray, " chain"]
    added: Bool[np.ndarray, " chain"]


def make_plain_world(task: Any) -> World:
    """Return the world that the settings describe, with facts of the roles `I` and `O`.

    Raises:
      InputError: a setting is out of bounds (see `make_world` and `Spelling.check`).
    """
    world = make_world(
        task.n_entities, task.n_relations, task.out_degree, task.ood_fraction, task.world_seed
    )
    spelling_of(task).check(world)
    return world


def spelling_of(task: Any) -> Spelling:
    """Return the token format of chains that the settings describe."""
    # A user's task that calls `composition` may lack the last setting, which was added later.
    thought = getattr(task, "chain_of_thought", False)
    return Spelling(task.order, task.names, task.end_token, thought)


def make_cut(task: Any, world: World) -> Cut:
    """Return the training and test splits of `composition` for a world.

    Args:
      task: the settings of `composition`.
      world: the world whose chains are split.
    """
    return cut_chains(task, *ordered_chains(task, world, task.hops))


def ordered_chains(task: Any, world: World, hops: int) -> tuple[Chains, Int[np.ndarray, " chain"]]:
    """Return all chains of a world, and a random order of the chains.

    Args:
      task: the settings; only `out_degree` is used.
      world: the world.
      hops: number of facts in a chain.

    Returns:
      The chains, and their indices in random order.

    Raises:
      InputError: the number of hops is out of bounds, or there are too many chains.
    """
    check_range("hops", hops, 2, MAX_HOPS)
    n_chains = world.n_facts * task.out_degree ** (hops - 1)
    if n_chains > MAX_CHAINS:
        raise InputError(
            f"hops = {hops} with {world.n_facts:,} facts gives {n_chains:,} chains, but at "
            f"most {MAX_CHAINS:,} are allowed: choose fewer entities or a smaller out_degree"
        )
    chains = enumerate_chains(world, hops)
    return chains, random_order(len(chains), stream(world.seed, Stream.CHAIN_ORDER))


def cut_chains(
    task: Any,
    chains: Chains,
    order: Int[np.ndarray, " chain"],
    exceptions: Exceptions | None = None,
) -> Cut:
    """Return the splits of `composition`, with special treatment of the chains in `exceptions`.

    Args:
      task: the settings of `composition`. The settings of the world are not used.
      chains: all chains of the world.
      order: the indices of all chains in random order.
      exceptions: the chains that are treated in a special way; None if there are none.

    Raises:
      InputError: a setting is out of bounds, or phi is too large or too small.
    """
    check_range("holdout", task.holdout, 0, 1)
    check_range("phi", task.phi, 0)
    check_range("probes", task.probes, 1)
    all_inside = "i" * chains.hops
    facts = enumerate_chains(chains.world, 1)
    facts = facts.shuffled(stream(chains.world.seed, Stream.FACT_ORDER))
    none = np.zeros(len(chains), bool)
    withheld, required, added = exceptions or Exceptions(none, none, none)

    # Order and select chain numbers first, so that only the selected chains are copied.
    inside = order[(chains.matches(all_inside) & ~withheld)[order]]
    n_held_out = round(task.holdout * len(inside))
    n_train = n_train_rows(task.phi, len(facts.where("i")), len(inside) - n_held_out, "chains")
    free, trained = inside, inside[:n_train]
    if exceptions is not None:
        free, n_required = inside[~required[inside]], int(required.sum())
        if n_required > n_train:
            raise InputError(
                f"phi = {task.phi} gives {n_train} training chains of I facts, but this task "
                f"needs at least {n_required}: choose a larger phi"
            )
        chosen = required | added
        chosen[free[: n_train - n_required]] = True
        trained = order[chosen[order]]
    splits = {
        "id_triples": facts[~facts.allows("O")],
        "ood_triples": facts.where("o"),
        f"train_{all_inside}": chains[trained],
    }
    tested = {f"test_{all_inside}": chains[free[::-1][: min(n_held_out, task.probes)]]}
    for pattern in patterns(chains.hops):
        mixed = len(set(pattern)) > 1
        if pattern != all_inside and (task.mixed_chains or not mixed):
            ordered = order[chains.matches(pattern)[order]]
            tested[f"test_{pattern}"] = chains[ordered[: task.probes]]
    return Cut(chains, order, splits, tested)


def n_train_rows(phi: int | float, n_id_facts: int, available: int, what: str) -> int:
    """Return the number of training rows that phi requires, `round(phi * n_id_facts)`.

    Args:
      phi: ratio of training rows to facts with the role `I` (used in training chains).
      n_id_facts: number of `I` facts.
      available: number of rows that are not held out.
      what: name of the rows for the error message, such as "chains".

    Raises:
      InputError: phi requires more rows than are available.
    """
    # Compare before rounding, because a very large product cannot be converted to an int.
    if phi * n_id_facts > available + 0.5 or (wanted := round(phi * n_id_facts)) > available:
        largest = math.floor(1000 * available / n_id_facts) / 1000
        raise InputError(
            f"phi = {phi} needs {phi * n_id_facts:.0f} training {what} ({n_id_facts} I facts x"
            f" phi), but the holdout leaves only {available}: phi can be at most {largest}"
        )
    return wanted
