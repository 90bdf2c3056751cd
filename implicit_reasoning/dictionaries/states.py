"""Compute the distinct states on which dictionaries are trained and measured.

A state is the model's activation at one position of a prompt. A state depends only on the prefix,
which contains the tokens up to this position. Each distinct prefix therefore counts once, even if
several dataset rows begin with the prefix. Held-out states belong to prefixes on which dictionaries
are not trained. States are computed on the device that uses them, and are never written to disk.
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
    """Locations of states, ordered by position.

    A location is a prompt and a position in the prompt.

    Attributes:
      rows: int [row], indices of rows of the dataset.
      tokens: int32 [row, pos], the prompts of the dataset rows `rows`.
      row: int [state], the index of the state's prompt in `rows` and `tokens`.
      pos: int [state], the position of the state in the prompt.
    """

    rows: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, "row pos"]
    row: Int[np.ndarray, " state"]
    pos: Int[np.ndarray, " state"]

    def only(self, keep: Bool[np.ndarray, " state"]) -> Places:
        """Return the locations where `keep` is true, without unused prompts."""
        used, row = np.unique(self.row[keep], return_inverse=True)
        return Places(self.rows[used], self.tokens[used], row, self.pos[keep])

    def counts(self, n_pos: int) -> Int[np.ndarray, " pos"]:
        """Return the number of states at each position."""
        return np.bincount(self.pos, minlength=n_pos)


def distinct_places(
    dataset: Dataset, rows: Int[np.ndarray, " row"], positions: Sequence[str] = ()
) -> Places:
    """Find all distinct prefixes, with one location per prefix.

    Args:
      dataset: the run's dataset.
      rows: int [row], indices of the dataset rows to search. Prompts may have different lengths.
      positions: names of the positions to include. The default is all positions.

    Raises:
      InputError: the dataset has no position with a given name.
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
    """Return, for each state, a number that identifies the first fact (e1, r1).

    Two states have equal numbers if their first two tokens are equal. A state at the first position
    has only one token, which determines the number.
    """
    begun = prefix_keys(places.tokens, dataset.n_vocab)[:, :2]
    return begun[places.row, np.minimum(places.pos, begun.shape[1] - 1)]


class Split(NamedTuple):
    """The distinct states of a dataset, divided into training states and held-out states.

    Attributes:
      places: locations of all distinct states.
      trained: bool [state], whether the state is used for training. A training state occurs in a
        training row of the dataset and is not held out.
      held_out: bool [state], whether the state is held out from training.
    """

    places: Places
    trained: Bool[np.ndarray, " state"]
    held_out: Bool[np.ndarray, " state"]


def split_states(dataset: Dataset, positions: Sequence[str] = ()) -> Split:
    """Divide the distinct states of a dataset into training states and held-out states.

    From the second position on, the first two tokens determine whether a state is held out.
    Therefore, either all or none of the states with a given first fact are held out. At the first
    position, the token determines whether a state is held out. The split depends only on the
    tokens, so training and measurement use the same split.

    Args:
      dataset: the run's dataset.
      positions: names of the positions to include. The default is all positions.

    Returns:
      The split. At each position, the states of about one fifth of the groups are held out. A group
      contains the states whose first two tokens are equal.

    Raises:
      InputError: the dataset has no position with a given name.
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
    """Compute the model's activations at each location, for several checkpoints and sites.

    JAX traces this function. The model processes prompts in batches of limited size, which limits
    memory use.

    Args:
      model: the model, which is static under `jax.jit`.
      places: the locations of the states, as numpy arrays.
      params: parameters of one or more checkpoints, stacked along the first axis.
      sites: names of the hook sites.

    Returns:
      An array [state, width]. The axis `width` concatenates the sites of the first checkpoint, then
      the sites of the second checkpoint, and so on.
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
