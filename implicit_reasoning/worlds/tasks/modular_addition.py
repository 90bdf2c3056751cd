"""The task `modular_addition`: sums modulo p, on which grokking was discovered."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows
from implicit_reasoning.worlds.world import Stream, check_count, check_range, stream


def modular_addition(task: Any) -> Dataset:
    """Build the task `[a, b, =] -> (a + b) mod p`, trained on a random fraction of the p * p pairs.

    For the same seed, a smaller training set is a prefix of a larger one. The task has no facts and
    therefore no world. For about a fraction `train_fraction` of the test pairs (a, b), the mirrored
    pair (b, a) is a training pair. The shortcut `commuted` answers these test pairs.

    Args:
      task: settings with attributes world_seed; modulus (p); train_fraction (fraction of the pairs,
        rounded to a count); probes (maximum number of probes per split).

    Raises:
      InputError: a setting is out of bounds.

    Source: Power et al. 2022; Nanda et al. 2023 (p = 113, 30%).
    """
    check_range("modulus", task.modulus, 1)
    check_range("train_fraction", task.train_fraction, 0, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    n_pairs = task.modulus**2
    check_count("modulus ** 2", n_pairs)
    order = stream(task.world_seed, Stream.PAIRS).permutation(n_pairs)
    n_train = round(task.train_fraction * n_pairs)

    def rows(pairs: np.ndarray) -> Rows:
        a, b = np.divmod(pairs, task.modulus)
        equals = np.full(len(pairs), task.modulus)
        return make_rows([a, b, equals], [(a + b) % task.modulus], {"a": a, "b": b})

    return assemble(
        {"train_pairs": rows(order[:n_train])},
        {"test_pairs": rows(order[n_train:][: task.probes])},
        vocab=(*(f"<{i}>" for i in range(task.modulus)), "<=>"),
        positions=("a", "b", "="),
        probes=task.probes,
    )
