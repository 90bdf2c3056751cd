"""Every split, evaluated on the device: accuracy, loss and reciprocal rank of the answer.

An answer of several tokens is right if each is, given those before it, which for being right is the
same as writing it greedily. Its loss is the sum over its tokens, its rank the worst of theirs. The
`</a>` that may follow does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.runs import Run
from implicit_reasoning.statistics import ClusterBootstrap, Interval, clustered_bootstrap
from implicit_reasoning.training.phases import Splits
from implicit_reasoning.worlds import Dataset

_CHUNK = 512
NEVER = -1
"""Of a probe row's first correct answer: there was none yet."""


class Outcome(NamedTuple):
    """Per probe row; `rank` 0 is best. A tie with another token, or a nan, counts against it."""

    loss: Float[Array, "probe"]
    rank: Int[Array, "probe"]


class Evaluation:
    """The probe rows of a dataset, on the device, and what to say about a model's answers."""

    def __init__(self, model: Transformer, dataset: Dataset, sharding: NamedSharding | None = None):
        """Move the probe rows to the device, and draw the bootstrap of the cross split once.

        Args:
          model: to evaluate.
          dataset: whose probe rows are asked.
          sharding: of the rows and of every outcome; one device where it is None.
        """
        self.rows = np.flatnonzero(dataset.probe)
        self._members = {
            name: np.flatnonzero(dataset.split[self.rows] == index)
            for index, name in enumerate(dataset.splits)
        }
        self._cross = Splits.of(dataset).cross
        if self._cross is not None:
            facts = dataset.truth["fact1"][self.rows[self._members[self._cross]]]
            self._bootstrap = ClusterBootstrap(facts)
        # Padded with the first row to whole chunks; the padding is cut off again below.
        padded = np.resize(self.rows, -(-len(self.rows) // _CHUNK) * _CHUNK)
        answers, positions = dataset.answers[padded], dataset.answer_positions[padded]
        chunks = (-1, _CHUNK, answers.shape[1])
        rows = (
            dataset.tokens[padded].reshape(-1, _CHUNK, dataset.n_ctx),
            np.maximum(positions, 0).reshape(chunks),
            answers.reshape(chunks),
        )
        self._tokens, self._positions, self._answers = jax.device_put(rows, sharding)
        self._model = model
        self._launch = jax.jit(self._outcome, out_shardings=sharding)

    def launch(self, params: Params) -> Outcome:
        """Start the evaluation; nothing waits until its outcome is read."""
        outcome: Outcome = self._launch(params, self._tokens, self._positions, self._answers)
        return outcome

    def correct(self, outcome: Outcome) -> Bool[np.ndarray, "probe"]:
        """Which probe rows were answered correctly."""
        return np.asarray(outcome.rank) == 0

    def first_correct(
        self, before: Int[np.ndarray, "probe"], step: int, outcome: Outcome
    ) -> Int[np.ndarray, "probe"]:
        """The steps at which the probe rows were first answered correctly, brought up to date."""
        newly = self.correct(outcome) & (before == NEVER)
        return np.where(newly, np.int32(step), before)

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """Means over the probe rows of each split: `accuracy/<split>`, `loss/`, `reciprocal_rank/`.

        `accuracy_low95/<cross split>` is the lower end of its 95% interval, clustered by the
        first-hop fact.
        """
        loss, rank = np.asarray(outcome.loss, np.float64), np.asarray(outcome.rank)
        values = {"accuracy": rank == 0, "loss": loss, "reciprocal_rank": 1 / (1 + rank)}
        summary = {
            f"{quantity}/{split}": float(value[members].mean())
            for quantity, value in values.items()
            for split, members in self._members.items()
            if len(members)
        }
        if self._cross is not None:
            interval = self._bootstrap.interval(rank[self._members[self._cross]] == 0)
            summary[f"accuracy_low95/{self._cross}"] = interval.low
        return summary

    def _outcome(self, params: Params, tokens: Array, positions: Array, answers: Array) -> Outcome:
        def chunk(rows: tuple[Array, Array, Array]) -> Outcome:
            tokens, positions, answers = rows
            logits, _ = forward_at(self._model, params, tokens, positions)
            there, wanted = answers >= 0, jnp.maximum(answers, 0)  # shorter answers end in -1
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            of_answer = jnp.take_along_axis(logits, wanted[..., None], axis=-1)
            rank = (~(logits < of_answer)).sum(-1) - 1
            return Outcome(jnp.where(there, loss, 0).sum(-1), jnp.where(there, rank, 0).max(-1))

        chunks = jax.lax.map(chunk, (tokens, positions, answers))
        return jax.tree.map(lambda x: x.reshape(-1)[: len(self.rows)], chunks)


def accuracy_intervals(run: Run, step: int) -> dict[str, Interval]:
    """Accuracy of a checkpoint on the probe rows of every split, float32, with its 95% interval.

    Clustered by the facts of the hop whose facts make it widest; by row in tasks without facts.
    """
    dataset = run.dataset
    evaluation = Evaluation(run.model, dataset)
    params = jax.tree.map(lambda leaf: leaf[0], run.params([step]))
    correct = np.zeros(len(dataset), bool)
    correct[evaluation.rows] = evaluation.correct(evaluation.launch(params))
    probes = {split: dataset.probes(split) for split in dataset.splits}
    return {
        split: _interval(dataset, rows, correct[rows])
        for split, rows in probes.items()
        if len(rows)
    }


def _interval(dataset: Dataset, rows: np.ndarray, correct: np.ndarray) -> Interval:
    columns = [dataset.truth[f"fact{hop + 1}"][rows] for hop in range(dataset.hops)]
    # A single fact has no second hop; a task without facts has only rows to count.
    columns = [column for column in columns if (column >= 0).all()] or [rows]
    intervals = [clustered_bootstrap(correct, column) for column in columns]
    return max(intervals, key=lambda interval: np.nan_to_num(interval.high - interval.low))
