"""Patch single neurons between the prompts of pairs.

Each patch replaces one neuron (`mlp.hook_post`) of one block at one position. `pair_patching`
defines the outputs. Patching every neuron at every position is expensive, so this instrument runs
only if the user names the instrument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, Claim, known_means
from implicit_reasoning.analysis.drawing import heat_maps
from implicit_reasoning.analysis.patching.grids import patch_neurons
from implicit_reasoning.analysis.patching.pair_patching import DIRECTIONS, DONORS, PairPatching
from implicit_reasoning.analysis.states import neuron_sites
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.worlds import Dataset

_NEURONS = ("direction", "donor", "block", "neuron", "pos", "example")
_SHOWN = 15  # number of neurons in the figure


class NeuronPatching(PairPatching):
    """Instrument that patches single neurons between the prompts of pairs."""

    name = "neuron_patching"
    definition = (
        "Patching of single neurons. neuron_recovery and neuron_followed are defined as "
        "recovery and followed of pair_patching, with the activation of one neuron "
        "(mlp.hook_post) at one position taken from the donor run."
    )
    outputs = {
        "neuron_recovery": ("metric", *_NEURONS),
        "neuron_followed": _NEURONS,
        **{name: PairPatching.outputs[name] for name in ("clean", "corrupt", "compared")},
        **{name: PairPatching.outputs[name] for name in ("correct", "both")},
    }
    given = {
        "neuron_recovery": "compared",
        "neuron_followed": "both",
        **dict.fromkeys(("clean", "corrupt"), "correct"),
    }
    patches = {"neuron_": patch_neurons}

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `pos` and `metric`."""
        return super().coords(model, dataset) | {"neuron": range(model.spec.d_mlp)}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return (*cache_sites(model, inside=True), *neuron_sites(model))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the recovery of the best neurons at the last step, by position."""
        group, metric = str(result["group"].values[0]), str(result["metric"].values[0])
        at = {"group": group, "metric": metric, "direction": DIRECTIONS[1]}
        last = result.isel(step=-1).sel(at)
        known = known_means(last, "neuron_recovery")
        own, null = (
            known.sel(donor=donor, drop=True).stack(cell=("block", "neuron")) for donor in DONORS
        )
        best = np.argsort(-own.max("pos").fillna(-np.inf).values, kind="stable")[:_SHOWN][::-1]
        maps = []
        for values in (own, null):
            chosen = values.isel(cell=best)
            names = [f"{block}.{neuron}" for block, neuron in chosen["cell"].values]
            chosen = chosen.drop_vars(("cell", "block", "neuron")).assign_coords(cell=names)
            maps.append({f"step {int(result['step'][-1]):,}": chosen.rename(cell="neuron")})
        options = result.attrs.get("options", self.options())
        caption = (
            f"The figure has the {_SHOWN} neurons (block.neuron) with the highest recovery at "
            "any position. The activation of a neuron in the clean run is put into the corrupt "
            f"run (denoising). A cell is the normalized recovery of the metric {metric}: it is "
            "0 if nothing changes, and 1 if the metric becomes that of the clean run. The pairs "
            f"are {options['pairs']['name']}, group {group}, with clean prompts that are "
            "answered correctly. The number in brackets is the null: the activation comes from "
            "the clean run of another pair. The neurons are the highest of many, and the "
            "highest of many is high by chance as well. White cells have fewer than "
            f"{MIN_CLUSTERS} clusters that count."
        )
        drawing = heat_maps(maps[0], "normalized recovery", nulls=maps[1], rows="neuron", width=0.9)
        return [Figure(self.name, "Which neurons restore the answer?", caption, drawing)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Return no claims, because a patch does not show which variable a neuron represents."""
        return set()
