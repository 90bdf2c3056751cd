"""The logit lens, which applies the unembedding of the model to the state of each layer.

A truth variable is a variable whose value the dataset knows, such as e2. At every (layer,
position), the lens computes the rank, the top-1 share and the reciprocal rank of the token of every
truth variable. States are unembedded with the final norm (Wang et al. 2024, section 3.3;
nostalgebraist 2020), and without the final norm ("immediate probing", Ye et al. 2025). Tokens are
ranked among all tokens, and among the tokens of the same type (entities or relations).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.claims import (
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    Claim,
    above_chance,
    claimed,
)
from implicit_reasoning.analysis.drawing import curves, heat_maps, some_groups
from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.analysis.states import (
    chain_splits,
    chain_variables,
    choose_rows,
    prompts,
    residuals,
    state_clusters,
)
from implicit_reasoning.figures import GREY, Figure
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.worlds import Dataset

NORMS = ("final norm", "no norm")
VOCABULARIES = ("all tokens", "own kind")
_MAX_ROWS = 300  # maximum number of rows per split, as in the paper of Wang et al.


class LogitLens(Instrument):
    """Instrument that unembeds each state and ranks the tokens of variables such as e2."""

    name = "lens"
    version = 2
    definition = (
        "rank: rank of a truth variable's token in unembed(norm(S[layer, pos])), or in "
        "unembed(S[layer, pos]); rank 0 is the highest logit. top1: whether the rank is 0; a "
        "tie counts against the token. reciprocal_rank: 1 / (1 + rank). Ranks are among all "
        "tokens, or among the tokens of the variable's kind. Null: the truth of another "
        "example, drawn at random."
    )
    outputs = {
        name: ("norm", "vocabulary", "truth", "variable", "layer", "pos", "example")
        for name in ("rank", "top1", "reciprocal_rank")
    }
    nulls = {"shuffled truth": {"truth": "shuffled"}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts are full chains, such as (e1, r1, r2).

        Rows with the same bridge (e2) form a cluster in confidence intervals. At positions whose
        prefix does not determine the bridge, rows with the same prefix form a cluster.
        """
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        variables = chain_variables(dataset, rows)
        first = [variables.first_token[kind] for kind in variables.kinds]
        size = [variables.sizes[kind] for kind in variables.kinds]
        shuffled = np.random.default_rng(0).permutation(len(rows))
        inputs = {
            "tokens": prompts(dataset, rows),
            "wanted": np.stack([variables.tokens, variables.tokens[:, shuffled]]),
            "first": np.array(first, np.int32),
            "end": np.array(first, np.int32) + np.array(size, np.int32),
        }
        return Examples(
            inputs,
            groups=splits,
            group=group,
            clusters=state_clusters(dataset, rows),
            cluster_dim="pos",
            coords={
                "variable": variables.names,
                "norm": NORMS,
                "vocabulary": VOCABULARIES,
                "truth": ("true", "shuffled"),
            },
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the rank of every variable in every state, and metrics of the rank."""
        states = residuals(model, params, inputs["tokens"])
        network = model.bind(params)

        token = jnp.arange(model.spec.d_vocab)[None]
        own_kind = (token >= inputs["first"][:, None]) & (token < inputs["end"][:, None])
        wanted = jnp.asarray(inputs["wanted"])

        def place(state: Array) -> Array:
            """Return ranks [norm, vocabulary, truth, variable, example] at a (layer, position)."""
            both = network.readout(state, HookContext()), network.unembedding(state)
            return jnp.stack(
                [
                    jnp.stack([ranks(logits, wanted), ranks(logits, wanted, own_kind)])
                    for logits in both
                ]
            )

        by_place = jax.lax.map(
            lambda states: jax.lax.map(place, states), jnp.swapaxes(states, 1, 2)
        )
        rank = jnp.moveaxis(by_place, (0, 1), (4, 5))
        return {"rank": rank, "top1": rank == 0, "reciprocal_rank": 1 / (1 + rank)}

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "decodable" where the token of a variable has rank 0 in most rows of a split.

        The share of rows must also be above the null control, in which the truth is shuffled. The
        split must have at least `MIN_CLUSTERS` clusters, because the null control is imprecise with
        fewer clusters.
        """
        best = result.sel(norm=NORMS[0], vocabulary=VOCABULARIES[0])
        by_chance = {"truth": ("true", "shuffled")}
        there = above_chance(best, "top1", by_chance, least=MIN_LOWER_BOUND)
        enough = result["n_states"] >= MIN_CLUSTERS
        return claimed("decodable", (enough & there).any("group"))

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the top-1 share of some variables over training, and maps of all variables."""
        return [_over_training(result), _places(result)]


def _over_training(result: xr.Dataset) -> Figure:
    """Draw the reciprocal rank and the top-1 share over training, for every layer.

    Figure 4c of Wang et al. 2024 shows the reciprocal rank.
    """
    positions, group = list(result.pos.values), some_groups(result)[0]
    wanted = {
        variable: first_known_position(variable, positions) for variable in ("e2", "r2", "answer")
    }
    result = result.sel(group=group, norm=NORMS[0], vocabulary=VOCABULARIES[0])
    both = xr.concat([result, result], "outcome").assign_coords(outcome=["MRR", "top-1"])
    for end in ("", "_low", "_high"):
        parts = [result[f"{name}{end}"] for name in ("reciprocal_rank", "top1")]
        both[f"shown{end}"] = xr.concat(parts, "outcome")
    panels = {
        f"{outcome} of {variable} at {pos}": {"variable": variable, "pos": pos, "outcome": outcome}
        for outcome in ("MRR", "top-1")
        for variable, pos in wanted.items()
    }
    drawing = curves(
        both,
        "shown",
        panels,
        select={"truth": "true"},
        nulls={"null: shuffled truth": ({"truth": "shuffled"}, GREY)},
        label="MRR (top), share with rank 0 (bottom)",
        ncols=len(wanted),
    )
    n = ", ".join(f"{int(result['n_states'].sel(pos=p))} at {p}" for p in wanted.values())
    caption = (
        "Each curve shows what the model's own unembedding reads from one layer, with the final "
        "norm. The top row is the mean reciprocal rank of the variable's token among all "
        "tokens, as in figure 4c of Wang et al. 2024. The bottom row is the share of prompts in "
        f"which this token has rank 0. The prompts are from {group}. The shading is the 95% "
        "interval, clustered by bridge at positions where the bridge is known, and by prefix at "
        f"earlier positions (numbers of clusters: {n}). The dashed line is the null: the truth "
        "of another prompt, as the maximum over layers. If training also asks for the single "
        "fact (e1, r1) -> e2, then e2 at r1 is high in the last layer by construction. The "
        "answer at the end is high there by construction too. Relations are never answers, so "
        "this lens can find them only in a tied model, where the embedding is the unembedding."
    )
    return Figure("lens", "Logit lens over training", caption, drawing)


def _places(result: xr.Dataset) -> Figure:
    group = some_groups(result)[0]
    final = result.isel(step=-1).sel(group=group, norm=NORMS[0], vocabulary=VOCABULARIES[0])
    ranked = final["reciprocal_rank"]
    maps = {str(v): ranked.sel(truth="true", variable=v) for v in result["variable"].values}
    maps["null: shuffled truth\n(maximum)"] = ranked.sel(truth="shuffled").max("variable")
    drawing = heat_maps(maps, "mean reciprocal rank")
    caption = (
        "A cell is the mean reciprocal rank of a variable's token among all tokens at one layer "
        "and position, read by the unembedding with the final norm. The prompts are from "
        f"{group}, at step {int(result.step[-1]):,}. The last map is the null: the truth of "
        "another prompt, as the maximum over variables. Relations are few, so their null is "
        "high wherever relations have high ranks at all."
    )
    return Figure("lens_map", "Logit lens at every layer and position", caption, drawing)
