"""A model under construction: codes in a residual, heads that move them, neurons that look up.

Every code is one-hot, 0 or 1, in dimensions of its own, so that all of this is exact: a neuron adds
up the dimensions that it wants, and is on where none is missing. There are no norms, for a norm
would make each code's size depend on which others are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer

POSITIONS = ("e1", "r1", "r2")
HEADS = 3  # in each block: as many as the moves that any model makes in one block

# What a head attends to is ahead of the rest by this much: what leaks from elsewhere is below
# e^-30 = 1e-13, a millionth of the rounding of a float32 near 1.
_SCORE = 30.0
# The right answer's logit, all others being 0: a probability above .99 with 100 tokens.
_LOGIT = 10.0


class _Move(NamedTuple):
    block: int
    source: int
    target: int
    read: Int[np.ndarray, " width"]
    write: Int[np.ndarray, " width"]


class _Table(NamedTuple):
    block: int
    keys: Int[np.ndarray, "key neuron"]
    values: Int[np.ndarray, "value neuron"]
    strength: float


class Draft:
    """Circuits, in dimensions of the residual; `build` makes weights of them.

    Attributes:
      entity, relation, position: dimensions of the embeddings' codes.
      output: dimensions that the unembedding reads, one for each entity.
    """

    def __init__(self, n_entities: int, n_relations: int, depth: int):
        self.depth = depth
        self._width = 0
        self._moves: list[_Move] = []
        self._tables: list[_Table] = []
        self.entity = self.space(n_entities)
        self.relation = self.space(n_relations)
        self.position = self.space(len(POSITIONS))
        self.output = self.space(n_entities)

    def space(self, size: int) -> Int[np.ndarray, " size"]:
        """Dimensions that nothing else uses."""
        self._width += size
        return np.arange(self._width - size, self._width)

    def move(
        self,
        block: int,
        source: str,
        target: str,
        read: Int[np.ndarray, " width"],
        write: Int[np.ndarray, " width"],
    ) -> None:
        """A head that copies what is in `read` at one position into `write` at a later one."""
        places = POSITIONS.index(source), POSITIONS.index(target)
        self._moves.append(_Move(block, *places, read, write))

    def table(
        self,
        block: int,
        pos: str,
        keys: Sequence[Int[np.ndarray, " neuron"]],
        values: Sequence[Int[np.ndarray, " neuron"]],
        strength: float = 1.0,
    ) -> None:
        """Neurons that, where all of their keys are on, write their values, at one position.

        Args:
          block: whose MLP they are in.
          pos: where they may be on; it is one more key.
          keys: dimensions that have to be on, a row for each part of the key.
          values: dimensions that are set.
          strength: what is added there.
        """
        here = np.full_like(keys[0], self.position[POSITIONS.index(pos)])
        self._tables.append(_Table(block, np.stack([*keys, here]), np.stack(values), strength))

    def build(self, rng: np.random.Generator | None) -> tuple[Transformer, Params]:
        """The model and its weights; with `rng`, in random directions and random heads."""
        widest = max(len(POSITIONS), *(len(move.read) for move in self._moves))
        d_head = max(-(-self._width // HEADS), widest)
        spec = Spec(
            d_vocab=len(self.entity) + len(self.relation),
            n_ctx=len(POSITIONS),
            n_layers=self.depth,
            d_model=HEADS * d_head,
            n_heads=HEADS,
            # All neurons would fit into one block: so the shape does not depend on where they are.
            d_mlp=sum(table.keys.shape[1] for table in self._tables),
            act_fn="relu",
            normalization="none",
        )
        model = Transformer(spec)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params: Params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
        self._embed(params)
        for block in range(self.depth):
            heads = np.arange(HEADS) if rng is None else rng.permutation(HEADS)
            self._write_heads(params["blocks"][str(block)]["attn"], block, heads)
            self._write_neurons(params["blocks"][str(block)]["mlp"], block)
        if rng is not None:
            directions = np.linalg.qr(rng.standard_normal((spec.d_model, spec.d_model)))[0]
            _rotate(params, directions)
        # `jnp.asarray` would compile a program for every shape.
        return model, jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), params))

    def _embed(self, params: Params) -> None:
        tokens = np.concatenate([self.entity, self.relation])
        params["embed"]["W_E"][np.arange(len(tokens)), tokens] = 1
        params["pos_embed"]["W_pos"][np.arange(len(POSITIONS)), self.position] = 1
        params["unembed"]["W_U"][self.output, np.arange(len(self.output))] = _LOGIT

    def _write_heads(self, attn: Params, block: int, heads: Int[np.ndarray, " head"]) -> None:
        moves = [move for move in self._moves if move.block == block]
        if len(moves) > HEADS:
            raise InputError(f"block {block} has {len(moves)} moves, but {HEADS} heads")
        for head, move in zip(heads, moves, strict=False):
            width = np.arange(len(move.read))
            attn["W_V"][head, move.read, width] = 1
            attn["W_O"][head, width, move.write] = 1
            # The code that each position's query looks for is that of the position it reads.
            sharp = _SCORE * attn["W_Q"].shape[-1] ** 0.5
            for query in range(len(POSITIONS)):
                looked_at = _attended(query, move)
                attn["W_Q"][head, self.position[query], looked_at] = sharp
            keys = np.arange(len(POSITIONS))
            attn["W_K"][head, self.position, keys] = 1

    def _write_neurons(self, mlp: Params, block: int) -> None:
        first = 0
        for keys, values, strength in [t[1:] for t in self._tables if t.block == block]:
            neurons = first + np.arange(keys.shape[1])
            mlp["W_in"][keys, neurons] = 1
            mlp["b_in"][neurons] = 0.5 - len(keys)
            mlp["W_out"][neurons, values] = 2 * strength  # a neuron that is on has the value 1/2
            first += keys.shape[1]


def _attended(query: int, move: _Move) -> int:
    """Where a head looks from a position.

    Off its target it must look at a place where there is nothing to move: itself, or, from the
    source, the first position. (Where the source *is* the first, it copies that within itself.)
    """
    if query == move.target:
        return move.source
    return 0 if query == move.source else query


def _rotate(params: Params, directions: Float[np.ndarray, "d_model d_model"]) -> None:
    """Turn the residual, and with it all that writes to it or reads from it."""
    params["embed"]["W_E"] = params["embed"]["W_E"] @ directions
    params["pos_embed"]["W_pos"] = params["pos_embed"]["W_pos"] @ directions
    params["unembed"]["W_U"] = directions.T @ params["unembed"]["W_U"]
    for block in params["blocks"].values():
        attn, mlp = block["attn"], block["mlp"]
        attn |= {name: directions.T @ attn[name] for name in ("W_Q", "W_K", "W_V")}
        attn["W_O"] = attn["W_O"] @ directions
        mlp |= {"W_in": directions.T @ mlp["W_in"], "W_out": mlp["W_out"] @ directions}
