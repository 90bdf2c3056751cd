"""Evaluation of every data split on the device: accuracy, loss and reciprocal rank of answers.

Answers of several tokens are evaluated with teacher forcing. An answer is correct if the model
predicts every token of the answer correctly, given the true previous tokens; greedy decoding gives
the same accuracy. The loss of an answer is the sum of the losses of its tokens. The rank of an
answer is the worst rank of its tokens. Some tasks append an end token `</a>` to the answer; this
token is not evaluated. `training.thoughts` measures answers with a chain of thought, and
`training.probability_difference` measures answers for which several tokens are right.
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
from implicit_reasoning.training.cues import OTHER, cue_splits
from implicit_reasoning.training.intervals import AccuracyIntervals
from implicit_reasoning.training.phases import Splits
from implicit_reasoning.training.probability_difference import (
    COLUMN,
    answer_ranges,
    probability_difference,
)
from implicit_reasoning.training.thoughts import (
    ThoughtOutcome,
    thought_columns,
    thought_outcome,
    thought_rows,
)
from implicit_reasoning.training.unanswered import ACCURACY, ROWS, unanswered_rows
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

_CHUNK = 512
NEVER = -1
"""Value of `first_correct` for a probe row that has not been answered correctly yet."""


class Outcome(NamedTuple):
    """Loss and rank of the correct answers to the probe rows (rows that training evaluates).

    Attributes:
      loss: loss of the answer in nats, summed over the tokens of the answer.
      rank: rank of the answer; 0 is best. The rank of a token counts the other tokens of the
        vocabulary that have a higher, equal or NaN logit.
      thought: the measures of answers with a chain of thought; None for all other tasks.
      difference: the probability of all right tokens minus that of all wrong tokens; None for tasks
        in which one token is right.
    """

    loss: Float[Array, " probe"]
    rank: Int[Array, " probe"]
    thought: ThoughtOutcome | None = None
    difference: Float[Array, " probe"] | None = None


class EvaluationRows(NamedTuple):
    """Probe rows (rows that training evaluates), in chunks of equal size.

    The chunks of several worlds are concatenated along the first axis.

    Attributes:
      tokens: input tokens.
      positions: positions at which the answer tokens are predicted.
      answers: answer tokens; -1 pads shorter answers.
      thought: number of answer tokens that belong to bridge entities; None if the answers of the
        task have no chain of thought.
      ranges: ranges of right and of wrong answer tokens, see `answer_ranges`; None for tasks in
        which one token is right.
    """

    tokens: Int[Array | np.ndarray, "chunk row pos"]
    positions: Int[Array | np.ndarray, "chunk row answer"]
    answers: Int[Array | np.ndarray, "chunk row answer"]
    thought: Int[Array | np.ndarray, "chunk row"] | None = None
    ranges: Int[Array | np.ndarray, "chunk row 4"] | None = None


def evaluation_rows(dataset: Dataset) -> EvaluationRows:
    """Return the probe rows of a dataset as numpy arrays, in chunks of equal size.

    Copies of the first probe rows pad the last chunk.
    """
    rows = np.flatnonzero(dataset.probe)
    padded = np.resize(rows, -(-len(rows) // _CHUNK) * _CHUNK)
    answers, positions = dataset.answers[padded], dataset.answer_positions[padded]
    chunks, thought = (-1, _CHUNK, answers.shape[1]), dataset.truth.get("thought")
    ranges = answer_ranges(dataset, padded)
    return EvaluationRows(
        dataset.tokens[padded].reshape(-1, _CHUNK, dataset.n_ctx),
        np.maximum(positions, 0).reshape(chunks),
        answers.reshape(chunks),
        None if thought is None else thought[padded].reshape(-1, _CHUNK),
        None if ranges is None else ranges.reshape(-1, _CHUNK, ranges.shape[1]),
    )


def evaluate_chunks(
    model: Transformer, params: Params, probes: EvaluationRows, chunks: Int[Array, " chunk"]
) -> Outcome:
    """Evaluate a model on chunks of probe rows (rows that training evaluates), one by one.

    Args:
      model: the model.
      params: the parameters of the model.
      probes: the probe rows.
      chunks: the indices of the chunks to evaluate.

    Returns:
      Loss and rank for every row of these chunks, flattened to `[chunk * row]`.
    """

    def chunk(number: Array) -> Outcome:
        table = jax.tree.map(lambda rows: rows[number], probes)
        tokens, positions, answers, thought, ranges = table
        logits, _ = forward_at(model, params, tokens, positions)
        there, wanted = answers >= 0, jnp.maximum(answers, 0)  # Shorter answers end in -1.
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        of_answer = jnp.take_along_axis(logits, wanted[..., None], axis=-1)
        rank = (~(logits < of_answer)).sum(-1) - 1
        spoken = None
        if thought is not None:
            spoken = thought_outcome(model, params, tokens, positions, answers, thought, logits)
        difference = None if ranges is None else probability_difference(logits[:, 0], ranges)
        loss, rank = jnp.where(there, loss, 0).sum(-1), jnp.where(there, rank, 0).max(-1)
        return Outcome(loss, rank, spoken, difference)

    found: Outcome = jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(chunk, chunks))
    return found


def make_evaluator(
    model: Transformer, dataset: Dataset, sharding: NamedSharding | None = None
) -> Callable[[Params], Outcome]:
    """Return a function that evaluates the probe rows of a dataset on the device.

    Probe rows are the rows that training evaluates.

    Args:
      model: the model to evaluate.
      dataset: the dataset with the probe rows.
      sharding: the sharding of the rows and of every outcome; None for the default device.

    Returns:
      A function from parameters to an `Outcome`. The function dispatches the evaluation and returns
      without waiting for the result.
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
    """Return the jitted `evaluate_chunks`; equal models share one compiled function."""
    return jax.jit(functools.partial(evaluate_chunks, model), out_shardings=sharding)


class ProbeMetrics:
    """Metrics of a model's answers to the probe rows of a dataset, computed with numpy.

    The last chunk of an `Outcome` is padded. The padding is ignored.
    """

    def __init__(self, dataset: Dataset):
        """Compute the clusters of the probe rows."""
        self.intervals = AccuracyIntervals(dataset)
        self.rows = np.flatnonzero(dataset.probe)
        self._members = {
            name: np.flatnonzero(dataset.split[self.rows] == index)
            for index, name in enumerate(dataset.splits)
        }
        place = np.cumsum(dataset.probe) - 1  # for each row, its index among the probe rows
        self._unanswered = {split: place[rows] for split, rows in unanswered_rows(dataset).items()}
        self._thought_rows = {split: place[rows] for split, rows in thought_rows(dataset).items()}
        self._cues = cue_splits(dataset)
        self._cross = Splits.of(dataset).cross
        if self._cross is not None:
            clusters = clusters_of(dataset, self.rows[self._members[self._cross]])
            self._intervals = ClusterIntervals(clusters)

    def correct(self, outcome: Outcome) -> Bool[np.ndarray, " probe"]:
        """Return a bool per probe row: True if the row was answered correctly."""
        return np.asarray(outcome.rank)[: len(self.rows)] == 0

    def first_correct(
        self, before: Int[np.ndarray, " probe"], step: int, outcome: Outcome
    ) -> Int[np.ndarray, " probe"]:
        """Update the steps at which the probe rows were first answered correctly.

        Args:
          before: the steps after the previous evaluation; `NEVER` for rows without a correct answer
            so far.
          step: the step of this evaluation.
          outcome: losses and ranks from this evaluation.
        """
        newly = self.correct(outcome) & (before == NEVER)
        return np.where(newly, np.int32(step), before)

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """Return the mean of each metric over the probe rows of each split.

        Returns:
          `accuracy/<split>`, `loss/<split>` in nats and `reciprocal_rank/<split>`.
          `saturated/<split>` is the share of rows whose answer has probability 1 in float32. The
          gradient of such rows is 0 ("softmax collapse", Prieto et al. 2025, section 3).
          `accuracy_low95/<split>` is the lower end of the 95% confidence interval of the accuracy,
          clustered by bridge entity; it exists only for the split `phases.Splits.cross`.
          `accuracy_unanswered/<split>` is the accuracy on rows that no shortcut answers correctly,
          and `unanswered/<split>` is the number of these rows. `other/<name>` exists only for the
          task `cue_conflict`. It is the share of answers that agree with neither the training
          chains nor the atomic triple. Tasks with chains of thought also get the columns of
          `training.thoughts`, and tasks with several right tokens the columns
          `probability_difference/<split>`.
        """
        loss, rank = (np.asarray(part)[: len(self.rows)] for part in outcome[:2])
        saturated = np.exp(-loss, dtype=np.float32) == 1
        loss = loss.astype(np.float64)
        values = {"accuracy": rank == 0, "loss": loss, "reciprocal_rank": 1 / (1 + rank)}
        values["saturated"] = saturated
        if outcome.difference is not None:
            values[COLUMN] = np.asarray(outcome.difference)[: len(self.rows)].astype(np.float64)
        summary = {
            f"{quantity}/{split}": float(value[members].mean())
            for quantity, value in values.items()
            for split, members in self._members.items()
            if len(members)
        }
        for split, members in self._unanswered.items():
            summary[f"{ACCURACY}/{split}"] = float((rank[members] == 0).mean())
            summary[f"{ROWS}/{split}"] = len(members)
        if outcome.thought is not None:
            summary |= thought_columns(outcome.thought, self._thought_rows)
        for name, pair in self._cues.items():
            summary[f"{OTHER}/{name}"] = 1 - sum(summary[f"accuracy/{split}"] for split in pair)
        if self._cross is not None:
            interval = self._intervals.interval(rank[self._members[self._cross]] == 0)
            summary[f"accuracy_low95/{self._cross}"] = interval.low
        return summary


class Evaluation(ProbeMetrics):
    """Evaluation of a model on probe rows. The probe rows stay on the device."""

    def __init__(self, model: Transformer, dataset: Dataset, sharding: NamedSharding | None = None):
        """Move the probe rows to the device; see `make_evaluator`."""
        super().__init__(dataset)
        self.launch = make_evaluator(model, dataset, sharding)
