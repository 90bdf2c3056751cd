"""A planted model under construction: heads that copy codes, and neurons that look them up.

A code represents the value of a variable, such as e1, in the residual stream. Every code is a
one-hot vector with values 0 and 1, in dimensions that no other code uses, so all computations are
exact. A neuron adds up its key dimensions and is active if all of them are 1. A planted model has
no norms, because a norm would make the size of each code depend on the other codes.
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
HEADS = 3  # per block; no planted model makes more moves than this in one block

# The attention score of the attended position; all other scores are 0. The attention to all other
# positions is then below e^-30 = 1e-13, a millionth of the rounding error of a float32 near 1.
_SCORE = 30.0
# The logit of the right answer; all other logits are 0. With 100 tokens, the probability of the
# right answer is then above .99.
_LOGIT = 10.0


class Move(NamedTuple):
    """A head that copies the code of a variable to a later position.

    Attributes:
      block: the block of the head.
      source, target: the index of the position to copy from, and of the position to copy to.
      read, write: the dimensions of the code at the source, and those of its copy at the target.
      variable: the name of the copied variable.
    """

    block: int
    source: int
    target: int
    read: Int[np.ndarray, " width"]
    write: Int[np.ndarray, " width"]
    variable: str


class LookupTable(NamedTuple):
    """A table in the neurons of one MLP; each neuron stores one entry.

    A neuron is active if all its key dimensions are 1. An active neuron adds `strength` to each of
    its value dimensions.

    Attributes:
      block: the block of the neurons.
      pos: index of the only position where the neurons can be active.
      keys, values: the key dimensions and the value dimensions; one column for each neuron.
      strength: the number that an active neuron adds to each of its value dimensions.
      stores: the fact or chain that each neuron stores, as a row of the entity and the relations
        (e1, r1, ...). None if the neurons only translate one code of an entity into another code of
        the same entity.
      asked: for each neuron, whether the answer of some chain needs the neuron.
    """

    block: int
    pos: int
    keys: Int[np.ndarray, "key neuron"]
    values: Int[np.ndarray, "value neuron"]
    strength: float
    stores: Int[np.ndarray, "neuron part"] | None
    asked: Bool[np.ndarray, " neuron"]


class Draft:
    """A list of moves and look-up tables, which `build` compiles into the weights of a model.

    Attributes:
      moves, tables: the moves and tables that were added so far.
      heads: for the index of each move, its head; filled by `build`.
      neurons: for the index of each table, its neurons; filled by `build`.
      entity, relation, position: dimensions of the codes that the embeddings write.
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
        """Allocate dimensions of the residual stream that nothing else uses."""
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
        """Add a head that copies a code from one position to another; see `Move`."""
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
        """Add a table of neurons; see `LookupTable`.

        Args:
          block: the block of the neurons.
          pos: the name of the position. Its code becomes an additional key of every neuron.
          keys: for each part of the key, the dimension that each neuron requires to be 1.
          values: for each part of the value, the dimension to which each neuron writes.
          strength: the number that an active neuron adds to each of its value dimensions.
          stores: what each neuron stores.
          asked: for each neuron, whether the answer of some chain needs the neuron; by default true
            for all neurons.
        """
        here = np.full_like(keys[0], self.position[POSITIONS.index(pos)])
        asked = np.ones(len(here), bool) if asked is None else asked
        together = np.stack([*keys, here]), np.stack(values), strength
        self.tables.append(LookupTable(block, POSITIONS.index(pos), *together, stores, asked))

    def build(self, rng: np.random.Generator | None) -> tuple[Transformer, Params]:
        """Return the model and its weights.

        Args:
          rng: random generator for a rotation of the residual stream and for the order of the heads
            in each block. None: no rotation, and heads in the order of the moves.

        Raises:
          InputError: a block has more moves than heads.
        """
        widest = max(len(POSITIONS), *(len(move.read) for move in self.moves))
        d_head = max(-(-self._width // HEADS), widest)
        spec = Spec(
            d_vocab=len(self.entity) + len(self.relation),
            n_ctx=len(POSITIONS),
            n_layers=self.depth,
            d_model=HEADS * d_head,
            n_heads=HEADS,
            # Every block has room for all neurons, so the blocks of the tables do not change the
            # shapes.
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
        # `jnp.asarray` would compile one program per shape.
        return model, jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), params))

    def _embed(self, params: Params) -> None:
        tokens = np.concatenate([self.entity, self.relation])
        params["embed"]["W_E"][np.arange(len(tokens)), tokens] = 1
        params["pos_embed"]["W_pos"][np.arange(len(POSITIONS)), self.position] = 1
        params["unembed"]["W_U"][self.output, np.arange(len(self.output))] = _LOGIT

    def _write_heads(self, attn: Params, block: int, heads: Int[np.ndarray, " head"]) -> None:
        numbers = [number for number, move in enumerate(self.moves) if move.block == block]
        if len(numbers) > HEADS:
            raise InputError(
                f"block {block} has {len(numbers)} moves, but only {HEADS} heads; each move needs "
                "its own head"
            )
        for head, number in zip(heads, numbers, strict=False):
            move = self.moves[number]
            self.heads[number] = Head(block, int(head))
            width = np.arange(len(move.read))
            attn["W_V"][head, move.read, width] = 1
            attn["W_O"][head, width, move.write] = 1
            # The query at a position matches the position code of the position that it attends to.
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
            # The activation of an active neuron is 1/2.
            mlp["W_out"][neurons, table.values] = 2 * table.strength
            first += len(neurons)


def _attended(query: int, move: Move) -> int:
    """Return the position that a head attends to from the position `query`.

    From its target, a head attends to its source. From any other position, it should attend to a
    position that is not the source, where there is nothing to copy. From its source, a head attends
    to the first position. From all remaining positions, it attends to the same position. (If the
    source is the first position, the head also copies the code within that position.)
    """
    if query == move.target:
        return move.source
    return 0 if query == move.source else query


def _rotate(params: Params, directions: Float[np.ndarray, "d_model d_model"]) -> None:
    """Rotate the residual stream, and all weights that read from it or write to it."""
    params["embed"]["W_E"] = params["embed"]["W_E"] @ directions
    params["pos_embed"]["W_pos"] = params["pos_embed"]["W_pos"] @ directions
    params["unembed"]["W_U"] = directions.T @ params["unembed"]["W_U"]
    for block in params["blocks"].values():
        attn, mlp = block["attn"], block["mlp"]
        attn |= {name: directions.T @ attn[name] for name in ("W_Q", "W_K", "W_V")}
        attn["W_O"] = attn["W_O"] @ directions
        mlp |= {"W_in": directions.T @ mlp["W_in"], "W_out": mlp["W_out"] @ directions}
