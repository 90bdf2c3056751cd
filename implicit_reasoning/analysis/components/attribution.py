"""Attribution: estimate the effects of patches from gradients, and compare them with exact effects.

A patch takes one value from the corrupt run of a pair and inserts it into the clean run. Its effect
is the change of the logit difference. Gradients estimate the effects of all patches from a few
backward passes; see `estimates`. The instrument compares each estimate with exact patching at every
checkpoint, and thus shows where gradients mislead while a model learns.

Sources: Nanda 2022, "Attribution patching"; Kramar et al. 2024, "AtP*"; Jafari et al. 2025, "RelP",
arXiv 2508.21258; Sundararajan et al. 2017 (integrated gradients, completeness).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Bool

from implicit_reasoning.analysis.components.attribution_figures import (
    agreement_figure,
    incompleteness_figure,
    states_figure,
)
from implicit_reasoning.analysis.components.pair_attribution import DONORS, PairAttribution
from implicit_reasoning.analysis.patching.pair_instrument import mean_by_group
from implicit_reasoning.figures import Figure

_MIN_DIFFERENCE = 1e-4  # completeness is not computed if the metrics of the runs differ by less


class Attribution(PairAttribution):
    """Instrument that compares estimated effects of patches with exact effects."""

    name = "attribution"
    kinds: ClassVar[tuple[str, ...]] = ("states", "parts", "projections")
    definition = (
        "Pairs of a clean and a corrupt prompt, of which the clean prompt is answered correctly. "
        "The effect of a cell is the change of the metric if its value in the donor run replaces "
        "that in the clean run. Cells are S[layer, pos] (states), attention, MLP and heads of a "
        "block (parts), and the query, key and value of each head (projections), each at one "
        "position. estimator: exact patching, or an estimate from gradients: attribution patching "
        "(AtP), AtP*, RelP, and integrated gradients. agreement: Spearman's rank correlation of an "
        "estimate with exact patching, over the cells of one pair whose values differ and are read "
        "by the last position; of effects or of their sizes. agreement_of_means: the same for the "
        "mean effects of the pairs of a group. incompleteness: the sum of the effects of all "
        "positions of a layer minus the difference of the metric between the two runs, as a share "
        "of the mean difference of the group. Null: the donor run is that of another pair of the "
        "group."
    )
    outputs = {
        "states_effect": ("estimator", "donor", "layer", "pos", "example"),
        "parts_effect": ("estimator", "donor", "block", "part", "pos", "example"),
        "projections_effect": (
            *("estimator", "donor", "block", "projection", "head", "pos", "example"),
        ),
        "agreement": ("estimator", "ranked", "kind", "donor", "example"),
        "ranked_pairs": ("ranked", "kind", "donor", "example"),
        "agreement_of_means": ("estimator", "ranked", "kind", "donor", "of_group"),
        "incompleteness": ("estimator", "donor", "layer", "example"),
        "differing": ("donor", "example"),
        "difference": ("donor", "example"),
        "correct": ("example",),
    }
    given = {
        **dict.fromkeys(("states_effect", "parts_effect", "projections_effect"), "correct"),
        "agreement": "ranked_pairs",
        "incompleteness": "differing",
        "difference": "correct",
    }
    nulls = {"another pair's run": {"donor": DONORS[1]}}

    def outputs_of(
        self, found: Mapping[str, Array], counted: Bool[Array, "example group"]
    ) -> dict[str, Array]:
        """Return the effects, and how far the effects of a layer are from the whole difference."""
        difference, correct = found["difference"], counted.any(1)
        size = mean_by_group(
            jnp.abs(difference), jnp.broadcast_to(correct, difference.shape), counted
        )
        differing = correct[None] & (size > _MIN_DIFFERENCE)
        missing = jnp.abs(found["states"].sum(3) - difference[None, :, None])
        return {
            **{f"{kind}_effect": found[kind] for kind in self.kinds},
            "incompleteness": missing / jnp.where(differing, size, 1)[None, :, None],
            "differing": differing,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the agreement with exact patching, completeness, and the effects of states."""
        title = "Where do gradients mislead while the model learns?"
        return [
            agreement_figure(result, self.name, title),
            incompleteness_figure(result),
            states_figure(result),
        ]
