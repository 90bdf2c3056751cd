"""Patch activations between the clean and the corrupt prompt of each pair.

The user can choose the pairs and the metrics. The clean run and the corrupt run are the forward
passes on the two prompts of a pair. Noising patches activations of the corrupt run into the clean
run. Denoising patches activations of the clean run into the corrupt run. At every position, the
patched activations are the residual stream of each layer, and the outputs of the attention, the MLP
and the heads of each block.

A patch takes an activation from the donor run and inserts it into the base run. In noising, the
donor run is the corrupt run. In denoising, the donor run is the clean run. The recovery of a metric
is (patched - base) / mean(donor - base). The mean is over the pairs of the group whose clean prompt
is answered correctly. Recovery is 0 if patches do not change the metric. The mean recovery is 1 if
the mean metric of the patched runs is equal to the mean metric of the donor runs. Because the
denominator is a mean, pairs with a small difference `donor - base` do not dominate. The confidence
intervals treat the denominator as known.

Sources: Vig et al. 2020; Meng et al. 2022; Wang et al. 2023, "Interpretability in the wild"
(normalized logit difference); Zhang and Nanda 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    Claim,
    above_chance,
    claimed,
    has_min_clusters,
    known_means,
)
from implicit_reasoning.analysis.drawing import heat_maps, maps_over_steps
from implicit_reasoning.analysis.patching.grids import part_names, patch_parts, patch_states
from implicit_reasoning.analysis.patching.metrics import PairBatch, over_cells
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import (
    PairInstrument,
    batch_of,
    mean_by_group,
)
from implicit_reasoning.analysis.patching.query_pairs import BRIDGE, SAME
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import Cache, cache_sites
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset

DIRECTIONS = ("noising", "denoising")
DONORS = ("pair", "another pair")
_MIN_GAP = 1e-4  # recovery is not computed if the metrics of the two runs differ by less

Patch = Callable[[Transformer, Params, Cache, Cache], Array]
"""Type of a function that patches each cell of a grid from a donor run into a base run.

The arguments of the function are the model, the parameters, the base run and the donor run. It
returns logits [*cell, example, d_vocab].
"""

_STATES = ("direction", "donor", "layer", "pos", "example")
_PARTS = ("direction", "donor", "block", "part", "pos", "example")


class PairPatching(PairInstrument):
    """Instrument that patches states and block parts between the prompts of pairs."""

    name = "pair_patching"
    definition = (
        "Pairs of a clean and a corrupt prompt, of which the clean prompt is answered "
        "correctly. A value of the donor run replaces that of the base run, in noising (base "
        "clean, donor corrupt) or in denoising (base corrupt, donor clean). recovery: (patched "
        "- base) / (donor - base) of a metric, for S[layer, pos]; the denominator is its mean "
        "over the pairs of the group that count. followed: share of answers that are the "
        "corrupt answer of the pair (noising) or its clean answer (denoising), over pairs "
        "whose prompts are both answered correctly (both). part_...: the same for the output "
        "of one part of a block. clean, corrupt: the metric without a patch. compared: whether "
        "the metric counts for the pair, and its group means differ between the two runs. "
        "Null: the donor run is that of another pair of the group."
    )
    outputs = {
        "recovery": ("metric", *_STATES),
        "followed": _STATES,
        "part_recovery": ("metric", *_PARTS),
        "part_followed": _PARTS,
        "clean": ("metric", "example"),
        "corrupt": ("metric", "example"),
        "compared": ("metric", "example"),
        "correct": ("example",),
        "both": ("example",),
    }
    given = {
        **dict.fromkeys(("recovery", "part_recovery"), "compared"),
        **dict.fromkeys(("followed", "part_followed"), "both"),
        **dict.fromkeys(("clean", "corrupt"), "correct"),
    }
    nulls = {"another pair's run": {"donor": DONORS[1]}}
    default = False
    patches: ClassVar[Mapping[str, Patch]] = {"": patch_states, "part_": patch_parts}
    """Functions that compute grids of patches. The key begins the names of their outputs."""

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `pos` and `metric`.

        The method `examples` returns the labels of `pos` and `metric`, because these labels depend
        on the chosen pairs and metrics.
        """
        return {
            "direction": DIRECTIONS,
            "donor": DONORS,
            "layer": range(model.spec.depth + 1),
            "block": range(model.spec.depth),
            "part": part_names(model),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return cache_sites(model, inside=True)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all patches.

        Only pairs whose clean prompt is answered correctly without a patch are patched.
        """
        batch = batch_of(model, params, inputs)
        correct = answers_with(batch.clean_logits, batch.answer)
        both = correct & answers_with(batch.corrupt_logits, batch.corrupt_answer)
        clean, corrupt = (
            over_cells(self.metrics, logits, batch)
            for logits in (batch.clean_logits, batch.corrupt_logits)
        )
        counted = correct[None] & jnp.isfinite(clean) & jnp.isfinite(corrupt)
        gap = mean_by_group(corrupt - clean, counted, inputs["member"])
        wide = jnp.abs(gap) > _MIN_GAP

        def outcomes(example: dict[str, Any]) -> dict[str, Array]:
            return self._outcomes(model, params, example)

        examples = {
            **{name: inputs[name] for name in ("other_clean", "other_corrupt")},
            "batch": batch,
            # The example axis comes first, because examples are evaluated in chunks.
            "base": jnp.stack([clean, corrupt]).transpose(2, 0, 1),
            "gap": jnp.where(wide, gap, 1).T,
        }
        found = map_in_chunks(outcomes, examples, correct)
        return found | {
            "clean": clean,
            "corrupt": corrupt,
            "compared": counted & wide,
            "correct": correct,
            "both": both,
        }

    def _outcomes(
        self, model: Transformer, params: Params, example: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Compute the outcomes of some examples, for one (base run, donor run) at a time."""
        batch: PairBatch = example["batch"]
        prompts = (batch.clean, batch.corrupt, example["other_corrupt"], example["other_clean"])
        sites = self.sites(model)
        runs = jax.lax.map(
            lambda tokens: forward_at(model, params, tokens, sites=sites)[1], jnp.stack(prompts)
        )
        answers = jnp.stack([batch.corrupt_answer, batch.answer])  # the donor's answers
        gap = jnp.stack([example["gap"].T, -example["gap"].T])

        def patched(case: tuple[Array, Array, Array]) -> dict[str, Array]:
            direction, base, donor = case
            own, other = _taken(runs, base), _taken(runs, donor)
            found = {}
            for name, patch in self.patches.items():
                logits = patch(model, params, own, other)
                start, size = example["base"][:, direction].T, gap[direction]
                values = over_cells(self.metrics, logits, batch)
                grid = (slice(None), *[None] * (logits.ndim - 2))
                found[f"{name}recovery"] = (values - start[grid]) / size[grid]
                found[f"{name}followed"] = answers_with(logits, answers[direction])
            return found

        # Each case is (direction, base, donor). base and donor are indices into `prompts`.
        cases = [(0, 0, 1), (0, 0, 2), (1, 1, 0), (1, 1, 3)]
        found = jax.lax.map(patched, tuple(map(jnp.asarray, zip(*cases, strict=True))))
        shape = (len(DIRECTIONS), len(DONORS))
        found = {name: x.reshape(*shape, *x.shape[1:]) for name, x in found.items()}
        return {
            name: jnp.moveaxis(x, 2, 0) if name.endswith("recovery") else x
            for name, x in found.items()
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the recovery for patches of states and for patches of block parts.

        Patches of states are drawn over training. Patches of block parts are drawn at the last
        step.
        """
        group, metric = str(result["group"].values[0]), str(result["metric"].values[0])
        of_group = result.sel(group=group, metric=metric)
        states, parts = (known_means(of_group, name) for name in ("recovery", "part_recovery"))
        own, other = DONORS
        rows = {name: states.sel(direction=name, donor=own) for name in DIRECTIONS}
        rows["null: denoising,\nanother pair"] = states.sel(direction=DIRECTIONS[1], donor=other)
        options = result.attrs.get("options", self.options())
        about = (
            f"The pairs of prompts are {options['pairs']['name']}, group {group}, with clean "
            "prompts that are answered correctly. A cell is the normalized recovery of the "
            f"metric {metric}. It is 0 if the patch changes nothing, and 1 if the metric "
            "becomes that of the run that the value comes from. "
        )
        caption = about + (
            "Denoising puts S[layer, pos] of the clean run into the corrupt run, and noising "
            "puts that of the corrupt run into the clean run. A state with a recovery near 1 "
            "contains all information that differs between the prompts and matters for the "
            "answer. Other states may contain it as well. The row 'null' uses the state of "
            "another pair's run. A patch that only removes the answer moves a logit difference "
            f"by about half. White cells have fewer than {MIN_CLUSTERS} clusters that count, or "
            "no difference to recover."
        )
        drawing = maps_over_steps(rows, "normalized recovery")
        found = [
            Figure(
                "pair_patching",
                "Which states carry the difference between two prompts?",
                caption,
                drawing,
            )
        ]
        last = parts.isel(step=-1).sel(direction=DIRECTIONS[1])
        maps = {
            f"{title}at {pos}": last.sel(donor=donor, pos=pos)
            for title, donor in (("", own), ("null: another\npair, ", other))
            for pos in last["pos"].values
        }
        step = int(result["step"][-1])
        caption = about + (
            f"The maps are for denoising at step {step:,}: the output of one part of one block "
            "at one position of the clean run is put into the corrupt run. A part with a "
            "recovery near 1 restores the clean answer by itself. Parts that restore it only "
            "together stay near 0. The second row is the null: the output comes from another "
            "pair's run."
        )
        written = heat_maps(
            maps, "normalized recovery", ncols=last.sizes["pos"], rows="part", columns="block"
        )
        title = "Which part of a block restores the answer?"
        return [*found, Figure("pair_patching_parts", title, caption, written)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "carried" where a patch transfers the variable that differs between the prompts.

        With the built-in pairs `bridge`, e2 can be claimed at the positions e1 and r1. A claim
        needs two conditions:

        - Most answers become the answer to the corrupt prompt if the two prompts have different
          bridges.
        - Most answers stay the same if the two prompts have the same bridge.

        With the built-in pairs `exchange_X`, such as `exchange_r1`, the token X can be claimed at
        its own position. A claim needs a group in which a high share of answers becomes the answer
        to the corrupt prompt. The lower interval end of the share must be at least
        `MIN_LOWER_BOUND`.

        All shares are measured in noising, over pairs with two correctly answered prompts. A share
        of changed answers must also be above the null control. Pairs that a user defines give no
        claims.
        """
        pairs = result.attrs.get("options", self.options())["pairs"]["name"]
        if pairs == "bridge":
            at = {"direction": DIRECTIONS[0], "donor": DONORS[0], "group": SAME}
            same = _enough(result).sel(group=SAME) & (result.followed_low.sel(at) >= MAJORITY)
            there = same & _follows(result, MAJORITY).sel(group=BRIDGE)
            return _carried(
                "e2", there, [pos for pos in ("e1", "r1") if pos in there["pos"].values]
            )
        if pairs.startswith("exchange_"):
            token = pairs.removeprefix("exchange_")
            return _carried(token, _follows(result, MIN_LOWER_BOUND).any("group"), [token])
        return set()


def _taken(runs: dict[str, Array], number: Array) -> dict[str, Array]:
    """Return the run with index `number` from stacked runs."""
    return {site: values[number] for site, values in runs.items()}


def _enough(result: xr.Dataset) -> xr.DataArray:
    there = has_min_clusters(result, "followed")
    return there.sel(direction=DIRECTIONS[0], donor=DONORS[0], drop=True)


def _follows(result: xr.Dataset, least: float) -> xr.DataArray:
    """Return bool [group, ...]: whether enough answers become the answer to the donor's prompt.

    The lower end of their share must be at least `least`, and above the null control.
    """
    noising = result.sel(direction=DIRECTIONS[0], drop=True)
    return _enough(result) & above_chance(noising, "followed", {"donor": DONORS}, least=least)


def _carried(variable: str, there: xr.DataArray, positions: Sequence[str]) -> set[Claim]:
    return claimed("carried", there.sel(pos=list(positions)).expand_dims(variable=[variable]))
