"""Attribution of single neurons: estimated effects of patches beside exact effects.

A model has many more neurons than states, so exact patching is costly: few pairs are measured, and
effects are returned as sums over neurons. The pairs of a group are from as many clusters as
possible, because a mean needs 20 clusters of pairs that are answered correctly. A relu neuron that
is off in the clean run passes no gradient to what it reads. Attribution patching therefore misses
an earlier neuron whose output in the corrupt run would turn it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Bool

from implicit_reasoning.analysis.components.attribution_figures import (
    agreement_figure,
    missed_figure,
)
from implicit_reasoning.analysis.components.pair_attribution import (
    DONORS,
    PairAttribution,
)
from implicit_reasoning.analysis.patching.grids import patch_parts
from implicit_reasoning.analysis.patching.metrics import PairBatch, over_cells
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import Cache

_MISSED = 0.01  # an effect is missed if its estimate is below this share of the largest effect


class NeuronAttribution(PairAttribution):
    """Instrument that compares estimated effects of single neurons with exact effects."""

    name = "neuron_attribution"
    kinds: ClassVar[tuple[str, ...]] = ("neurons",)
    max_pairs: ClassVar[int] = 24  # from as many clusters as possible; a mean needs 20
    at_once: ClassVar[int] = 8  # the logits of all neurons are large
    definition = (
        "The comparison of attribution for single neurons: the activation of one neuron "
        "(mlp.hook_post) at one position is that of the donor run. agreement, agreement_of_means: "
        "defined as in attribution, over all neurons of all blocks and positions. summed_effect: "
        "the sum of the effects of the neurons of one MLP at one position. joint_effect: the exact "
        "effect of the output of this MLP, that is, of all its neurons together. missed: share of "
        "the summed sizes of exact effects at neurons whose estimate is below 1% of the largest "
        "size. Null: the donor run is that of another pair of the group. A group has at most 24 "
        "pairs, from as many clusters as possible."
    )
    outputs = {
        "agreement": ("estimator", "ranked", "kind", "donor", "example"),
        "ranked_pairs": ("ranked", "kind", "donor", "example"),
        "agreement_of_means": ("estimator", "ranked", "kind", "donor", "of_group"),
        "summed_effect": ("estimator", "donor", "block", "pos", "example"),
        "joint_effect": ("donor", "block", "pos", "example"),
        "missed": ("estimator", "donor", "example"),
        "any_effect": ("donor", "example"),
        "difference": ("donor", "example"),
        "correct": ("example",),
    }
    given = {
        "agreement": "ranked_pairs",
        **dict.fromkeys(("summed_effect", "joint_effect", "difference"), "correct"),
        "missed": "any_effect",
    }
    nulls = {"another pair's run": {"donor": DONORS[1]}}

    def patched(
        self, model: Transformer, params: Params, batch: PairBatch, base: Cache, donor: Cache
    ) -> dict[str, Array]:
        """Return the metric after patching each neuron, and each MLP as a whole."""
        mlps = patch_parts(model, params, base, donor)[:, 1]
        joint = over_cells(self.metrics, mlps, batch)[0]
        return super().patched(model, params, batch, base, donor) | {"joint": joint}

    def outputs_of(
        self, found: Mapping[str, Array], counted: Bool[Array, "example group"]
    ) -> dict[str, Array]:
        """Return sums over neurons, and the share of effects that each estimate misses."""
        effects = found["neurons"]  # [estimator, donor, block, neuron, pos, example]
        size = jnp.abs(effects[0])
        largest = size.max((1, 2, 3))
        missed = jnp.abs(effects) < _MISSED * largest[None, :, None, None, None]
        total = size.sum((1, 2, 3))
        share = (missed * size[None]).sum((2, 3, 4)) / jnp.where(total > 0, total, 1)[None]
        return {
            "summed_effect": effects.sum(3),
            "joint_effect": found["joint"],
            "missed": share,
            "any_effect": (total > 0) & counted.any(1)[None],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the agreement with exact patching, and the share that each estimate misses."""
        title = "Do gradients find the neurons that matter?"
        return [agreement_figure(result, self.name, title), missed_figure(result)]
