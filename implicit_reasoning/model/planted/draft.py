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
from jaxtyping import Bool, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.model.units import Head, Neuron

POSITIONS = ("e1", "r1", "r2")
HEADS = 3  # in each block: as many as the moves that any model makes in one block

# What a head attends to is ahead of the rest by this much: what leaks from elsewhere is below
# e^-30 = 1e-13, a millionth of the rounding of a float32 near 1.
_SCORE = 30.0
# The right answer's logit, all others being 0: a probability above .99 with 100 tokens.
_LOGIT = 10.0


class Move(NamedTuple):
    """A head that copies the code of a variable to a later position.

    Attributes:
      block: whose attention it is in.
      source, target: positions, by number.
      read, write: dimensions of the code at the source, and of its copy.
      variable: the name of what is copied.
    """

    block: int
    source: int
    target: int
    read: Int[np.ndarray, " width"]
    write: Int[np.ndarray, " width"]
    variable: str


class LookupTable(NamedTuple):
    """Neurons that look up: each is active where all of its keys are, and then writes its values.

    Attributes:
      block: whose MLP they are in.
      pos: the position, by number, where they may be active.
      keys, values: dimensions that are read and written, a column for each neuron.
      strength: what is added there.
      stores: a row for each neuron: entity and relations (e1, r1, ...) of its fact or chain; None
        where the neurons translate one code of an entity into another.
      asked: neurons without which some chain is not answered.
    """

    block: int
    pos: int
    keys: Int[np.ndarray, "key neuron"]
    values: Int[np.ndarray, "value neuron"]
    strength: float
    stores: Int[np.ndarray, "neuron part"] | None
    asked: Bool[np.ndarray, " neuron"]


class Draft:
    """Moves and look-ups, in dimensions of the residual; `build` makes weights of them.

    Attributes:
      moves, tables: what was added so far.
      heads: of each move, and
      neurons: of each table, in order; known once the model is built.
      entity, relation, position: dimensions of the embeddings' codes.
      output: dimensions that the unembedding reads, one for each entity.
    """

    def __init__(self, n_entities: int, n_relations: int, depth: int):
        self.depth = depth
        self._width = 0
        self.moves: list[Move] = []
        self.tables: list[LookupTable] = []
        self.heads: dict[int, Head] = {}
        self.neurons: dict[int, list[Neuron]] = {}
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
        variable: str,
    ) -> None:
        """Add a head that copies what is in `read` at one position into `write` at a later one."""
        places = POSITIONS.index(source), POSITIONS.index(target)
        self.moves.append(Move(block, *places, read, write, variable))

    def table(
        self,
        block: int,
        pos: str,
        keys: Sequence[Int[np.ndarray, " neuron"]],
        values: Sequence[Int[np.ndarray, " neuron"]],
        strength: float = 1.0,
        *,
        stores: Int[np.ndarray, "neuron part"] | None = None,
        asked: Bool[np.ndarray, " neuron"] | None = None,
    ) -> None:
        """Add neurons that, where all of their keys are on, write their values, at one position.

        Args:
          block: whose MLP they are in.
          pos: where they may be on; it is one more key.
          keys: dimensions that have to be on, a row for each part of the key.
          values: dimensions that are set.
          strength: what is added there.
          stores: what each neuron stores; see `Table`.
          asked: neurons that some chain needs; all by default.
        """
        here = np.full_like(keys[0], self.position[POSITIONS.index(pos)])
        asked = np.ones(len(here), bool) if asked is None else asked
        together = np.stack([*keys, here]), np.stack(values), strength
        self.tables.append(LookupTable(block, POSITIONS.index(pos), *together, stores, asked))

    def build(self, rng: np.random.Generator | None) -> tuple[Transformer, Params]:
        """The model and its weights; with `rng`, in random directions and random heads."""
        widest = max(len(POSITIONS), *(len(move.read) for move in self.moves))
        d_head = max(-(-self._width // HEADS), widest)
        spec = Spec(
            d_vocab=len(self.entity) + len(self.relation),
            n_ctx=len(POSITIONS),
            n_layers=self.depth,
            d_model=HEADS * d_head,
            n_heads=HEADS,
            # All neurons would fit into one block: so the shape does not depend on where they are.
            d_mlp=sum(table.keys.shape[1] for table in self.tables),
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
        numbers = [number for number, move in enumerate(self.moves) if move.block == block]
        if len(numbers) > HEADS:
            raise InputError(f"block {block} has {len(numbers)} moves, but {HEADS} heads")
        for head, number in zip(heads, numbers, strict=False):
            move = self.moves[number]
            self.heads[number] = Head(block, int(head))
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
        for number, table in enumerate(self.tables):
            if table.block != block:
                continue
            neurons = first + np.arange(table.keys.shape[1])
            self.neurons[number] = [Neuron(block, int(neuron)) for neuron in neurons]
            mlp["W_in"][table.keys, neurons] = 1
            mlp["b_in"][neurons] = 0.5 - len(table.keys)
            # A neuron that is on has the value 1/2.
            mlp["W_out"][neurons, table.values] = 2 * table.strength
            first += len(neurons)


def _attended(query: int, move: Move) -> int:
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
