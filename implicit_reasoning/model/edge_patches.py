"""The logits after patching each edge of a model alone, for all edges in one pass over the blocks.

In each patched run, one receiver reads another value of one sender. Its other inputs are those of
the clean run, and all later nodes run on what the receiver then writes. A run therefore differs
from the clean run only in one head or MLP of the receiver's block, at the patched position and
later, and in all later blocks. Only this part is computed:

- The norm and the projection of a changed input are shared by all heads of a block.
- A changed query, key or value changes `hook_z` of its own head only.
- The run joins the batch of its block's MLP, and later blocks run all cells at once
  (`Block.run_cones`).

For a model with two blocks and three positions, this takes about a seventh of the FLOPs of one
forward pass for each edge.

Source of the definition: Conmy et al. 2023, "ACDC"; Miller et al. 2024, AutoCircuit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.blocks.cells import Cones, Start, flatten_cells, unflatten_cells
from implicit_reasoning.model.blocks.gpt2 import GPT2Block
from implicit_reasoning.model.cones import Cache, cache_sites
from implicit_reasoning.model.edits import HookContext
from implicit_reasoning.model.graph import INPUTS, EdgeGraph
from implicit_reasoning.model.transformer import Network, Params, Transformer

_NO_HOOKS = HookContext()


class EdgeCells(NamedTuple):
    """The edges and positions of patched runs, in the order in which their logits are returned.

    Attributes:
      edge: the index of the edge in `EdgeGraph.edges`.
      pos: the index of the position; 0 if a run patches the edge at all positions.
    """

    edge: Int[np.ndarray, " cell"]
    pos: Int[np.ndarray, " cell"]


def edge_cells(graph: EdgeGraph, *, by_position: bool) -> EdgeCells:
    """Return the edges to patch: all that are alive, at each position or at all positions.

    Args:
      graph: the edge graph.
      by_position: whether each run patches one position.
    """
    alive = graph.alive if by_position else graph.alive.any(axis=1, keepdims=True)
    return EdgeCells(*np.nonzero(alive))


def edge_cache_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites (hook points) of the clean run that `edge_logits` reads."""
    blocks = [f"blocks.{n}." for n in range(model.spec.depth)]
    inside = [f"{block}{name}" for block in blocks for name in ("attn.hook_z", "hook_resid_mid")]
    return (*cache_sites(model), *inside)


def edge_logits(
    model: Transformer,
    params: Params,
    cache: Cache,
    change: Float[Array, "batch pos sender d_model"],
    graph: EdgeGraph,
    *,
    by_position: bool = True,
) -> Float[Array, "cell batch d_vocab"]:
    """Compute the logits at the last position after patching each edge alone.

    Args:
      model: the model.
      params: the parameters of one model.
      cache: the sites `edge_cache_sites(model)` of the clean run, as `forward_at` returns them.
      change: for each sender, the value to patch minus the clean value. `sender_outputs` of two
        runs gives both values.
      graph: the edge graph.
      by_position: whether each run patches one position, or an edge at all positions.

    Returns:
      The logits of each run, in the order of `edge_cells(graph, by_position=by_position)`.
    """
    patched = _PatchedEdges(model, params, cache, change, graph, by_position)
    for layer in range(model.spec.depth):
        patched.enter_block(layer)
    return patched.logits()


class _PatchedEdges:
    """The patched runs (cells) that have started in the blocks so far.

    `cones` holds their residual streams by place `(layer, pos)`, and `cells` holds the number
    `edge * n_pos + pos` of each cell in the same order.
    """

    def __init__(
        self,
        model: Transformer,
        params: Params,
        cache: Cache,
        change: Array,
        graph: EdgeGraph,
        by_position: bool,
    ):
        self._network: Network = model.bind(params)
        self._depth, self._cache, self._change = model.spec.depth, cache, change
        self._graph, self._by_position = graph, by_position
        self._cones: Cones = {}
        self._cells: dict[Start, list[Int[np.ndarray, " cell"]]] = {}

    @property
    def _places(self) -> list[slice]:
        """The positions that one run patches together."""
        n_pos = self._graph.n_pos
        if not self._by_position:
            return [slice(0, n_pos)]
        return [slice(pos, pos + 1) for pos in range(n_pos)]

    def enter_block(self, layer: int) -> None:
        """Run the cells of earlier blocks through a block, and add the cells that start in it."""
        block, last = self._network.block(layer), layer == self._depth - 1
        assert isinstance(block, GPT2Block)
        clean = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in self._cache.items()
            if name.startswith(f"blocks.{layer}.")
        }
        if self._cones:
            self._cones = block.run_cones(self._cones, clean, only_end=last)
        starting = self._into_heads(block, layer, clean, last)
        rows = flatten_cells(starting)
        mid = {at: self._mid(clean, cells) for at, cells in starting.items()}
        after = block.after_attention(flatten_cells(mid), rows, _NO_HOOKS)
        self._join(layer, unflatten_cells(after, starting))
        self._into_mlp(block, layer, clean, last)

    def _mid(self, clean: Mapping[str, Array], like: Array) -> Array:
        """Return the clean residual stream after attention, at the positions of some cells."""
        return jnp.broadcast_to(clean["hook_resid_mid"][:, -like.shape[2] :], like.shape)

    def _into_heads(
        self, block: GPT2Block, layer: int, clean: Mapping[str, Array], last: bool
    ) -> Cones:
        """Return the changes of the residual stream after attention, for edges into heads."""
        graph = self._graph
        count = graph.senders_before(graph.receivers_of(layer, "q").start)
        inputs = clean["hook_resid_pre"][:, :, None] + self._change[:, :, :count]
        read = block.ln1(inputs, _NO_HOOKS)
        batch, n_pos = read.shape[:2]
        flat = read.reshape(batch, n_pos * count, -1)
        projected = dict(zip(INPUTS, block.attn.project(flat, flat, flat, _NO_HOOKS), strict=True))
        own = {part: _pad(clean[f"attn.hook_{part}"], n_pos) for part in INPUTS}
        z = _pad(clean["attn.hook_z"], n_pos)
        starting: Cones = {}
        for place in self._places:
            first = n_pos - 1 if last else place.start
            # The query of the last block is read at the last position only.
            parts = [part for part in INPUTS if part != "q" or not last or place.stop == n_pos]
            found = []
            for part in parts:
                new = projected[part].reshape(batch, n_pos, count, *own[part].shape[2:])
                changed = self._exchanged(own, part, new, place)
                q, k, v = (changed[name] for name in INPUTS)
                positions = jnp.arange(first, n_pos)[None]
                mixed = block.attn.mix(q[:, first:], k, v, _NO_HOOKS, query_positions=positions)
                mixed = mixed.reshape(count, batch, *mixed.shape[1:]) - z[None, :, first:]
                found.append(mixed)
                self._note(layer, place, graph.number[:count, graph.receivers_of(layer, part)])
            starting[layer, place.start] = _results(block, jnp.concatenate(found))
        return starting

    def _exchanged(
        self, own: Mapping[str, Array], part: str, new: Array, place: slice
    ) -> dict[str, Array]:
        """Return q, k and v of all senders' runs, in which one of them has a new value at a place.

        Each is [sender and batch, pos, head, d_head].
        """
        count = new.shape[2]
        found = {name: jnp.broadcast_to(x, (count, *x.shape)) for name, x in own.items()}
        found[part] = found[part].at[:, :, place].set(jnp.moveaxis(new[:, place], 2, 0))
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in found.items()}

    def _into_mlp(
        self, block: GPT2Block, layer: int, clean: Mapping[str, Array], last: bool
    ) -> None:
        """Add the cells of edges into the MLP of a block."""
        graph = self._graph
        receivers = graph.receivers_of(layer, "mlp")
        count = graph.senders_before(receivers.start)
        places = self._places[-1:] if last else self._places
        starting: Cones = {}
        for place in places:
            rows = slice(graph.n_pos - 1, graph.n_pos) if last else place
            mid = _at(clean["hook_resid_mid"], rows, graph.n_pos)
            change = jnp.moveaxis(self._change[:, rows, :count], 2, 0)
            read = block.ln2(mid[None] + change, _NO_HOOKS)
            out = block.mlp(read.reshape(-1, *read.shape[2:]), _NO_HOOKS).reshape(read.shape)
            starting[layer + 1, place.start] = mid[None] + out
            self._note(layer + 1, place, graph.number[:count, receivers])
        self._join(layer + 1, starting)

    def logits(self) -> Float[Array, "cell batch d_vocab"]:
        """Return the logits of all cells, edges into the logits included, in the final order."""
        graph, end = self._graph, self._places[-1]
        final = self._cache[f"blocks.{self._depth - 1}.hook_resid_post"][:, -1:]
        starting = final[None] + jnp.moveaxis(self._change[:, -1:], 2, 0)
        self._join(self._depth, {(self._depth, end.start): starting})
        self._note(self._depth, end, graph.number[:, -1:])
        ends = {at: cells[:, :, -1:] for at, cells in self._cones.items()}
        logits = unflatten_cells(self._network.readout(flatten_cells(ends), _NO_HOOKS), ends)
        found = jnp.concatenate([logits[at][:, :, 0] for at in ends])
        made = np.concatenate([np.concatenate(self._cells[at]) for at in ends])
        wanted = edge_cells(graph, by_position=self._by_position)
        order = {number: row for row, number in enumerate(made.tolist())}
        numbers = wanted.edge * graph.n_pos + wanted.pos
        rows = [order[number] for number in numbers.tolist()]
        return found[np.array(rows)]

    def _note(self, layer: int, place: slice, edges: Int[np.ndarray, "sender receiver"]) -> None:
        """Note the numbers of new cells, of which the last axis of `edges` varies fastest."""
        numbers = edges.ravel() * self._graph.n_pos + place.start
        self._cells.setdefault((layer, place.start), []).append(numbers)

    def _join(self, layer: int, starting: Cones) -> None:
        """Append new cells to the cells of the same place, at their common positions."""
        for at, cells in starting.items():
            if at in self._cones:
                cells = jnp.concatenate([self._cones[at], cells])
            self._cones[at] = cells


def _results(
    block: GPT2Block, z: Float[Array, "cell batch pos head d_head"]
) -> Float[Array, "cell_head batch pos d_model"]:
    """Return the change of the output of each head, with a cell of its own for each head."""
    weight = block.attn.W_O[...].astype(z.dtype)
    written = jnp.einsum("cbphe,hed->chbpd", z, weight, precision=block.attn.precision)
    return written.reshape(-1, *written.shape[2:])


def _pad(value: Float[Array, "batch _pos ..."], n_pos: int) -> Float[Array, "batch pos ..."]:
    """Repeat a value that has only the last position, so that it has all positions.

    The values at the other positions are not read.
    """
    missing = n_pos - value.shape[1]
    return jnp.concatenate([value[:, :1]] * missing + [value], axis=1) if missing else value


def _at(value: Float[Array, "batch _pos ..."], rows: slice, n_pos: int) -> Array:
    """Return some positions of a value that may have only the last position."""
    return _pad(value, n_pos)[:, rows]
