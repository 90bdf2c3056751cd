"""The base class of instruments that have prompt pairs and metrics as options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.metrics import (
    Metric,
    PairBatch,
    check_metric,
    find_metrics,
)
from implicit_reasoning.analysis.patching.pairs import PairsFunction, find_pairs, make_pairs
from implicit_reasoning.analysis.states import another_of_group
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.analysis.variables.counterfactuals import round_robin
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

_SEED = 0


class PairInstrument(Instrument):
    """Base class of instruments with prompt pairs and metrics that the user chooses.

    Results that were measured with different pairs or metrics are never merged.

    Attributes:
      pairs: the function that makes the pairs.
      metrics: the metrics. The dimension `metric` of the result has the same order.
    """

    def __init__(
        self,
        pairs: str | PairsFunction = "bridge",
        metrics: Sequence[str | Metric] = ("logit_difference", "probability"),
    ):
        """Find the function that makes the pairs, and the metrics.

        Args:
          pairs: a key of `pairs.PAIRS`, an import path, or a function.
          metrics: keys of `metrics.METRICS`, import paths, or functions.

        Raises:
          InputError: a function is not found.
        """
        self.pairs, self.metrics = find_pairs(pairs), find_metrics(metrics)

    def require_one_metric(self) -> None:
        """Raise an error if the user chose several metrics, for instruments that use one.

        Raises:
          InputError: there is more than one metric.
        """
        if len(self.metrics) > 1:
            names = ", ".join(metric.name for metric in self.metrics)
            raise InputError(f"{self.name} needs exactly one metric, got {names}")

    def options(self) -> dict[str, Any]:
        """Return the identity of the pairs function and of every metric.

        An identity consists of a name and a digest of the source code.
        """
        return {
            "pairs": self.pairs.identity(),
            "metrics": [metric.identity() for metric in self.metrics],
        }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the prompt pairs, and check that the pairs and the metrics are valid.

        For the null control, the inputs also contain the prompts of a random different pair of the
        same group, for each pair.

        Raises:
          InputError: the pairs function does not return valid pairs, or a metric does not return
            one number for each pair.
        """
        pairs = make_pairs(self.pairs, dataset, model)
        for metric in self.metrics:
            check_metric(metric, pairs.clean.shape[1], model.spec.d_vocab)
        other = another_of_group(pairs.group, np.random.default_rng(_SEED))
        return Examples(
            {
                "clean": pairs.clean,
                "corrupt": pairs.corrupt,
                "answer": pairs.answer,
                "corrupt_answer": pairs.corrupt_answer,
                "other_clean": pairs.clean[other],
                "other_corrupt": pairs.corrupt[other],
                "member": pairs.group[:, None] == np.arange(len(pairs.groups)),
            },
            groups=tuple(pairs.groups),
            group=pairs.group,
            clusters=pairs.clusters,
            coords={
                "pos": tuple(pairs.positions),
                "metric": tuple(metric.name for metric in self.metrics),
            },
        )


def limit_pairs(made: Examples, most: int, groups: Sequence[str] = ()) -> Examples:
    """Return the examples with only some groups, and only the first pairs of each group.

    Args:
      made: examples whose inputs have one entry for each pair on their first axis.
      most: the maximum number of pairs of each group.
      groups: the names of the groups to keep; empty for all groups.

    Raises:
      InputError: a group does not exist.
    """
    unknown = [name for name in groups if name not in made.groups]
    if unknown:
        raise InputError(
            f"the pairs have no group {unknown[0]!r}; choose from {', '.join(made.groups)}"
        )
    numbers = [made.groups.index(name) for name in groups or made.groups]
    keep = np.concatenate([np.flatnonzero(made.group == number)[:most] for number in numbers])
    inputs = {name: values[keep] for name, values in made.inputs.items()}
    return dataclasses.replace(
        made,
        inputs=inputs | {"member": inputs["member"][:, numbers]},
        groups=tuple(made.groups[number] for number in numbers),
        group=np.argsort(numbers)[np.searchsorted(np.sort(numbers), made.group[keep])],
        clusters=made.clusters[keep],
    )


def alternate_clusters(made: Examples) -> Examples:
    """Reorder examples so that the clusters of each group alternate.

    `limit_pairs` then keeps pairs of as many clusters as possible, so that the means of few pairs
    have intervals.

    Args:
      made: examples whose inputs have one entry for each pair on their first axis.
    """
    _, kind = np.unique(np.stack([made.group, made.clusters]), axis=1, return_inverse=True)
    order = round_robin(np.arange(len(made.group)), kind)
    return dataclasses.replace(
        made,
        inputs={name: values[order] for name, values in made.inputs.items()},
        group=made.group[order],
        clusters=made.clusters[order],
    )


def batch_of(model: Transformer, params: Params, inputs: Any) -> PairBatch:
    """Compute the logits of both prompts of each pair."""
    clean, corrupt, answer, corrupt_answer = (
        jnp.asarray(inputs[name]) for name in ("clean", "corrupt", "answer", "corrupt_answer")
    )
    said = (final_logits(model, params, tokens) for tokens in (clean, corrupt))
    return PairBatch(clean, corrupt, answer, corrupt_answer, *said)


def mean_by_group(
    values: Float[Array, "*batch example"],
    counted: Bool[Array, "*batch example"],
    member: Bool[np.ndarray | Array, "example group"],
) -> Float[Array, "*batch example"]:
    """Return the mean of the group to which each example belongs.

    Only examples for which `counted` is true contribute. The mean of a group without such examples
    is 0.

    Args:
      values: the value of each example.
      counted: whether each example contributes to the mean.
      member: whether each example belongs to each group.
    """
    of_group = jnp.asarray(member).astype(values.dtype)
    sums, counts = (
        jnp.einsum("...e,eg->...g", x, of_group)
        for x in (jnp.where(counted, values, 0), counted.astype(values.dtype))
    )
    return jnp.einsum("...g,eg->...e", sums / jnp.maximum(counts, 1), of_group)
