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

from implicit_reasoning.analysis.facts import first_of_each, fold_of
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

    rows: Int[np.ndarray, "row"]
    tokens: Int[np.ndarray, "row pos"]
    row: Int[np.ndarray, "state"]
    pos: Int[np.ndarray, "state"]

    def only(self, keep: Bool[np.ndarray, "state"]) -> Places:
        """Some states, and the rows that they need."""
        used, row = np.unique(self.row[keep], return_inverse=True)
        return Places(self.rows[used], self.tokens[used], row, self.pos[keep])

    def counts(self, n_pos: int) -> Int[np.ndarray, "pos"]:
        """How many states there are at each position."""
        return np.bincount(self.pos, minlength=n_pos)


def distinct_places(
    dataset: Dataset, rows: Int[np.ndarray, "row"], positions: Sequence[str] = ()
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
    there = first_of_each(np.where(inside, keys, -1)) & inside & wanted[:, None]
    pos, row = np.nonzero(there)
    return Places(rows, tokens, row, pos).only(np.ones(len(row), bool))


def split_places(dataset: Dataset, places: Places) -> Bool[np.ndarray, "state"]:
    """Which states are held out: whole prefixes, and with a first fact all that goes on from it.

    From the second position on a state goes where the prefix of two tokens goes, so that nothing
    that is trained on contains, or is contained in, a held-out fact; at the first, by its token.
    """
    begun = prefix_keys(places.tokens, dataset.n_vocab)[:, :2].T
    folds = np.stack([fold_of(line, _HELD_OUT) for line in begun])
    held_out: np.ndarray = folds[np.minimum(places.pos, len(folds) - 1), places.row] == 0
    return held_out


def states(
    model: Transformer, params: Params, places: Places, sites: Sequence[str]
) -> Float[Array, "site state width"]:
    """What passes each site at each place; traced. Sites of one width.

    Rows go through the model some at a time, so that memory is theirs and not the dataset's.
    """
    size = min(_AT_ONCE, len(places.tokens))
    n_parts = -(-len(places.tokens) // size)
    tokens = jnp.asarray(np.resize(places.tokens, (n_parts, size, places.tokens.shape[1])))

    def part(tokens: Array) -> Array:
        _, found = model.forward(params, tokens, sites=tuple(sites))
        return jnp.stack([found[site] for site in sites])

    by_part = jax.lax.map(part, tokens)  # [part, site, row, pos, width]
    by_site = jnp.moveaxis(by_part, 1, 0)
    flat = by_site.reshape(len(sites), n_parts * size, *by_site.shape[3:])
    return flat[:, places.row, places.pos]
