"""The base class of instruments that compare estimated effects of patches with exact effects.

The clean run and the corrupt run are the forward passes on the two prompts of a pair. A patch takes
one value from the corrupt run and inserts it into the clean run (noising). The effect of a patch is
the metric after the patch minus the metric of the clean run. As a null control, the donor run is
the corrupt run of another pair of the group.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.components.agreement import RANKED, compare_effects
from implicit_reasoning.analysis.components.estimates import (
    ESTIMATES,
    cell_sites,
    estimated_effects,
    moved_cells,
    reach_answer,
)
from implicit_reasoning.analysis.instrument import Examples, NotApplicable
from implicit_reasoning.analysis.patching.grids import (
    part_names,
    patch_neurons,
    patch_parts,
    patch_states,
)
from implicit_reasoning.analysis.patching.metrics import Metric, PairBatch, over_cells
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import (
    PairInstrument,
    alternate_clusters,
    batch_of,
    limit_pairs,
)
from implicit_reasoning.analysis.patching.pairs import PairsFunction
from implicit_reasoning.analysis.patching.projections import PROJECTIONS, patch_projections
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.cones import Cache, cache_sites
from implicit_reasoning.model.edits import expand_to_rank
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset

ESTIMATORS = ("patching", *ESTIMATES)
"""Exact patching, and the estimates: the labels of the dimension `estimator`."""

DONORS = ("pair", "another pair")
_NODES = 16

EXACT_PATCHES: Mapping[str, Callable[[Transformer, Params, Cache, Cache], Array]] = {
    "states": patch_states,
    "parts": patch_parts,
    "projections": patch_projections,
    "neurons": patch_neurons,
}
"""For each kind of cells, the function that patches each cell of a donor run into a base run."""


class PairAttribution(PairInstrument):
    """Base class of instruments that compare estimated effects with exact effects.

    Attributes:
      kinds: the kinds of cells; see `estimates`.
      max_pairs: the maximum number of pairs of each group.
      at_once: the number of pairs that are measured at the same time.
      nodes: the number of quadrature nodes of integrated gradients of states.
    """

    kinds: ClassVar[tuple[str, ...]]
    max_pairs: ClassVar[int] = 48  # of each group, because integrated gradients are costly
    at_once: ClassVar[int] = 64
    default = False
    version = 2

    def __init__(
        self,
        pairs: str | PairsFunction = "bridge",
        metrics: Sequence[str | Metric] = ("logit_difference",),
        nodes: int = _NODES,
    ):
        """Find the function that makes the pairs, and the metric.

        Args:
          pairs: a key of `pairs.PAIRS`, an import path, or a function.
          metrics: one metric: a key of `metrics.METRICS`, an import path, or a function. It must be
            differentiable, so `accuracy` gives estimates of 0.
          nodes: number of quadrature nodes of integrated gradients of states. The other kinds have
            a quarter of them.

        Raises:
          InputError: a function is not found, there is more than one metric, or `nodes` is below 1.
        """
        super().__init__(pairs, metrics)
        self.require_one_metric()
        if nodes < 1:
            raise InputError(f"nodes is {nodes}; it must be at least 1, such as {_NODES}")
        self.nodes = nodes

    def options(self) -> dict[str, Any]:
        """Return the identity of the pairs function and of the metric, and the number of nodes."""
        return super().options() | {"nodes": self.nodes}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the prompt pairs, and keep some pairs of each group, from many clusters.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        made = alternate_clusters(super().examples(model, dataset))
        made = limit_pairs(made, self.max_pairs)
        return dataclasses.replace(made, coords={**made.coords, "of_group": made.groups})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `pos` and `of_group`.

        The method `examples` returns these, because they depend on the chosen pairs.
        """
        return {
            "estimator": ESTIMATORS,
            "ranked": RANKED,
            "kind": self.kinds,
            "donor": DONORS,
            "layer": range(model.spec.depth + 1),
            "block": range(model.spec.depth),
            "part": part_names(model),
            "projection": PROJECTIONS,
            "head": range(model.spec.n_heads),
            "neuron": range(model.spec.d_mlp),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        sites = (*cache_sites(model, inside=True), *cell_sites(model, self.kinds))
        return tuple(dict.fromkeys(sites))

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute exact and estimated effects, and compare them.

        Only pairs whose clean prompt is answered correctly without a patch are patched.
        """
        batch = batch_of(model, params, inputs)
        correct = answers_with(batch.clean_logits, batch.answer)
        examples = {"batch": batch, "other": jnp.asarray(inputs["other_corrupt"])}
        found = map_in_chunks(
            lambda example: self._outcomes(model, params, example),
            examples,
            correct,
            at_once=self.at_once,
        )
        counted = jnp.asarray(inputs["member"]) & correct[:, None]
        n_pos = batch.clean.shape[1]
        compared = [
            compare_effects(
                found[kind], found[f"{kind} moved"], reach_answer(model, kind, n_pos), counted
            )
            for kind in self.kinds
        ]
        by_kind = jax.tree.map(lambda *each: jnp.stack(each, axis=-3), *compared)
        return self.outputs_of(found, counted) | {
            "agreement": by_kind.by_pair,
            "ranked_pairs": by_kind.ranked & correct[None, None, None],
            "agreement_of_means": by_kind.of_means,
            "difference": found["difference"],
            "correct": correct,
        }

    def _outcomes(
        self, model: Transformer, params: Params, example: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Compute the effects of all patches for some examples.

        Returns:
          The effects by kind, [estimator, donor, *cell, example]; whether the values of each cell
          differ, under the key `<kind> moved`; `difference` [donor, example], the metric of the
          donor run minus that of the clean run; and the effects of further patches.
        """
        batch: PairBatch = example["batch"]
        sites = self.sites(model)

        def run(tokens: Array) -> tuple[Array, dict[str, Array]]:
            logits, values = forward_at(model, params, tokens, sites=sites)
            return logits[:, 0], values

        def metric(logits: Array) -> Array:
            return self.metrics[0].call(logits, batch)

        clean, base = run(batch.clean)
        donor_logits, donors = jax.lax.map(run, jnp.stack([batch.corrupt, example["other"]]))
        start = metric(clean)

        def exact(donor: Cache) -> dict[str, Array]:
            found = self.patched(model, params, batch, base, donor)
            return {name: x - expand_to_rank(start, x) for name, x in found.items()}

        def moved(donor: Cache) -> dict[str, Array]:
            differences = {site: donor[site] - base[site] for site in sites}
            return moved_cells(model, differences, self.kinds)

        estimates = estimated_effects(
            model,
            params,
            batch.clean,
            lambda logits: metric(logits[:, 0]),
            donors,
            self.kinds,
            self.nodes,
        )
        patched = jax.lax.map(exact, donors)
        for kind, values in estimates.items():
            patched[kind] = jnp.concatenate([patched[kind][None], values])
        changed = {f"{kind} moved": x for kind, x in jax.vmap(moved)(donors).items()}
        return patched | changed | {"difference": jax.vmap(metric)(donor_logits) - start[None]}

    def patched(
        self, model: Transformer, params: Params, batch: PairBatch, base: Cache, donor: Cache
    ) -> dict[str, Array]:
        """Return the metric after exact patches, [*cell, example].

        The keys are the kinds of cells, and names of further patches.
        """
        return {
            kind: over_cells(self.metrics, EXACT_PATCHES[kind](model, params, base, donor), batch)[
                0
            ]
            for kind in self.kinds
        }

    @abc.abstractmethod
    def outputs_of(
        self, found: Mapping[str, Array], counted: Bool[Array, "example group"]
    ) -> dict[str, Array]:
        """Return the outputs that `measure` does not return for every subclass.

        Args:
          found: the effects by kind, [estimator, donor, *cell, example], and those of further
            patches, [donor, *cell, example].
          counted: for each group, the pairs whose clean prompt is answered correctly.
        """
