"""Gradients of a metric of the logits at sites (hook points), for all requested sites at once.

A zero perturbation is added at every site, and one backward pass differentiates the metric with
respect to all perturbations. *Rules* are edits that change the backward pass and leave the forward
pass as it is, such as frozen norms. A rule has the form of any other edits, so rules are combined
with `merge_edits`.

    run = functools.partial(forward_at, model, params, tokens)
    found = site_gradients(run, metric, sites, before=relevance_rule(model))
    effects = (corrupt[site] - found.values[site]) * found.gradients[site]  # relevance patching

Sources: Nanda 2022, "Attribution patching"; Kramar et al. 2024, "AtP*", section 3.1.2 (GradDrop);
Jafari et al. 2025, "RelP", arXiv 2508.21258 (rules); Sundararajan et al. 2017, "Axiomatic
attribution for deep networks" (integrated gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.edits import Edit, Edits, HookContext, add, merge_edits, set_to
from implicit_reasoning.model.transformer import Transformer

Metric = Callable[[Array], Float[Array, " batch"]]
"""Function of the logits that a run returns. It returns one number for each row."""

Path = Callable[[Array], Edits]
"""The edits at each point of a path, as a function of `alpha` from 0 (start) to 1 (end)."""

Run = Callable[..., tuple[Array, dict[str, Array]]]
"""A forward pass of one model on one batch, in any wiring, with the keywords `edits` and `sites`.

It returns the logits and the values of the sites. `functools.partial(model.forward, params,
tokens)` and `functools.partial(forward_at, model, params, tokens)` are examples.
"""


class SiteGradients(NamedTuple):
    """The metric of a run, and its gradients.

    Attributes:
      metric: the metric of each row.
      values: the values at the requested sites.
      gradients: the gradient of the metric at each requested site, with the shape of the value. The
        gradient of a row is that of the metric of the same row.
    """

    metric: Float[Array, " batch"]
    values: dict[str, Array]
    gradients: dict[str, Array]


def site_gradients(
    run: Run,
    metric: Metric,
    sites: Sequence[str],
    *,
    before: Edits | None = None,
    after: Edits | None = None,
) -> SiteGradients:
    """Compute the gradients of a metric at all positions of many sites, in one backward pass.

    The gradient at a site is the total derivative: it contains all paths from the site to the
    logits, also those through other requested sites.

    Args:
      run: the forward pass. Rows of its batch must not influence each other.
      metric: the metric of the logits.
      sites: names of the sites. If a per-head input (`hook_q_input`, ...) is among them, the sites
        of `ln1` of the same block cannot be.
      before: edits that are applied before the perturbation of the same site. A rule that stops the
        gradient at a site then leaves the gradient of the site itself.
      after: edits that are applied after the perturbation. A rule that stops the gradient at a site
        then also sets the gradient of the site itself to zero.

    Raises:
      InputError: a site does not exist, or the wiring does not compute it.
    """
    return _gradients(run, metric, _zeros(run, sites, before), before, after)


def _zeros(run: Run, sites: Sequence[str], before: Edits | None) -> dict[str, Array]:
    """Return an array of zeros with the shape of each site, without running the model."""
    shapes = jax.eval_shape(lambda: run(edits=before or {}, sites=tuple(sites)))[1]
    return {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()}


def _gradients(
    run: Run,
    metric: Metric,
    zeros: dict[str, Array],
    before: Edits | None,
    after: Edits | None,
) -> SiteGradients:
    """Differentiate the metric at zero perturbations of the sites."""

    def total(terms: dict[str, Array]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        moved = {site: Edit(add, term) for site, term in terms.items()}
        edits = merge_edits(before or {}, moved, after or {})
        logits, values = run(edits=edits, sites=tuple(zeros))
        by_row = metric(logits)
        return by_row.sum(), (by_row, values)

    gradients, (by_row, values) = jax.grad(total, has_aux=True)(zeros)
    return SiteGradients(by_row, values, gradients)


def integrated_gradients(
    run: Run,
    metric: Metric,
    sites: Sequence[str],
    path: Path,
    *,
    nodes: int = 16,
    before: Edits | None = None,
    after: Edits | None = None,
) -> dict[str, Array]:
    """Compute the mean gradients along a path, such as the line between the values of two runs.

    The mean over alpha uses Gauss-Legendre quadrature. One node is evaluated at a time, so the
    memory does not depend on the number of nodes.

    Completeness: if all sites of a straight path are among `sites`, the products of their mean
    gradients with `end - start` sum to the difference of the metric between the two ends. For the
    residual stream of one layer at all positions, this is the difference between two runs. A metric
    that changes abruptly along the path needs more nodes.

    Args:
      run: the forward pass.
      metric: the metric of the logits.
      sites: names of the sites whose gradients are averaged. They need not be on the path.
      path: the edits at each point, such as `line({"blocks.1.hook_resid_pre": (clean, corrupt)})`.
        They must be the same functions at the same sites for all alpha.
      nodes: the number of quadrature nodes.
      before: edits as in `site_gradients`. They are applied before the edits of the path.
      after: edits as in `site_gradients`.

    Returns:
      The mean gradient at each site, with the shape of its value.

    Raises:
      InputError: `nodes` is below 1, or a site does not exist.
    """
    if nodes < 1:
        raise InputError(f"nodes is {nodes}; integrated gradients need at least 1 node")
    points, weights = np.polynomial.legendre.leggauss(nodes)
    quadrature = jnp.asarray((points + 1) / 2), jnp.asarray(weights / 2)

    zeros = _zeros(run, sites, before)

    def step(mean: dict[str, Array], node: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
        alpha, weight = node
        here = merge_edits(before or {}, path(alpha))
        found = _gradients(run, metric, zeros, here, after).gradients
        return {site: mean[site] + weight.astype(x.dtype) * x for site, x in found.items()}, None

    mean: dict[str, Array] = jax.lax.scan(step, zeros, quadrature)[0]
    return mean


def line(ends: Mapping[str, tuple[Array, Array]]) -> Path:
    """Return the straight path of some sites; all other inputs are those of the run.

    Args:
      ends: for each site, its values at the start and at the end of the path.
    """

    def at(alpha: Array) -> Edits:
        return {
            site: Edit(set_to, start + alpha.astype(start.dtype) * (end - start))
            for site, (start, end) in ends.items()
        }

    return at


def frozen_norms(model: Transformer) -> Edits:
    """Return the rule that treats the scale of every norm as a constant.

    Source: Ali et al. 2022, the LN-rule of RelP. A model without norms has no such edits.
    """
    return {site: Edit(_stop) for site in model.sites if site.endswith(".hook_scale")}


def frozen_patterns(model: Transformer) -> Edits:
    """Return the rule that treats all attention patterns as constants.

    The gradients at queries, keys and attention scores are then zero.

    Source: Ali et al. 2022, the AH-rule of RelP.
    """
    require_gpt2(model.spec, "the rule frozen_patterns")
    return {f"blocks.{n}.attn.hook_pattern": Edit(_stop) for n in range(model.spec.depth)}


def activation_ratios(model: Transformer) -> Edits:
    """Return the rule that replaces the activation function by a constant factor for each neuron.

    The factor is the ratio of the neuron's output to its input, `hook_post / hook_pre`, and 0 where
    both are 0. For relu, this is the derivative.

    Source: the identity rule of RelP.
    """
    require_gpt2(model.spec, "the rule activation_ratios")
    blocks = [f"blocks.{n}.mlp." for n in range(model.spec.depth)]
    return {f"{mlp}hook_post": Edit(_by_ratio, context=f"{mlp}hook_pre") for mlp in blocks}


def relevance_rule(model: Transformer) -> Edits:
    """Return the rules of relevance patching (RelP); use them as `before` of `site_gradients`.

    The model is then linear around the run: norm scales and attention patterns are constants, and
    activation functions are constant factors. All other operations keep their gradients, which is
    the 0-rule of RelP.

    Source: Jafari et al. 2025, arXiv 2508.21258, table of propagation rules (without the rule for
    gated MLPs, which GPT-2 does not have).
    """
    return merge_edits(frozen_norms(model), frozen_patterns(model), activation_ratios(model))


def gated_blocks(model: Transformer, gates: Float[Array, " depth"]) -> Edits:
    """Return the rule that multiplies the gradients into the outputs of each block by a factor.

    Use it as `after` of `site_gradients`. If the factor of a block is 0, no gradient flows through
    its attention and its MLP, and the gradients of all sites inside the block are 0. The residual
    stream keeps its gradient. `jax.vmap` over rows of factors shares the forward pass.

    Args:
      model: the model.
      gates: the factor of each block.

    Source: Kramar et al. 2024, section 3.1.2 (GradDrop; the outputs of one layer are dropped).
    """
    require_gpt2(model.spec, "the rule gated_blocks")
    return {
        f"blocks.{block}.{part}": Edit(_gate, gates[block])
        for block in range(model.spec.depth)
        for part in ("hook_attn_out", "hook_mlp_out")
    }


def _stop(value: Array, hooks: HookContext, args: None) -> Array:
    return jax.lax.stop_gradient(value)


def _by_ratio(value: Array, hooks: HookContext, args: None, pre: str) -> Array:
    """Keep the value, with the gradient `value / pre` with respect to `pre`."""
    read = hooks.read(pre)
    ratio = jnp.where(read == 0, 0, value / jnp.where(read == 0, 1, read))
    fixed, ratio = jax.lax.stop_gradient((value, ratio))
    # The difference is exactly 0, so the value keeps all its bits.
    return fixed + ratio * (read - jax.lax.stop_gradient(read))


def _gate(value: Array, hooks: HookContext, factor: Array) -> Array:
    return _gated(value, factor)


@jax.custom_vjp
def _gated(value: Array, factor: Array) -> Array:
    return value


def _forward(value: Array, factor: Array) -> tuple[Array, Array]:
    return value, factor


def _backward(factor: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient * factor.astype(gradient.dtype), jnp.zeros_like(factor)


_gated.defvjp(_forward, _backward)
