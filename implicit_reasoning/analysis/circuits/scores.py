"""Scores of edges: the effect of patching an edge, exact or estimated from gradients.

The effect of an edge is the change of a metric if the receiver reads another value of the sender,
such as the value of a corrupt run: the metric of the patched run minus the metric of the clean run.
The other inputs of the receiver are clean, and all later nodes run on what the receiver writes.

- `exact`: each edge is patched alone (see `model.edge_patches`).
- `EAP` (edge attribution patching): the change of the sender's output times the gradient at the
  receiver's input.
- `EAP-IG inputs`: the gradient is averaged while the embeddings move on a straight line from the
  clean to the corrupt run.
- `EAP-IG activations`: the gradient is averaged over straight lines on which the outputs of one
  group of senders move (the embeddings, the heads of a block, or the MLP of a block), and over all
  groups. As in the published code, no gradient flows through the outputs that move.
- `mask gradients`: the gradient with respect to the mask, averaged while the masks of all edges
  move from 1 to 0 together. At mask 1 alone, it is EAP.
- `RelP` (relevance patching): EAP with norm scales, attention patterns and ratios of neurons held
  constant.

All averages use Gauss-Legendre nodes. EAP-IG and AutoCircuit use equidistant nodes, which
`mask_gradients` accepts.

Sources: Syed et al. 2023, "Attribution patching outperforms automated circuit discovery" (EAP);
Hanna et al. 2024, "Have faith in faithfulness" (EAP-IG inputs); Mueller et al. 2025, "MIB" (EAP-IG
activations); Miller et al. 2024, AutoCircuit (mask gradients); Jafari et al. 2025, "RelP".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model import Edit, Edits, HookContext, Params, Transformer
from implicit_reasoning.model.edge_patches import edge_cache_sites, edge_cells, edge_logits
from implicit_reasoning.model.gradients import (
    integrated_gradients,
    line,
    relevance_rule,
    site_gradients,
)
from implicit_reasoning.model.graph import (
    INPUTS,
    EdgeGraph,
    forward_edges,
    receiver_sites,
    sender_outputs,
    sender_sites,
)
from implicit_reasoning.model.wirings import forward_at

Metric = Callable[[Float[Array, "batch d_vocab"]], Float[Array, " batch"]]
"""Function of the logits at the last position. It returns one number for each row."""

Scores = Float[Array, "edge pos batch"]
"""The effect of each edge at each position, for each row. It is 0 where the edge is not alive."""

NODES = 5
"""The default number of nodes of an average, as in EAP-IG and AutoCircuit."""


class Runs(NamedTuple):
    """The clean run on a batch, and the other values that edges can carry.

    Attributes:
      tokens: the clean prompts.
      own: the outputs of all senders in the clean run.
      other: the values that replace them, such as those of the run on the corrupt prompts.
    """

    tokens: Int[Array, "batch pos"]
    own: Float[Array, "batch pos sender d_model"]
    other: Float[Array, "batch pos sender d_model"]

    @property
    def change(self) -> Float[Array, "batch pos sender d_model"]:
        """The other value of each sender minus the clean value."""
        return self.other - self.own


def two_runs(
    model: Transformer,
    params: Params,
    clean: Int[Array | np.ndarray, "batch pos"],
    corrupt: Int[Array | np.ndarray, "batch pos"],
) -> Runs:
    """Run the model on both prompts of each pair, and return the outputs of all senders."""
    outputs = functools.partial(sender_outputs, model, params)
    _, (own, other) = jax.lax.map(outputs, jnp.stack([clean, corrupt]))
    return Runs(jnp.asarray(clean), own, other)


def exact(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    by_position: bool = True,
) -> Scores:
    """Patch each edge alone, and return the change of the metric.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric.
      by_position: whether each run patches one position. Otherwise a run patches an edge at all
        positions, and the axis `pos` of the result has length 1.
    """
    sites = edge_cache_sites(model)
    logits, cache = forward_at(model, params, runs.tokens, sites=sites)
    patched = edge_logits(model, params, cache, runs.change, graph, by_position=by_position)
    effects = jax.vmap(metric)(patched) - metric(logits[:, 0])[None]
    n_pos = graph.n_pos if by_position else 1
    cells = edge_cells(graph, by_position=by_position)
    empty = jnp.zeros((len(graph.edges), n_pos, effects.shape[1]), effects.dtype)
    return empty.at[cells.edge, cells.pos].set(effects)


def eap(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    rule: Edits | None = None,
) -> Scores:
    """Estimate the effects of all edges from one backward pass of the clean run.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric. It must be differentiable.
      rule: edits that change only the backward pass, such as `gradients.relevance_rule(model)`.
    """
    run = functools.partial(forward_at, model, params, runs.tokens)
    sites = receiver_sites(model)
    found = site_gradients(run, lambda logits: metric(logits[:, 0]), sites, before=rule)
    return edge_products(model, graph, runs.change, found.gradients)


def eap_ig_inputs(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    nodes: int = NODES,
) -> Scores:
    """Estimate the effects from gradients between the clean and the corrupt embeddings.

    The arguments are those of `eap`; `nodes` is the number of points on the line.
    """
    run = functools.partial(forward_at, model, params, runs.tokens)
    path = line({sender_sites(model)[0]: (runs.own[:, :, 0], runs.other[:, :, 0])})
    mean = integrated_gradients(
        *(run, lambda logits: metric(logits[:, 0]), receiver_sites(model), path), nodes=nodes
    )
    return edge_products(model, graph, runs.change, mean)


def eap_ig_activations(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    nodes: int = NODES,
) -> Scores:
    """Estimate the effects from gradients while one group of senders moves at a time.

    The arguments are those of `eap_ig_inputs`. There are `2 depth + 1` groups, so this takes
    `(2 depth + 1) nodes` backward passes.
    """
    sites = sender_sites(model)
    ends = {
        site: (runs.own[:, :, senders], runs.other[:, :, senders])
        for site, senders in zip(sites, _sender_groups(graph), strict=True)
    }
    run = functools.partial(forward_at, model, params, runs.tokens)

    def of_group(group: Array) -> dict[str, Array]:
        def path(alpha: Array) -> Edits:
            return {
                site: Edit(_on_line, (group == number, alpha, *ends[site]))
                for number, site in enumerate(sites)
            }

        wanted = receiver_sites(model), path
        return integrated_gradients(run, lambda logits: metric(logits[:, 0]), *wanted, nodes=nodes)

    means = jax.lax.map(of_group, jnp.arange(len(sites)))
    mean = {site: gradients.mean(0) for site, gradients in means.items()}
    return edge_products(model, graph, runs.change, mean)


def mask_gradients(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    nodes: int = NODES,
    points: Float[np.ndarray, " node"] | None = None,
) -> Scores:
    """Estimate the effects from gradients with respect to the mask, while all masks move together.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric. It must be differentiable.
      nodes: the number of Gauss-Legendre nodes.
      points: patched shares, from 0 (clean) to 1 (corrupt), over which the gradient is averaged
        with equal weights. They replace the Gauss-Legendre nodes. AutoCircuit's setting
        `integrated_grad_samples=5` uses the six points 0, .2, .4, .6, .8 and 1. It sums over them,
        and its loss is minus the metric, so its scores are -6 times these.
    """
    if points is None:
        roots, weights = np.polynomial.legendre.leggauss(nodes)
        points, weights = (roots + 1) / 2, weights / 2
    else:
        weights = np.full(len(points), 1 / len(points))
    shape = (len(runs.tokens), len(graph.edges), graph.n_pos)

    def total(shares: Array) -> Array:
        def of_row(share: Array, tokens: Array, other: Array) -> Array:
            row = tokens[None], graph, 1 - share, other[None]
            return forward_edges(model, params, *row)[0][0, 0]

        return metric(jax.vmap(of_row)(shares, runs.tokens, runs.other)).sum()

    def step(mean: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        share, weight = node
        return mean + weight * jax.grad(total)(jnp.full(shape, share)), None

    quadrature = jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32)
    mean = jax.lax.scan(step, jnp.zeros(shape), quadrature)[0]
    return jnp.moveaxis(mean, 0, -1) * graph.alive[..., None]


def relp(
    model: Transformer, params: Params, graph: EdgeGraph, runs: Runs, metric: Metric
) -> Scores:
    """Estimate the effects by relevance patching: `eap` with the rules of RelP."""
    return eap(model, params, graph, runs, metric, rule=relevance_rule(model))


ESTIMATES: Mapping[str, Callable[..., Scores]] = {
    "EAP": eap,
    "EAP-IG inputs": eap_ig_inputs,
    "EAP-IG activations": eap_ig_activations,
    "mask gradients": mask_gradients,
    "RelP": relp,
}
"""The estimates by name. All take `(model, params, graph, runs, metric)`."""


def edge_products(
    model: Transformer,
    graph: EdgeGraph,
    change: Float[Array, "batch pos sender d_model"],
    gradients: Mapping[str, Array],
) -> Scores:
    """Multiply the change of every sender with the gradient at every later receiver.

    Args:
      model: the model.
      graph: the edge graph of the model.
      change: the other value of each sender minus the clean value.
      gradients: the gradient of the metric at each site of `receiver_sites(model)`.
    """
    found = []
    for layer in range(model.spec.depth):
        sites = {part: f"blocks.{layer}.hook_{part}_input" for part in INPUTS}
        for part, site in (sites | {"mlp": f"blocks.{layer}.hook_mlp_in"}).items():
            count = graph.senders_before(graph.receivers_of(layer, part).start)
            found.append(_products(change[:, :, :count], gradients[site]))
    found.append(_products(change, gradients[receiver_sites(model)[-1]]))
    return jnp.concatenate(found) * graph.alive[..., None]


def _products(change: Array, gradient: Array) -> Scores:
    """Return the products of all senders with all receivers of a site, ordered by receiver."""
    n_pos = change.shape[1]
    gradient = gradient if gradient.ndim == 4 else gradient[:, :, None]
    missing = n_pos - gradient.shape[1]  # in the last block, only the last position is computed
    gradient = jnp.pad(gradient, ((0, 0), (missing, 0), (0, 0), (0, 0)))
    products = jnp.einsum("bpsd,bprd->rspb", change, gradient, precision="highest")
    return products.reshape(-1, *products.shape[2:])


def _sender_groups(graph: EdgeGraph) -> list[int | slice]:
    """Return the senders that each site of `sender_sites` contains."""
    groups: list[int | slice] = [0]
    for layer in range(graph.spec.depth):
        first = graph.senders_before(graph.receivers_of(layer, "q").start)
        groups += [slice(first, first + graph.spec.n_heads), first + graph.spec.n_heads]
    return groups


def _on_line(value: Array, hooks: HookContext, args: tuple[Array, Array, Array, Array]) -> Array:
    """Replace the value by a point between two values, if the group of the site moves."""
    moves, alpha, start, end = args
    here = slice(-value.shape[1], None)  # the last block has the last position only
    point = start[:, here] + alpha.astype(value.dtype) * (end - start)[:, here]
    return jnp.where(moves, point, value)
