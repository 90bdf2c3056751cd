"""Distinct states to train on and to measure on, from the model's own forward pass.

A state depends on its prefix alone, so every distinct prefix counts once, however many rows it
begins; and what a dictionary is measured on are states of prefixes that it was not trained on. They
are computed on the device where they are used, and never written anywhere.
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

_HELD_OUT = 5  # one prefix in so many is
_AT_ONCE = 512  # rows of a forward pass


class Places(NamedTuple):
    """Where states are: a position of a row of tokens each, ordered by position.

    Attributes:
      rows: int [row], of the dataset.
      tokens: int32 [row, pos], the prompts.
      row: int [state], a number of `tokens`.
      pos: int [state].
    """

    rows: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, "row pos"]
    row: Int[np.ndarray, " state"]
    pos: Int[np.ndarray, " state"]

    def only(self, keep: Bool[np.ndarray, " state"]) -> Places:
        """Some states, and the rows that they need."""
        used, row = np.unique(self.row[keep], return_inverse=True)
        return Places(self.rows[used], self.tokens[used], row, self.pos[keep])

    def counts(self, n_pos: int) -> Int[np.ndarray, " pos"]:
        """How many states there are at each position."""
        return np.bincount(self.pos, minlength=n_pos)


def distinct_places(
    dataset: Dataset, rows: Int[np.ndarray, " row"], positions: Sequence[str] = ()
) -> Places:
    """The first row with each distinct prefix, at each position of a prompt.

    Args:
      dataset: of the run.
      rows: to look at; shorter prompts have fewer positions.
      positions: names of the positions that are wanted; all by default.

    Raises:
      InputError: there is no such position.
    """
    missing = [name for name in positions if name not in dataset.positions]
    if missing:
        raise InputError(
            f"there is no position {missing[0]!r}; there are {', '.join(dataset.positions)}"
        )
    tokens = dataset.tokens[rows, : len(dataset.positions)]
    keys = prefix_keys(tokens, dataset.n_vocab).T
    wanted = np.array([not positions or name in positions for name in dataset.positions])
    inside = np.arange(len(keys))[:, None] <= dataset.truth["position"][rows]
    # Beyond its prompt a row has no state: its keys there are a number that nothing else has.
    there = first_occurrences(np.where(inside, keys, -1)) & inside & wanted[:, None]
    pos, row = np.nonzero(there)
    return Places(rows, tokens, row, pos).only(np.ones(len(row), bool))


class Split(NamedTuple):
    """All distinct states of a dataset, and which of them a dictionary may be trained on.

    Attributes:
      places: of all rows' prefixes.
      trained: bool [state], in training rows, and not held out.
      held_out: bool [state].
    """

    places: Places
    trained: Bool[np.ndarray, " state"]
    held_out: Bool[np.ndarray, " state"]


def split_states(dataset: Dataset, positions: Sequence[str] = ()) -> Split:
    """Hold out whole prefixes, and with a first fact all that goes on from it.

    From the second position on a state goes where the prefix of two tokens goes, so that nothing
    that is trained on contains, or is contained in, a held-out fact; at the first, by its token.
    It is dealt out over the states of all rows, so that training and measuring have one split.

    Args:
      dataset: of the run.
      positions: see `distinct_places`.
    """
    places = distinct_places(dataset, np.arange(len(dataset)), positions)
    begun = prefix_keys(places.tokens, dataset.n_vocab)[:, :2].T
    folds = np.stack([assign_folds(line, _HELD_OUT) for line in begun])
    held_out = folds[np.minimum(places.pos, len(folds) - 1), places.row] == 0
    # Training rows come first, and a place is in the first row that has its prefix.
    seen = places.rows[places.row] < dataset.n_train
    return Split(places, seen & ~held_out, held_out)


def states(
    model: Transformer, places: Places, params: Params, sites: Sequence[str]
) -> Float[Array, "state width"]:
    """What passes some sites at each place, at some checkpoints, in one vector; traced.

    Rows go through the model some at a time, so that memory is theirs and not the dataset's.

    Args:
      model: static.
      places: on the host.
      params: stacked, of one checkpoint or more.
      sites: of one width.

    Returns:
      Checkpoint by checkpoint, in each site by site.
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
