"""Compute the distinct states on which dictionaries are trained and measured.

A state depends only on its prefix, so each distinct prefix counts once, even if several rows begin
with the same prefix. Dictionaries are measured on states of prefixes that are not in their training
data. States are computed on the device where they are used and are never written to disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.facts import assign_folds, first_occurrences
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset, prefix_keys

_HELD_OUT = 5  # one in five prefixes is held out
_AT_ONCE = 512  # rows per forward pass


class Places(NamedTuple):
    """Locations of states, ordered by position. A location is a prompt and one of its positions.

    Attributes:
      rows: int [row], indices of dataset rows.
      tokens: int32 [row, pos], the prompts of these rows.
      row: int [state], the index of the state's prompt in `rows` and `tokens`.
      pos: int [state], the position of the state in the prompt.
    """

    rows: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, "row pos"]
    row: Int[np.ndarray, " state"]
    pos: Int[np.ndarray, " state"]

    def only(self, keep: Bool[np.ndarray, " state"]) -> Places:
        """Select some states, and the prompts that contain these states."""
        used, row = np.unique(self.row[keep], return_inverse=True)
        return Places(self.rows[used], self.tokens[used], row, self.pos[keep])

    def counts(self, n_pos: int) -> Int[np.ndarray, " pos"]:
        """Count the states at each position."""
        return np.bincount(self.pos, minlength=n_pos)


def distinct_places(
    dataset: Dataset, rows: Int[np.ndarray, " row"], positions: Sequence[str] = ()
) -> Places:
    """Find the distinct prefixes that end at each position, and the first row with each prefix.

    Args:
      dataset: the run's dataset.
      rows: int [row], the rows to search. Their prompts may have different lengths.
      positions: names of the positions to include; all by default.

    Raises:
      InputError: a position does not exist.
    """
    missing = [name for name in positions if name not in dataset.positions]
    if missing:
        raise InputError(
            f"there is no position {missing[0]!r}; the positions are {', '.join(dataset.positions)}"
        )
    tokens = dataset.tokens[rows, : len(dataset.positions)]
    keys = prefix_keys(tokens, dataset.n_vocab).T
    wanted = np.array([not positions or name in positions for name in dataset.positions])
    inside = np.arange(len(keys))[:, None] <= dataset.truth["position"][rows]
    # Rows have no states beyond their prompt. The key there is -1, which no prefix has.
    there = first_occurrences(np.where(inside, keys, -1)) & inside & wanted[:, None]
    pos, row = np.nonzero(there)
    return Places(rows, tokens, row, pos).only(np.ones(len(row), bool))


def first_fact_keys(dataset: Dataset, places: Places) -> Int[np.ndarray, " state"]:
    """Return a number that identifies the first fact of each state's prefix.

    Two states have equal numbers if the first two tokens of their prefixes are equal. At the first
    position, the number is the token.
    """
    begun = prefix_keys(places.tokens, dataset.n_vocab)[:, :2]
    return begun[places.row, np.minimum(places.pos, begun.shape[1] - 1)]


class Split(NamedTuple):
    """The distinct states of a dataset, split into training and held-out states.

    Attributes:
      places: locations of the states of all rows.
      trained: bool [state], whether the state occurs in a training row and is not held out.
      held_out: bool [state], whether the state is held out.
    """

    places: Places
    trained: Bool[np.ndarray, " state"]
    held_out: Bool[np.ndarray, " state"]


def split_states(dataset: Dataset, positions: Sequence[str] = ()) -> Split:
    """Split a dataset's distinct states by prefix into training and held-out states.

    From the second position on, a state is assigned by the first two tokens of its prefix. All
    prefixes with the same first fact are therefore on the same side of the split. At the first
    position, a state is assigned by its token. The split does not depend on the rows that are
    trained on or measured, so training and measurement always use the same split.

    Args:
      dataset: the run's dataset.
      positions: names of the positions to include; all by default.

    Returns:
      The split. One in five prefixes is held out.

    Raises:
      InputError: a position does not exist.
    """
    places = distinct_places(dataset, np.arange(len(dataset)), positions)
    begun = prefix_keys(places.tokens, dataset.n_vocab)[:, :2].T
    folds = np.stack([assign_folds(line, _HELD_OUT) for line in begun])
    held_out = folds[np.minimum(places.pos, len(folds) - 1), places.row] == 0
    # A place is in the first row with its prefix, and training rows precede all other rows.
    seen = places.rows[places.row] < dataset.n_train
    return Split(places, seen & ~held_out, held_out)


def states(
    model: Transformer, places: Places, params: Params, sites: Sequence[str]
) -> Float[Array, "state width"]:
    """Compute the activations at each location, concatenated over checkpoints and sites.

    JAX traces this function. The model processes prompts in batches, which bounds the memory that a
    forward pass needs.

    Args:
      model: the model, which is static under tracing.
      places: the locations of the states, on the host.
      params: parameters of one or more checkpoints, stacked.
      sites: names of the sites, all of one width.

    Returns:
      An array [state, width]. The axis `width` is ordered by checkpoint, then by site.
    """
    size = min(_AT_ONCE, len(places.tokens))
    n_parts = -(-len(places.tokens) // size)
    tokens = jnp.asarray(np.resize(places.tokens, (n_parts, size, places.tokens.shape[1])))

    def part(params: Params, tokens: Array) -> Array:
        _, found = model.forward(params, tokens, sites=tuple(sites))
        return jnp.concatenate([found[site] for site in sites], axis=-1)

    def of_one(params: Params) -> Array:
        by_part = jax.lax.map(lambda some: part(params, some), tokens)  # [part, row, pos, width]
        flat = by_part.reshape(n_parts * size, *by_part.shape[2:])
        return flat[places.row, places.pos]

    by_checkpoint = jax.lax.map(of_one, params)
    return jnp.concatenate(list(by_checkpoint), axis=-1)
