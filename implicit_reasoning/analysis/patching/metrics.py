"""Metrics of the logits after a patch, such as the logit difference.

A metric is a function that JAX can trace. The arguments of a metric are the logits at the last
position, and the prompt pairs (`PairBatch`). A metric returns one number for each pair. `METRICS`
contains the built-in metrics. Users can add metrics by import path.

Source of the metrics: Zhang and Nanda 2024, "Towards best practices of activation patching".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.patching import functions, outcomes
from implicit_reasoning.errors import InputError


class PairBatch(NamedTuple):
    """Prompt pairs, with the model's logits for both prompts of each pair.

    Attributes:
      clean: the tokens of the clean prompts.
      corrupt: the tokens of the corrupt prompts.
      answer: the answer token of each clean prompt.
      corrupt_answer: the answer token of each corrupt prompt.
      clean_logits: the logits at the last position of each clean prompt, without a patch.
      corrupt_logits: the logits at the last position of each corrupt prompt, without a patch.
    """

    clean: Int[Array, "example pos"]
    corrupt: Int[Array, "example pos"]
    answer: Int[Array, " example"]
    corrupt_answer: Int[Array, " example"]
    clean_logits: Float[Array, "example d_vocab"]
    corrupt_logits: Float[Array, "example d_vocab"]


Logits = Float[Array, "example d_vocab"]
Metric = Callable[[Logits, PairBatch], Float[Array, " example"]]


def logit_difference(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return the logit of the clean answer minus the logit of the corrupt answer."""
    return outcomes.logit_difference(logits, pair.answer, pair.corrupt_answer)


def probability(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return the probability of the clean answer."""
    return outcomes.probability(logits, pair.answer)


def log_probability(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return the log probability of the clean answer, in nats."""
    index = pair.answer[:, None]
    return jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[:, 0]


def accuracy(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return 1 if the logit of the clean answer is above all other logits, else 0."""
    return outcomes.answers_with(logits, pair.answer).astype(logits.dtype)


def divergence(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return the KL divergence KL(p_clean || p_patched), in nats."""
    return outcomes.divergence(logits, pair.clean_logits)


METRICS: Mapping[str, Metric] = {
    "logit_difference": logit_difference,
    "probability": probability,
    "log_probability": log_probability,
    "accuracy": accuracy,
    "divergence": divergence,
}
"""The built-in metrics, by name."""


def find_metrics(which: Sequence[str | Metric]) -> list[functions.NamedFunction]:
    """Find metrics.

    Args:
      which: for each metric, a key of `METRICS`, an import path, or a function.

    Raises:
      InputError: `which` is empty, a metric is not found, or two metrics have the same name.
    """
    found = [functions.find_function(one, METRICS, "metric") for one in which]
    names = [one.name for one in found]
    if not names or len(set(names)) != len(names):
        raise InputError(f"got the metrics {names}; choose at least one metric, without duplicates")
    return found


def check_metric(found: functions.NamedFunction, n_pos: int, d_vocab: int) -> None:
    """Check that a metric returns one float for each example.

    The check uses `jax.eval_shape`, which compiles nothing.

    Args:
      found: the metric.
      n_pos: length of the prompts.
      d_vocab: size of the vocabulary.

    Raises:
      InputError: the metric returns a wrong shape or a wrong type.
    """
    count = n_pos + d_vocab + 1  # no other axis has this size
    prompt = jax.ShapeDtypeStruct((count, n_pos), jnp.int32)
    token = jax.ShapeDtypeStruct((count,), jnp.int32)
    logits = jax.ShapeDtypeStruct((count, d_vocab), jnp.float32)

    def called(prompt: Array, token: Array, logits: Array) -> Any:
        return found.call(logits, PairBatch(prompt, prompt, token, token, logits, logits))

    made = jax.eval_shape(called, prompt, token, logits)
    shape = getattr(made, "shape", None)
    if shape != (count,):
        what = type(made).__name__ if shape is None else f"an array of shape {list(shape)}"
        raise InputError(
            f"metric {found.name} returned {what} for logits of shape [{count}, {d_vocab}]; a "
            f"metric must return an array of shape [{count}], with one number for each example"
        )
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise InputError(
            f"metric {found.name} returned numbers of type {made.dtype}; a metric must return "
            "floats"
        )


def over_cells(
    metrics: Sequence[functions.NamedFunction],
    logits: Float[Array, "*cell example d_vocab"],
    pair: PairBatch,
) -> Float[Array, "metric *cell example"]:
    """Compute each metric for each patch.

    Args:
      metrics: the metrics.
      logits: the logits at the last position after each patch. The leading axes are those of the
        patches, such as layer and position.
      pair: the patched pairs.
    """
    cells = logits.reshape(-1, *logits.shape[-2:])
    found = [jax.vmap(metric.call, (0, None))(cells, pair) for metric in metrics]
    return jnp.stack(found).reshape(len(metrics), *logits.shape[:-1])
