"""Measures of answers with a chain of thought: bridge entities, followed by the last entity.

With teacher forcing, the model reads the true bridge entities before it predicts the last entity.
With free running (greedy decoding), the model reads its own predictions of the bridge entities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset


class ThoughtOutcome(NamedTuple):
    """Whether the parts of an answer are correct, for each probe row (row that training evaluates).

    `metrics.jsonl` contains the shares of correct parts in columns `<name of the field>/<split>`.

    Attributes:
      bridge: whether the model predicts all bridge entities.
      teacher_forced: whether the model predicts the last entity after the true bridge entities.
      free_running: whether the model predicts the last entity after its own predictions of the
        bridge entities, which may be wrong.
    """

    bridge: Bool[Array, " probe"]
    teacher_forced: Bool[Array, " probe"]
    free_running: Bool[Array, " probe"]


def thought_outcome(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "row pos"],
    positions: Int[Array, "row answer"],
    answers: Int[Array, "row answer"],
    thought: Int[Array, " row"],
    logits: Float[Array, "row answer vocab"],
) -> ThoughtOutcome:
    """Evaluate answers that contain bridge entities, with teacher forcing and greedy decoding.

    Args:
      model: the model.
      params: the parameters of the model.
      tokens: the input tokens, including all answer tokens except the last token.
      positions: the positions at which the answer tokens are predicted.
      answers: the answer tokens; -1 pads shorter answers.
      thought: number of answer tokens that belong to bridge entities.
      logits: the logits at `positions` with teacher forcing.
    """
    slots = jnp.arange(answers.shape[1])[None]
    is_last = (slots >= thought[:, None]) & (answers >= 0)
    is_bridge = (slots < thought[:, None]) & (answers >= 0)
    forced = logits.argmax(-1)
    said = greedy(model, params, tokens, positions, answers >= 0, forced[:, 0])

    def right(predicted: Array, counted: Array) -> Array:
        return ((predicted == answers) | ~counted).all(-1)

    return ThoughtOutcome(right(forced, is_bridge), right(forced, is_last), right(said, is_last))


def greedy(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "row pos"],
    positions: Int[Array, "row answer"],
    there: Bool[Array, "row answer"],
    first: Int[Array, " row"],
) -> Int[Array, "row answer"]:
    """Decode answers greedily: every predicted token becomes the next input of the model.

    Args:
      model: the model.
      params: the parameters of the model.
      tokens: the input tokens. Predictions replace the tokens of the answer.
      positions: the positions at which the answer tokens are predicted.
      there: False for padding after the end of shorter answers.
      first: the first predicted token of each answer.

    Returns:
      The predicted tokens.
    """
    said, rows = [first], jnp.arange(len(tokens))
    for slot in range(1, positions.shape[1]):
        place = positions[:, slot]
        given = jnp.where(there[:, slot], said[-1], tokens[rows, place])
        tokens = tokens.at[rows, place].set(given)
        logits, _ = forward_at(model, params, tokens, place[:, None])
        said.append(logits[:, 0].argmax(-1))
    return jnp.stack(said, axis=1)


def thought_rows(dataset: Dataset) -> dict[str, Int[np.ndarray, " row"]]:
    """Return the probe rows of each split whose answers contain bridge entities."""
    if "thought" not in dataset.truth:
        return {}
    probes = {split: dataset.probes(split) for split in dataset.splits}
    chains = {split: rows[dataset.truth["thought"][rows] > 0] for split, rows in probes.items()}
    return {split: rows for split, rows in chains.items() if len(rows)}


def thought_columns(
    outcome: ThoughtOutcome, members: Mapping[str, Int[np.ndarray, " member"]]
) -> dict[str, float]:
    """Return the shares of correct parts by column name, such as `free_running/test_ii`.

    Args:
      outcome: the correctness of all probe rows (rows that training evaluates).
      members: dict from a split to the indices of its rows among the probe rows.
    """
    return {
        f"{name}/{split}": float(np.asarray(right)[rows].mean())
        for name, right in outcome._asdict().items()
        for split, rows in members.items()
    }
