"""The edge graph of a model: nodes, edges, and a forward pass with a mask for every edge.

The residual stream is a sum. Senders write terms into the sum: the embeddings (`input`), every head
(`a0.h3`) and every MLP (`m1`). Receivers read the sum: the query, key and value inputs of every
head (`a2.h1<q>`, ...), every MLP (`m1`) and the unembedding with its norm (`logits`). An edge is
the term of one sender in the input of one receiver, at one position or at all positions. The output
bias `b_O` of attention is a constant and belongs to no edge.

`forward_edges` is a forward pass in which some edges carry other values than those of the run, such
as values of a run on a corrupt prompt. The mask is an argument that may be traced, so all subsets
of edges are one compiled program.

    graph = EdgeGraph(model.spec, n_pos=3)
    other = sender_outputs(model, params, corrupt)[1]
    live = graph.mask(["a0.h3->m1", "m1->logits"])  # the circuit; all other edges are patched
    logits, _ = forward_edges(model, params, clean, graph, live, other)

Sources: Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching" (edges of the
residual stream); Conmy et al. 2023, "ACDC"; Hanna et al. 2024, EAP-IG (names of nodes and edges);
Miller et al. 2024, AutoCircuit (a mask for every edge in one forward pass).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.edits import Edit, Edits, HookContext, merge_edits
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.model.units import Edge
from implicit_reasoning.model.wirings import forward_at

INPUTS = "qkv"
"""The inputs of a head, in the order of the receivers of a block."""


@dataclass(frozen=True)
class EdgeGraph:
    """The senders, receivers and edges of a model with GPT-2's blocks, for prompts of one length.

    The logits are read at the last position. An edge at a position is *alive* if a change of its
    value can change these logits. For example, no edge into the last MLP is alive at an earlier
    position, because the last block is the only reader of this MLP.

    Arrays of masks and scores have the axes `[edge, pos]`. They have one entry for each edge of
    `edges` and each position, and entries that are not alive have no effect. An axis `pos` of
    length 1 means all positions together.

    Attributes:
      spec: the spec of the model.
      n_pos: the number of positions of the prompts.

    Raises:
      InputError: the model has other blocks than GPT-2's, or cannot read `n_pos` positions.
    """

    spec: Spec
    n_pos: int

    def __post_init__(self) -> None:
        require_gpt2(self.spec, "an edge graph")
        if not 1 <= self.n_pos <= self.spec.n_ctx:
            raise InputError(
                f"n_pos is {self.n_pos}; the model reads prompts of 1 to {self.spec.n_ctx} tokens"
            )

    @functools.cached_property
    def senders(self) -> tuple[str, ...]:
        """The names of all senders, in forward order: `input`, then heads and MLP of each block."""
        blocks = ((*(f"a{n}.h{h}" for h in self._heads), f"m{n}") for n in range(self._depth))
        return ("input", *(name for block in blocks for name in block))

    @functools.cached_property
    def receivers(self) -> tuple[str, ...]:
        """The names of all receivers, in forward order.

        The receivers of a block are the query inputs of all heads, the key inputs, the value
        inputs, and the MLP. The last receiver is `logits`.
        """
        inputs = [
            [f"a{n}.h{h}<{x}>" for x in INPUTS for h in self._heads] for n in range(self._depth)
        ]
        return (*(name for n in range(self._depth) for name in (*inputs[n], f"m{n}")), "logits")

    @functools.cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, ordered by receiver and then by sender."""
        return tuple(
            Edge(self.senders[sender], self.receivers[receiver])
            for sender, receiver in zip(self.sender, self.receiver, strict=True)
        )

    @functools.cached_property
    def sender(self) -> Int[np.ndarray, " edge"]:
        """The index of the sender of each edge."""
        return np.concatenate([np.arange(self.senders_before(r)) for r in self._receivers])

    @functools.cached_property
    def receiver(self) -> Int[np.ndarray, " edge"]:
        """The index of the receiver of each edge."""
        return np.concatenate([np.full(self.senders_before(r), r) for r in self._receivers])

    @functools.cached_property
    def number(self) -> Int[np.ndarray, "sender receiver"]:
        """The index of the edge from each sender to each receiver; -1 if there is no edge."""
        table = np.full((len(self.senders), len(self.receivers)), -1)
        table[self.sender, self.receiver] = np.arange(len(self.sender))
        return table

    @functools.cached_property
    def alive(self) -> Bool[np.ndarray, "edge pos"]:
        """Whether a change of the edge at the position can change the logits.

        The first position attends only to itself, so its queries have no effect.
        """
        last, pos = self._depth - 1, np.arange(self.n_pos)
        rows = []
        for edge in self.edges:
            query = edge.receiver.endswith("<q>")
            read = pos >= query
            if edge.receiver in ("logits", f"m{last}", *(f"a{last}.h{h}<q>" for h in self._heads)):
                read &= pos == self.n_pos - 1
            if edge.receiver.endswith("<k>"):
                read &= self.n_pos > 1
            rows.append(read)
        return np.array(rows)

    def senders_before(self, receiver: int) -> int:
        """Return the number of senders that a receiver reads.

        These senders are the first ones in `senders`.
        """
        per_block = len(INPUTS) * self.spec.n_heads + 1
        block, within = divmod(receiver, per_block)
        whole = 1 + block * (self.spec.n_heads + 1)
        return whole + (self.spec.n_heads if within == per_block - 1 else 0)

    def receivers_of(self, layer: int, part: str) -> slice:
        """Return the receivers of a block, as a slice of `receivers`.

        Args:
          layer: the unrolled depth of the block.
          part: `q`, `k`, `v` (one receiver for each head) or `mlp`.
        """
        heads = self.spec.n_heads
        first = layer * (len(INPUTS) * heads + 1)
        if part == "mlp":
            start = first + len(INPUTS) * heads
            return slice(start, start + 1)
        start = first + INPUTS.index(part) * heads
        return slice(start, start + heads)

    def index(self, edge: Edge | str) -> int:
        """Return the index of an edge in `edges`.

        Raises:
          InputError: the model has no such edge.
        """
        edge = Edge.parse(edge) if isinstance(edge, str) else edge
        try:
            return self._by_name[edge]
        except KeyError:
            raise InputError(
                f"a model with {self._depth} blocks of {self.spec.n_heads} heads has no edge {edge}"
            ) from None

    def mask(self, edges: Iterable[Edge | str]) -> Float[np.ndarray, "edge 1"]:
        """Return a mask that is 1 for the given edges at all positions, and 0 for all others.

        Raises:
          InputError: the model has no such edge.
        """
        mask = np.zeros((len(self.edges), 1), np.float32)
        mask[[self.index(edge) for edge in edges]] = 1
        return mask

    def node_mask(self, nodes: Float[Array, "sender pos"]) -> Float[Array, "edge pos"]:
        """Return the mask in which every edge has the value of its sender."""
        return nodes[self.sender]

    @property
    def _depth(self) -> int:
        return self.spec.depth

    @property
    def _heads(self) -> range:
        return range(self.spec.n_heads)

    @property
    def _receivers(self) -> range:
        return range(len(self.receivers))

    @functools.cached_property
    def _by_name(self) -> dict[Edge, int]:
        return {edge: index for index, edge in enumerate(self.edges)}


def sender_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites (hook points) that contain the outputs of the senders, in forward order."""
    blocks = [f"blocks.{n}." for n in range(model.spec.depth)]
    written = [
        f"{block}{name}" for block in blocks for name in ("attn.hook_result", "hook_mlp_out")
    ]
    return ("blocks.0.hook_resid_pre", *written)


def receiver_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites (hook points) of the inputs of the receivers, in forward order."""
    names = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
    blocks = [f"blocks.{n}.{name}" for n in range(model.spec.depth) for name in names]
    return (*blocks, model.resid_sites[-1])


def sender_outputs(
    model: Transformer,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch pos"],
    *,
    edits: Edits | None = None,
) -> tuple[Float[Array, "batch d_vocab"], Float[Array, "batch pos sender d_model"]]:
    """Run the model, and return the logits at the last position and the outputs of all senders.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts.
      edits: edits of the run.
    """
    sites = sender_sites(model)
    logits, values = model.forward(params, tokens, edits=edits, sites=sites)
    return logits[:, -1], jnp.concatenate([_by_sender(values[site]) for site in sites], axis=2)


def forward_edges(
    model: Transformer,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch pos"],
    graph: EdgeGraph,
    live: Float[Array | np.ndarray, " edge #pos"],
    other: Float[Array, "batch pos sender d_model"],
    *,
    edits: Edits | None = None,
    sites: Collection[str] = (),
) -> tuple[Float[Array, "batch 1 d_vocab"], dict[str, Array]]:
    """Run the model with a mask for every edge.

    The input of a receiver is the sum over its senders of `live * own + (1 - live) * other`. `own`
    is the output of the sender in this run, so the change of an edge reaches all later nodes. If
    all edges are live, the logits are those of `Transformer.forward` at the last position.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts.
      graph: the edge graph of the model, for prompts of this length.
      live: for each edge, the weight of the run's own value, from 0 to 1. It may be traced.
      other: for each sender, the value that replaces its output, as from `sender_outputs`.
      edits: further edits. At a receiver's site, they are applied after the exchange of edges.
      sites: names of the sites whose (edited) values are returned. In the last block, all sites
        except keys and values contain only the last position.

    Returns:
      The logits at the last position, and the values of the sites.

    Raises:
      InputError: the mask does not have one row for each edge of the graph, or the prompts have
        another length than the graph.
    """
    _check_edges(graph, live, tokens.shape[1])
    own = merge_edits(edge_edits(model, graph, jnp.asarray(live), other), edits or {})
    wanted = tuple(dict.fromkeys((*sites, *sender_sites(model))))
    logits, values = forward_at(model, params, tokens, edits=own, sites=wanted)
    return logits, {site: values[site] for site in sites}


class BlockStart(NamedTuple):
    """The state of a run at the start of a block, for `forward_edges_from`.

    Attributes:
      layer: the unrolled depth of the block. The number of blocks means the end of the last block.
      resid: the residual stream at the start of the block.
      own: the outputs of all senders. Those of the block and of later blocks are not read.
    """

    layer: int
    resid: Float[Array, "batch pos d_model"]
    own: Float[Array, "batch pos sender d_model"]


def block_starts(
    model: Transformer, params: Params, tokens: Int[Array | np.ndarray, "batch pos"]
) -> tuple[BlockStart, ...]:
    """Run the model, and return its state at the start of every block and at the end of the last.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts.
    """
    sites = sender_sites(model)
    _, values = model.forward(params, tokens, sites=(*sites, *model.resid_sites))
    own = jnp.concatenate([_by_sender(values[site]) for site in sites], axis=2)
    states = enumerate(model.resid_sites)
    return tuple(BlockStart(layer, values[site], own) for layer, site in states)


def forward_edges_from(
    model: Transformer,
    params: Params,
    start: BlockStart,
    graph: EdgeGraph,
    live: Float[Array | np.ndarray, " edge #pos"],
    other: Float[Array, "batch pos sender d_model"],
) -> Float[Array, "batch 1 d_vocab"]:
    """Run the model from the start of a block on, with a mask for every edge.

    The result is that of `forward_edges` if all edges into earlier blocks are live.

    Args:
      model: the model.
      params: the parameters of one model.
      start: the state of the run at the start of a block, as from `block_starts`.
      graph: the edge graph of the model.
      live: for each edge, the weight of the run's own value. Edges into earlier blocks are not
        read.
      other: for each sender, the value that replaces its output.

    Returns:
      The logits at the last position.

    Raises:
      InputError: the mask does not have one row for each edge of the graph.
    """
    _check_edges(graph, live, start.resid.shape[1])
    first, depth = start.layer, model.spec.depth
    edits = edge_edits(model, graph, jnp.asarray(live), other)
    passed = tuple(f"blocks.{layer}." for layer in range(first))
    edits = {
        site: own
        for site, own in edits.items()
        if not site.startswith(passed) or site == model.resid_sites[-1]
    }
    hooks = model.hook_context(edits, sender_sites(model))
    count = 0
    for site in sender_sites(model)[: 1 + 2 * first if first else 0]:
        width = graph.spec.n_heads if site.endswith("hook_result") else 1
        value = start.own[:, :, count : count + width]
        hooks(site, value if site.endswith("hook_result") else value[:, :, 0])
        count += width
    network, resid = model.bind(params), start.resid
    for layer in range(first, depth - 1):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    if first < depth:
        last = hooks.within(f"blocks.{depth - 1}.")
        resid = network.block(depth - 1).at(resid, None, last)
    else:
        resid = hooks(model.resid_sites[-1], resid[:, -1:])
    return network.readout(resid, hooks)


def edge_edits(
    model: Transformer,
    graph: EdgeGraph,
    live: Float[Array, " edge #pos"],
    other: Float[Array, "batch pos sender d_model"],
) -> dict[str, tuple[Edit, ...]]:
    """Return the edits of the receivers' inputs that make a forward pass `forward_edges`.

    The forward pass must compute the sites of `sender_sites`.
    """
    exists = jnp.asarray(graph.number >= 0)[..., None]
    # Where there is no edge, the weight of the other value is 0.
    weights = jnp.where(exists, 1 - live[graph.number], 0)
    weights = jnp.broadcast_to(weights, (*weights.shape[:2], graph.n_pos))

    def edit(part: str, layer: int) -> tuple[Edit, ...]:
        receivers = graph.receivers_of(layer, part)
        count = graph.senders_before(receivers.start)
        here = weights[:count, receivers], other[:, :, :count]
        return (Edit(_exchange, here, context=(sender_sites(model), part == "mlp")),)

    found: dict[str, tuple[Edit, ...]] = {}
    for layer in range(model.spec.depth):
        for part in INPUTS:
            found[f"blocks.{layer}.hook_{part}_input"] = edit(part, layer)
        found[f"blocks.{layer}.hook_mlp_in"] = edit("mlp", layer)
    ends = Edit(_exchange, (weights[:, -1:], other), context=(sender_sites(model), True))
    return found | {model.resid_sites[-1]: (ends,)}


def _exchange(
    value: Array,
    hooks: HookContext,
    args: tuple[Float[Array, "sender receiver pos"], Float[Array, "batch pos sender d_model"]],
    context: tuple[tuple[str, ...], bool],
) -> Array:
    """Replace the terms of some senders in the inputs of the receivers of one site."""
    weights, other = args
    sites, single = context
    n_pos, count = value.shape[1], weights.shape[0]
    # In the last block, values other than keys and values have the last position only.
    parts, left = [], count
    for site in sites:
        if left <= 0:
            break
        parts.append(_by_sender(hooks.read(site))[:, -n_pos:])
        left -= parts[-1].shape[2]
    change = other[:, -n_pos:] - jnp.concatenate(parts, axis=2)
    moved = jnp.einsum("bpsd,srp->bprd", change, weights[..., -n_pos:], precision="highest")
    return value + (moved[:, :, 0] if single else moved)


def _by_sender(value: Array) -> Float[Array, "batch pos sender d_model"]:
    """Add an axis for the sender, if the site belongs to a single sender."""
    return value if value.ndim == 4 else value[:, :, None]


def _check_edges(graph: EdgeGraph, live: Array | np.ndarray, n_pos: int) -> None:
    if live.shape[0] != len(graph.edges) or live.shape[1] not in (1, graph.n_pos):
        raise InputError(
            f"the mask has shape {tuple(live.shape)}; the graph has {len(graph.edges)} edges and "
            f"{graph.n_pos} positions, so the shape must be ({len(graph.edges)}, {graph.n_pos}) or "
            f"({len(graph.edges)}, 1)"
        )
    if n_pos != graph.n_pos:
        raise InputError(
            f"the prompts have {n_pos} tokens, but the graph is for prompts of {graph.n_pos} tokens"
        )
