"""Define metrics of an answer, which measure the effect of a patch.

A metric is a function that JAX can trace. Its arguments are the logits at the last position of a
prompt, and the pair that the prompt belongs to. A metric is one of `METRICS`, or a function of the
user that is found by import path.

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
    """Prompt pairs, with the model's logits for both prompts of each pair. Arrays may be traced.

    Attributes:
      clean: tokens of the clean prompts.
      corrupt: tokens of the corrupt prompts.
      answer: the token that answers the clean prompt.
      corrupt_answer: the token that answers the corrupt prompt.
      clean_logits: logits at the end of the clean prompt, without a patch.
      corrupt_logits: logits at the end of the corrupt prompt, without a patch.
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
    """Return 1 if the clean answer has the highest logit, else 0; a tie gives 0."""
    return outcomes.answers_with(logits, pair.answer).astype(logits.dtype)


def divergence(logits: Logits, pair: PairBatch) -> Float[Array, " example"]:
    """Return the KL divergence KL(clean run || patched run), in nats."""
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
    """Find metrics by name in `METRICS` or by import path. Functions are also accepted.

    Raises:
      InputError: no metric is given, a metric is not found, or two metrics have the same name.
    """
    found = [functions.find_function(one, METRICS, "metric") for one in which]
    names = [one.name for one in found]
    if not names or len(set(names)) != len(names):
        raise InputError(f"got the metrics {names}; give at least one metric, without duplicates")
    return found


def check_metric(found: functions.NamedFunction, n_pos: int, d_vocab: int) -> None:
    """Check that a metric returns a float for each example.

    The metric is evaluated with abstract shapes. Nothing is compiled.

    Args:
      found: the metric.
      n_pos: length of the prompts.
      d_vocab: size of the vocabulary.

    Raises:
      InputError: the shape or type of the returned value is wrong.
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
    """Apply each metric to the logits of every cell of a grid of patches."""
    cells = logits.reshape(-1, *logits.shape[-2:])
    found = [jax.vmap(metric.call, (0, None))(cells, pair) for metric in metrics]
    return jnp.stack(found).reshape(len(metrics), *logits.shape[:-1])
