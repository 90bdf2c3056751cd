"""Estimate the effects of patches from gradients, for all cells at once.

The effect of a patch is the change of a metric if one value of the donor run replaces that of the
base run. A cell is one such patch. Kinds of cells are states `S[layer, pos]`, block parts
(attention, MLP, heads), projections (queries, keys, values of heads) and neurons. All estimates
multiply the difference of the values, donor minus base, with some gradient:

- `AtP` (attribution patching): the gradient at the base run.
- `AtP*`: AtP* recomputes the attention pattern with the donor's query or key, and multiplies the
  change of the pattern with its gradient. GradDrop averages |estimate| over backward passes that
  skip one block each, so that positive and negative paths do not cancel. A pass that skips the
  cell's own block gives 0 and is not in the mean. The result has the sign of the estimate with no
  skipped block. A model with one block skips none.
- `RelP` (relevance patching): the gradient of the model with norm scales, attention patterns and
  ratios of neurons held constant.
- `integrated gradients`: the mean gradient while the values of the cell's site, at all positions
  and for all heads, move on a straight line from the base run to the donor run. All other inputs
  are those of the base run. The estimates of all cells of a site sum to the exact effect of
  patching the whole site. For states of one layer, this is the difference between the two runs.

Sources: Nanda 2022; Kramar et al. 2024, equations 4, 8, 10 and 11; Jafari et al. 2025,
arXiv 2508.21258; Hanna et al. 2024 and Mueller et al. 2025, "MIB" (integrated gradients at
activations).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.model import Edit, Edits, Params, Transformer, add, set_to
from implicit_reasoning.model.cones import Cache
from implicit_reasoning.model.gradients import (
    Metric,
    Run,
    gated_blocks,
    integrated_gradients,
    line,
    relevance_rule,
    site_gradients,
)
from implicit_reasoning.model.wirings import forward_at

ESTIMATES = ("AtP", "AtP*", "RelP", "integrated gradients")
"""Names of the estimates, in the order of the first axis of `estimated_effects`."""

_FEWER = 4
"""Cells inside blocks have this many times fewer quadrature nodes than states.

On trained models, 4 and 16 nodes give rank correlations with exact patching that differ by less
than .01. The distance from exact patching comes from moving a whole site at once.
"""

_IN_BLOCK = {
    "parts": ("hook_attn_out", "hook_mlp_out", "attn.hook_z"),
    "projections": ("attn.hook_q", "attn.hook_k", "attn.hook_v"),
    "neurons": ("mlp.hook_post",),
}
"""For each kind of cells inside a block, the sites whose values the cells patch."""

Effects = dict[str, Array]
"""Effects by kind of cells. The last axis is the example.

states: [layer, pos, example]; parts: [block, part, pos, example]; projections: [block, projection,
head, pos, example]; neurons: [block, neuron, pos, example].
"""


def cell_sites(model: Transformer, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the sites (hook points) that the cells of some kinds patch, states included."""
    blocks = [block_sites(block, kinds) for block in range(model.spec.depth)]
    return (*(site for sites in blocks for site in sites), model.resid_sites[-1])


def state_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites of `S[layer]`: the inputs of the blocks, and the output of the last one."""
    inputs = (f"blocks.{block}.hook_resid_pre" for block in range(model.spec.depth))
    return (*inputs, model.resid_sites[-1])


def block_sites(block: int, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the sites of one block that the cells of some kinds patch, and the block's input."""
    names = ("hook_resid_pre", *(name for kind in kinds for name in _IN_BLOCK.get(kind, ())))
    return tuple(f"blocks.{block}.{name}" for name in names)


def effects_of(
    model: Transformer,
    differences: Mapping[str, Array],
    gradients: Mapping[str, Array],
    kinds: Sequence[str],
) -> Effects:
    """Multiply differences of values with gradients, for each cell.

    Args:
      model: the model.
      differences: donor minus base at each site of `cell_sites`.
      gradients: the gradient at each site.
      kinds: the kinds of cells.
    """
    depth = model.spec.depth
    n_pos = differences["blocks.0.hook_resid_pre"].shape[1]

    def product(site: str) -> Array:
        """Return the product at each position, [*head, pos, example]."""
        summed = (differences[site] * gradients[site]).sum(-1)
        return _pad(jnp.moveaxis(summed, 0, -1).swapaxes(0, -2), n_pos)

    def in_blocks(of_block: Callable[[str], Array]) -> Array:
        return jnp.stack([of_block(f"blocks.{block}.") for block in range(depth)])

    def parts(block: str) -> Array:
        whole = jnp.stack([product(f"{block}{name}") for name in _IN_BLOCK["parts"][:2]])
        return jnp.concatenate([whole, product(f"{block}attn.hook_z")])

    def projections(block: str) -> Array:
        return jnp.stack([product(f"{block}{name}") for name in _IN_BLOCK["projections"]])

    def neurons(block: str) -> Array:
        site = f"{block}mlp.hook_post"
        return _pad((differences[site] * gradients[site]).swapaxes(1, 2), n_pos, axis=-1)

    effects = {
        "states": lambda: jnp.stack([product(site) for site in state_sites(model)]),
        "parts": lambda: in_blocks(parts),
        "projections": lambda: in_blocks(projections),
        # Axes are moved after the stack, so that a sum over examples does not need the new order.
        "neurons": lambda: jnp.moveaxis(in_blocks(neurons), 1, -1),
    }
    return {kind: effects[kind]() for kind in kinds}


def moved_cells(
    model: Transformer, differences: Mapping[str, Array], kinds: Sequence[str]
) -> dict[str, Bool[Array, "..."]]:
    """Return whether the values of each cell differ between the donor run and the base run.

    The arguments are those of `effects_of`.
    """
    sizes = {site: jnp.abs(values) for site, values in differences.items()}
    found = effects_of(model, sizes, {s: jnp.ones_like(x) for s, x in sizes.items()}, kinds)
    return {kind: values > 0 for kind, values in found.items()}


def reach_answer(model: Transformer, kind: str, n_pos: int) -> Bool[np.ndarray, "..."]:
    """Return whether the last position reads each cell of a kind, [*cell].

    A query at the first position is not read either, because it attends to one key only.
    """
    spec = model.spec
    leading = {
        "states": (spec.depth + 1,),
        "parts": (spec.depth, len(model.block.parts(spec))),
        "projections": (spec.depth, 3, spec.n_heads),
        "neurons": (spec.depth, spec.d_mlp),
    }[kind]
    read = np.ones((*leading, n_pos), bool)
    if kind == "projections":
        read[-1, 0, :, :-1] = False
        read[:, 0, :, 0] = False
    else:
        read[-1, ..., :-1] = False
    return read


def _pad(values: Array, n_pos: int, axis: int = -2) -> Array:
    """Add zeros in front of an axis of positions.

    The last block may have values at the last position only.
    """
    widths = [(0, 0)] * values.ndim
    widths[axis] = (n_pos - values.shape[axis], 0)
    return jnp.pad(values, widths)


def estimated_effects(
    model: Transformer,
    params: Params,
    tokens: Array,
    metric: Metric,
    donors: Cache,
    kinds: Sequence[str],
    nodes: int,
) -> Effects:
    """Estimate the effects of patches from several donor runs into one base run.

    Args:
      model: the model, with GPT-2's blocks; static.
      params: parameters of all runs.
      tokens: the prompts of the base run, `[example, pos]`.
      metric: the metric of the logits of `forward_at`, `[example, 1, d_vocab]`.
      donors: cached activations of the donor runs at `cell_sites(model, kinds)`, from `forward_at`.
        The first axis is the donor.
      kinds: the kinds of cells.
      nodes: the number of quadrature nodes of integrated gradients of states; see `_FEWER`.

    Returns:
      The effects by kind, with two leading axes: the estimate (`ESTIMATES`) and the donor.
    """
    run = functools.partial(forward_at, model, params, tokens)
    sites = cell_sites(model, kinds)
    patterns = _pattern_sites(model) if "projections" in kinds else ()
    depth = model.spec.depth
    # The first row skips no block.
    gates = jnp.concatenate([jnp.ones((1, depth)), 1 - jnp.eye(depth)])
    base, by_gates = _gated_gradients(model, run, metric, (*sites, *patterns), gates)
    relevance = site_gradients(run, metric, sites, before=relevance_rule(model)).gradients

    def of_donor(donor: Cache) -> Effects:
        differences = {site: donor[site] - base[site] for site in sites}
        mean = _mean_gradients(model, run, metric, base, differences, kinds, nodes)
        plain, relp, integrated = (
            effects_of(model, differences, gradients, kinds)
            for gradients in ({s: by_gates[s][0] for s in sites}, relevance, mean)
        )
        star = _without_cancellation(
            model,
            jax.vmap(lambda g: _with_new_patterns(model, base, donor, differences, g, kinds))(
                by_gates
            ),
        )
        return jax.tree.map(lambda *each: jnp.stack(each), plain, star, relp, integrated)

    found: Effects = jax.lax.map(of_donor, donors)
    return {kind: jnp.swapaxes(effects, 0, 1) for kind, effects in found.items()}


def _pattern_sites(model: Transformer) -> tuple[str, ...]:
    names = ("attn.hook_attn_scores", "attn.hook_pattern")
    return tuple(f"blocks.{block}.{name}" for block in range(model.spec.depth) for name in names)


def _gated_gradients(
    model: Transformer,
    run: Run,
    metric: Metric,
    sites: Sequence[str],
    gates: Float[Array, "row depth"],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the values at the sites, and the gradients [row, ...] for each row of gates."""

    def one(row: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        found = site_gradients(run, metric, sites, after=gated_blocks(model, row))
        return found.values, found.gradients

    values, gradients = jax.vmap(one, out_axes=(None, 0))(gates)
    return values, gradients


def _mean_gradients(
    model: Transformer,
    run: Run,
    metric: Metric,
    base: Cache,
    differences: Mapping[str, Array],
    kinds: Sequence[str],
    nodes: int,
) -> dict[str, Array]:
    """Return the mean gradient at each site while the site moves from the base to the donor run."""
    found: dict[str, Array] = {}
    for site in state_sites(model) if "states" in kinds else ():
        path = line({site: (base[site], base[site] + differences[site])})
        found |= integrated_gradients(run, metric, (site,), path, nodes=nodes)
    for block in range(model.spec.depth):
        found |= _means_in_block(run, metric, base, differences, block, kinds, nodes)
    return found


def _means_in_block(
    run: Run,
    metric: Metric,
    base: Cache,
    differences: Mapping[str, Array],
    block: int,
    kinds: Sequence[str],
    nodes: int,
) -> dict[str, Array]:
    """Return the mean gradients at the sites of one block, from one path for each moving site."""
    start, *sites = block_sites(block, kinds)
    # If the heads move, attention moves along the straight line that ends with the sum of heads.
    moving = [site for site in sites if not site.endswith("hook_attn_out")]
    fixed = {start: Edit(set_to, base[start])}  # earlier blocks are then not computed

    def means(which: Array) -> dict[str, Array]:
        def path(alpha: Array) -> Edits:
            return {
                site: Edit(add, alpha * which[place] * differences[site])
                for place, site in enumerate(moving)
            }

        few = max(1, nodes // _FEWER)
        return integrated_gradients(run, metric, sites, path, nodes=few, before=fixed)

    if not sites:
        return {}
    found = jax.lax.map(means, jnp.eye(len(moving)))
    own = {site: place for place, site in enumerate(moving)}
    heads = f"blocks.{block}.attn.hook_z"
    return {site: found[site][own.get(site, own.get(heads, 0))] for site in sites}


def _with_new_patterns(
    model: Transformer,
    base: Cache,
    donor: Cache,
    differences: Mapping[str, Array],
    gradients: Mapping[str, Array],
    kinds: Sequence[str],
) -> Effects:
    """Return the effects, with recomputed attention patterns for queries and keys."""
    found = effects_of(model, differences, gradients, kinds)
    if "projections" not in kinds:
        return found
    n_pos = base["blocks.0.hook_resid_pre"].shape[1]
    recomputed = []
    for block in range(model.spec.depth):
        names = {name: f"blocks.{block}.attn.hook_{name}" for name in ("q", "k", "pattern")}
        scores = base[f"blocks.{block}.attn.hook_attn_scores"]
        own, other = ({name: run[names[name]] for name in "qk"} for run in (base, donor))
        queries, keys = pattern_effects(own, other, scores, gradients[names["pattern"]])
        recomputed.append(jnp.stack([_pad(queries, n_pos), keys]))
    values = found["projections"][:, 2:]
    return found | {"projections": jnp.concatenate([jnp.stack(recomputed), values], axis=1)}


def pattern_effects(
    base: Mapping[str, Array],
    donor: Mapping[str, Array],
    scores: Float[Array, "example head query_pos key_pos"],
    gradient: Float[Array, "example head query_pos key_pos"],
) -> tuple[Float[Array, "head query_pos example"], Float[Array, "head key_pos example"]]:
    """Estimate the effects of queries and keys through the attention patterns of one block.

    Args:
      base: the queries `q` and keys `k` of the base run, `[example, pos, head, d_head]`.
      donor: the queries and keys of the donor run.
      scores: the attention scores of the base run, `-inf` where a query does not see a key.
      gradient: the gradient of the metric at the attention pattern.

    Returns:
      The effects of the query, and of the key, of each head at each position.

    Source: Kramar et al. 2024, equations 8 and 10.
    """

    def scored(queries: Array, keys: Array) -> Array:
        products = jnp.einsum("eqhd,ekhd->ehqk", queries, keys) / queries.shape[-1] ** 0.5
        return jnp.where(jnp.isfinite(scores), products, -jnp.inf)

    pattern = jax.nn.softmax(scores, axis=-1)
    by_query = jax.nn.softmax(scored(donor["q"], base["k"]), axis=-1) - pattern
    of_queries = (by_query * gradient).sum(-1)
    # A new key changes one column of the scores. The axis `p` is the position of the new key.
    column = jnp.eye(scores.shape[-1], dtype=bool)[None, None, :, None]
    mixed = jnp.where(column, scored(base["q"], donor["k"])[:, :, None], scores[:, :, None])
    by_key = jax.nn.softmax(mixed, axis=-1) - pattern[:, :, None]
    of_keys = (by_key * gradient[:, :, None]).sum((-1, -2))
    return of_queries.transpose(1, 2, 0), of_keys.transpose(1, 2, 0)


def _without_cancellation(model: Transformer, effects: Effects) -> Effects:
    """Return the mean size over skipped blocks, with the sign of the effect without skipped blocks.

    Args:
      model: the model.
      effects: effects with a leading axis: no block is skipped, then each block.
    """
    depth = model.spec.depth

    def of_kind(kind: str, values: Array) -> Array:
        outside = depth if kind == "states" else depth - 1
        # In a model with one block, no block outside of a cell's own block can be skipped.
        size = jnp.abs(values[1:]).sum(0) / outside if outside else jnp.abs(values[0])
        return jnp.where(values[0] < 0, -size, size)

    return {kind: of_kind(kind, values) for kind, values in effects.items()}
