"""Split the edges of attribution graphs by the heads that they pass through.

An edge of an attribution graph is a sum over routes. A route is a sequence of steps from the target
down to the source. A step is a head and the position that it reads, or the skip connection of a
transcoder. The route without steps goes through the residual stream at one position. All routes of
all edges are one array, and their sum over routes is the adjacency of the graph.

The number of routes grows with the number of steps: 4 heads, 3 positions and 2 blocks have at most
1 route of 0 steps, 24 of 1 step and 144 of 2 steps. In a deeper model, limit the number of steps.
The terms of longer routes are then missing, and the adjacency shows how much they carry.

Source: Dunefsky, Chlenski and Nanda 2024, arXiv 2406.11944 (attribution through OV circuits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.dictionaries.graphs.connections import (
    before_norm,
    logit_vectors,
    reading_vectors,
)
from implicit_reasoning.dictionaries.replacement import LocalRun, Replacement, Weights, local_run
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.factored import FactoredMatrix, ov_matrices
from implicit_reasoning.runtime.machine import highest_precision

MAX_ROUTES = 20_000


@dataclass(frozen=True, order=True)
class Step:
    """One step of a route, from a later place of the residual stream to an earlier one.

    Attributes:
      block: the block.
      head: the head; None for the skip connection of the transcoder of the block.
      pos: the position that the head reads; None for a skip connection, which stays where it is.
    """

    block: int
    head: int | None
    pos: int | None

    @property
    def height(self) -> int:
        """The order of computation: attention of block b has 2 b, its MLP has 2 b + 1."""
        return 2 * self.block + (self.head is None)

    def __str__(self) -> str:
        if self.head is None:
            return f"skip{self.block}"
        return f"a{self.block}.h{self.head}@{self.pos}"


Route = tuple[Step, ...]
"""The steps from the target to the source. The empty route stays in the residual stream."""


def list_routes(
    model: Transformer, n_pos: int, *, max_steps: int | None = None, skip: bool = False
) -> tuple[Route, ...]:
    """List the routes of a model, sorted by the number of steps.

    Args:
      model: the model.
      n_pos: the number of positions.
      max_steps: the largest number of steps; default: no limit.
      skip: whether transcoders have skip connections.

    Raises:
      InputError: there are more than `MAX_ROUTES` routes.
    """
    spec = model.spec
    steps = [
        Step(block, head, pos)
        for block in range(spec.depth)
        for head in range(spec.n_heads)
        for pos in range(n_pos)
    ]
    if skip:
        steps += [Step(block, None, None) for block in range(spec.depth)]
    longest = len({step.height for step in steps}) if max_steps is None else max_steps
    last: list[Route] = [()]
    found = list(last)
    for _ in range(longest):
        last = [
            (*route, step)
            for route in last
            for step in steps
            if not route or (step.height < route[-1].height and not _looks_ahead(route, step))
        ]
        found += last
        if len(found) > MAX_ROUTES:
            raise InputError(
                f"there are more than {MAX_ROUTES:,} routes through {spec.depth} blocks, "
                f"{spec.n_heads} heads and {n_pos} positions; pass a smaller max_steps"
            )
    return tuple(found)


def _looks_ahead(route: Route, step: Step) -> bool:
    """Return whether a head would read a position after the one at which it writes."""
    at = next((s.pos for s in reversed(route) if s.pos is not None), None)
    return step.pos is not None and at is not None and step.pos > at


class _Frozen(NamedTuple):
    """What is frozen in a run: attention patterns, and the scales of norms."""

    patterns: Float[Array, "block head dst src"]
    scales1: Float[Array, "block pos"]
    scales2: Float[Array, "block pos"]
    scale: Float[Array, ""]


class _Maps(NamedTuple):
    """The linear maps of heads and skip connections, with the linear parts of norms."""

    ov: FactoredMatrix
    skips: Float[Array, "block d_model d_model"]


@highest_precision
def split_edges(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    params: Sequence[Params],
    tokens: Int[Array | np.ndarray, "batch pos"],
    graphs: Graph,
    routes: Sequence[Route],
) -> Float[Array, "batch target route source"]:
    """Return the terms of all edges by route.

    The sum over all routes is the adjacency of the graphs. The function can be compiled, with the
    model, the replacement and the routes as static arguments.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders.
      params: the parameters of each transcoder.
      tokens: the prompts.
      graphs: the graphs of these prompts, from `attribute`.
      routes: the routes, from `list_routes`.

    Returns:
      The terms. Targets are the features and then the logits of the graphs. Sources are the
      features, errors and embeddings, in the order of the nodes of the graphs.
    """
    weights = replacement.weights(params)
    local = local_run(model, model_params, replacement, params, tokens)
    frozen, embed = _freeze(model, model_params, tokens)
    maps = _maps(model, model_params, weights)
    walk = _walks(routes)
    read = reading_vectors(model, model_params, weights)
    logits = logit_vectors(model, model_params)

    def of_prompt(
        graph: Graph, frozen: _Frozen, local: LocalRun, embed: Array
    ) -> Float[Array, "target route source"]:
        last = len(embed) - 1
        n_logits = len(graph.token)
        vectors = jnp.concatenate(
            [
                read[graph.layer, :, graph.feature]
                / frozen.scales2[graph.layer, graph.pos][:, None],
                logits[:, graph.token].T / frozen.scale,
            ]
        )
        heights = jnp.concatenate([2 * graph.layer + 1, jnp.full(n_logits, 2 * len(maps.skips))])
        pos = jnp.concatenate([graph.pos, jnp.full(n_logits, last)])
        counts = jnp.concatenate([graph.counts, graph.probability > 0])

        def of_target(target: tuple[Array, ...]) -> Float[Array, "route source"]:
            vector, height, pos, counted = target
            ends = _follow(walk, frozen, maps, vector, height, pos)
            return jnp.where(counted, _collect(ends, weights, graph, local, embed), 0)

        return jax.lax.map(of_target, (vectors, heights, pos, counts), batch_size=8)

    found: Array = jax.vmap(of_prompt)(graphs, frozen, local, embed)
    return found


def _freeze(
    model: Transformer, model_params: Params, tokens: Int[Array | np.ndarray, "batch pos"]
) -> tuple[_Frozen, Float[Array, "batch pos d_model"]]:
    """Return what is frozen in the runs of some prompts, and the embeddings of the prompts."""
    blocks = range(model.spec.depth)
    patterns = [f"blocks.{n}.attn.hook_pattern" for n in blocks]
    norms = [f"blocks.{n}.{ln}.hook_scale" for ln in ("ln1", "ln2") for n in blocks]
    final = "ln_final.hook_scale"
    has_norm = model.spec.normalization == "LN"
    sites = ("hook_embed", *patterns, *((*norms, final) if has_norm else ()))
    _, values = model.forward(model_params, tokens, sites=sites)
    ones = jnp.ones((*tokens.shape, 1))
    scales = jnp.stack([values.get(norm, ones)[..., 0] for norm in norms], 1)
    frozen = _Frozen(
        jnp.stack([values[site] for site in patterns], 1),
        scales[:, : len(blocks)],
        scales[:, len(blocks) :],
        values.get(final, ones)[:, -1, 0],
    )
    return frozen, values["hook_embed"]


def _maps(model: Transformer, model_params: Params, weights: Weights) -> _Maps:
    """Return the linear maps that routes pass through."""
    spec = model.spec
    blocks = [model_params["blocks"][str(n % spec.n_layers)] for n in range(spec.depth)]
    skips = [
        before_norm(model, block.get("ln2"), skip.T)
        for block, skip in zip(blocks, weights.skip, strict=True)
    ]
    return _Maps(ov_matrices(model, model_params, fold_norm=True), jnp.stack(skips))


class _Level(NamedTuple):
    """The last steps of all routes of one length, as indices."""

    parent: Int[np.ndarray, " route"]
    block: Int[np.ndarray, " route"]
    head: Int[np.ndarray, " route"]
    pos: Int[np.ndarray, " route"]


def _walks(routes: Sequence[Route]) -> list[_Level]:
    """Group routes by length. Heads of -1 are skip connections."""
    by_length: dict[int, list[Route]] = {}
    for route in routes:
        by_length.setdefault(len(route), []).append(route)
    levels = []
    for length in range(1, max(by_length) + 1):
        parents = {route: number for number, route in enumerate(by_length[length - 1])}
        steps = [route[-1] for route in by_length[length]]
        levels.append(
            _Level(
                np.array([parents[route[:-1]] for route in by_length[length]]),
                np.array([step.block for step in steps]),
                np.array([-1 if step.head is None else step.head for step in steps]),
                np.array([-1 if step.pos is None else step.pos for step in steps]),
            )
        )
    return levels


class _Ends(NamedTuple):
    """Where the routes of one target end.

    Attributes:
      vectors: what multiplies a vector that is written at the end of each route.
      pos: the position of each end.
      heights: the height of each end. Only what is written below counts.
    """

    vectors: Float[Array, "route d_model"]
    pos: Int[Array, " route"]
    heights: Int[Array, " route"]


def _follow(
    walk: Sequence[_Level],
    frozen: _Frozen,
    maps: _Maps,
    vector: Array,
    height: Array,
    pos: Array,
) -> _Ends:
    """Follow all routes down from one target."""
    ends = _Ends(vector[None], pos[None], height[None])
    found = [ends]
    for level in walk:
        block, head = jnp.asarray(level.block), jnp.asarray(level.head)
        at, above = (x[level.parent] for x in (ends.pos, ends.heights))
        is_head = head >= 0
        to = jnp.where(is_head, level.pos, at)
        own = 2 * block + ~is_head
        moved = jnp.einsum("bhdk,bhke,re->bhrd", *maps.ov.pair, ends.vectors)
        skipped = jnp.einsum("bde,re->brd", maps.skips, ends.vectors)
        by_head = (
            moved[block, head, level.parent]
            * (frozen.patterns[block, head, at, to] / frozen.scales1[block, to])[:, None]
        )
        by_skip = skipped[block, level.parent] / frozen.scales2[block, at][:, None]
        vectors = jnp.where(is_head[:, None], by_head, by_skip)
        vectors = jnp.where((own < above)[:, None], vectors, 0)
        ends = _Ends(vectors, to, own)
        found.append(ends)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _collect(
    ends: _Ends, weights: Weights, graph: Graph, local: LocalRun, embed: Array
) -> Float[Array, "route source"]:
    """Return the products of the ends of routes with what the sources write."""
    n_pos, n_layers = local.error.shape[:2]
    layers = jnp.arange(n_layers)
    below = (2 * layers[None] + 1 < ends.heights[:, None]).astype(jnp.float32)  # [route, layer]
    here = (ends.pos[:, None] == jnp.arange(n_pos)[None]).astype(jnp.float32)  # [route, pos]
    rows = weights.decoder[graph.layer, graph.feature]  # [feature, out_layer, d_model]
    rows = rows * jnp.where(graph.counts, graph.activation, 0)[:, None, None]
    features = jnp.einsum("rd,fod,ro->rf", ends.vectors, rows, below) * here[:, graph.pos]
    errors = jnp.einsum("rd,pld,rl,rp->rlp", ends.vectors, local.error, below, here)
    embeddings = jnp.einsum("rd,pd,rp->rp", ends.vectors, embed, here)
    return jnp.concatenate([features, errors.reshape(len(features), -1), embeddings], 1)
