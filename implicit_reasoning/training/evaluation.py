"""Every split, evaluated on the device: accuracy, loss and reciprocal rank of the answer.

An answer of several tokens is right if each is, given those before it, which for being right is the
same as writing it greedily. Its loss is the sum over its tokens, its rank the worst of theirs. The
`</a>` that may follow does not count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.stages import Wrapped
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model import Params, Transformer, check_tokens
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.training.intervals import AccuracyIntervals
from implicit_reasoning.training.phases import Splits
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

_CHUNK = 512
NEVER = -1
"""Of a probe row's first correct answer: there was none yet."""


class Outcome(NamedTuple):
    """Per probe row; `rank` 0 is best. A tie with another token, or a nan, counts against it."""

    loss: Float[Array, " probe"]
    rank: Int[Array, " probe"]


class EvaluationRows(NamedTuple):
    """Rows to ask, in chunks of equal size: those of several worlds stand one after the other."""

    tokens: Int[Array | np.ndarray, "chunk row pos"]
    positions: Int[Array | np.ndarray, "chunk row answer"]
    answers: Int[Array | np.ndarray, "chunk row answer"]


def evaluation_rows(dataset: Dataset) -> EvaluationRows:
    """The probe rows of a dataset, filled up with its first ones to whole chunks; numpy."""
    rows = np.flatnonzero(dataset.probe)
    padded = np.resize(rows, -(-len(rows) // _CHUNK) * _CHUNK)
    answers, positions = dataset.answers[padded], dataset.answer_positions[padded]
    chunks = (-1, _CHUNK, answers.shape[1])
    return EvaluationRows(
        dataset.tokens[padded].reshape(-1, _CHUNK, dataset.n_ctx),
        np.maximum(positions, 0).reshape(chunks),
        answers.reshape(chunks),
    )


def evaluate_chunks(
    model: Transformer, params: Params, probes: EvaluationRows, chunks: Int[Array, " chunk"]
) -> Outcome:
    """What a model answers to some chunks of the rows, chunk after chunk."""

    def chunk(number: Array) -> Outcome:
        tokens, positions, answers = (rows[number] for rows in probes)
        logits, _ = forward_at(model, params, tokens, positions)
        there, wanted = answers >= 0, jnp.maximum(answers, 0)  # shorter answers end in -1
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        of_answer = jnp.take_along_axis(logits, wanted[..., None], axis=-1)
        rank = (~(logits < of_answer)).sum(-1) - 1
        return Outcome(jnp.where(there, loss, 0).sum(-1), jnp.where(there, rank, 0).max(-1))

    found: Outcome = jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(chunk, chunks))
    return found


def make_evaluator(
    model: Transformer, dataset: Dataset, sharding: NamedSharding | None = None
) -> Callable[[Params], Outcome]:
    """Move the probe rows of a dataset to the device, to ask a model with any parameters.

    Args:
      model: to evaluate.
      dataset: whose probe rows are asked.
      sharding: of the rows and of every outcome; one device where it is None.

    Returns:
      A function that starts an evaluation; nothing waits until its outcome is read.
    """
    probes = evaluation_rows(dataset)
    check_tokens(probes.tokens, model.spec.d_vocab)
    chunks = np.arange(len(probes.tokens), dtype=np.int32)
    asked = jax.device_put((probes, chunks), sharding)
    compiled = _asker(model, sharding)

    def launch(params: Params) -> Outcome:
        outcome: Outcome = compiled(params, *asked)
        return outcome

    return launch


@functools.lru_cache(maxsize=16)
def _asker(model: Transformer, sharding: NamedSharding | None) -> Wrapped:
    """`ask`, compiled once for equal models."""
    return jax.jit(functools.partial(evaluate_chunks, model), out_shardings=sharding)


class ProbeMetrics:
    """What to say about a model's answers to the probe rows of a dataset; numpy.

    An outcome may have more rows than there are probes, as chunks are whole: they do not count.
    """

    def __init__(self, dataset: Dataset):
        """Cluster the probe rows once."""
        self.intervals = AccuracyIntervals(dataset)
        self.rows = np.flatnonzero(dataset.probe)
        self._members = {
            name: np.flatnonzero(dataset.split[self.rows] == index)
            for index, name in enumerate(dataset.splits)
        }
        self._cross = Splits.of(dataset).cross
        if self._cross is not None:
            clusters = clusters_of(dataset, self.rows[self._members[self._cross]])
            self._intervals = ClusterIntervals(clusters)

    def correct(self, outcome: Outcome) -> Bool[np.ndarray, " probe"]:
        """Which probe rows were answered correctly."""
        return np.asarray(outcome.rank)[: len(self.rows)] == 0

    def first_correct(
        self, before: Int[np.ndarray, " probe"], step: int, outcome: Outcome
    ) -> Int[np.ndarray, " probe"]:
        """The steps at which the probe rows were first answered correctly, brought up to date."""
        newly = self.correct(outcome) & (before == NEVER)
        return np.where(newly, np.int32(step), before)

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """Means over the probe rows of each split: `accuracy/<split>`, `loss/`, `reciprocal_rank/`.

        `saturated/<split>` is the share of rows whose answer has a probability that float32 rounds
        to 1: their gradient is 0 ("softmax collapse", Prieto et al. 2025, section 3).
        `accuracy_low95/<cross split>` is the lower end of its 95% interval, clustered by bridge
        (`worlds.clusters`).
        """
        loss, rank = (np.asarray(part)[: len(self.rows)] for part in outcome)
        saturated = np.exp(-loss, dtype=np.float32) == 1
        loss = loss.astype(np.float64)
        values = {"accuracy": rank == 0, "loss": loss, "reciprocal_rank": 1 / (1 + rank)}
        values["saturated"] = saturated
        summary = {
            f"{quantity}/{split}": float(value[members].mean())
            for quantity, value in values.items()
            for split, members in self._members.items()
            if len(members)
        }
        if self._cross is not None:
            interval = self._intervals.interval(rank[self._members[self._cross]] == 0)
            summary[f"accuracy_low95/{self._cross}"] = interval.low
        return summary


class Evaluation(ProbeMetrics):
    """The probe rows of a dataset, on the device, to be put to one model."""

    def __init__(self, model: Transformer, dataset: Dataset, sharding: NamedSharding | None = None):
        """Move the probe rows to the device; see `asking`."""
        super().__init__(dataset)
        self.launch = make_evaluator(model, dataset, sharding)
