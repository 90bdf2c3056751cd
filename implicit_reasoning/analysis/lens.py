"""The logit lens: what an early state already says, read with the model's own unembedding.

Rank, top-1 and reciprocal rank of every truth variable at every (layer, position), with the final
norm (Wang et al. 2024, section 3.3; nostalgebraist 2020) and without it (Ye et al. 2025's
"immediate probing"), among all tokens and among those of the variable's kind.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.claims import Claim, claimed
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import (
    chain_splits,
    chain_variables,
    choose_rows,
    prompts,
    resid_sites,
    residuals,
    state_keys,
)
from implicit_reasoning.model import Params, Taps, Transformer
from implicit_reasoning.worlds import Dataset

NORMS = ("final norm", "no norm")
VOCABULARIES = ("all tokens", "own kind")
_MOST = 300  # rows of a split, as published
_DECODED = 0.9  # top-1 among all tokens with the final norm, lower end of the interval
_CHANCE = 3.0  # times the null (shuffled truth) that it must be, too


class LogitLens(Instrument):
    """See the module."""

    name = "lens"
    definition = (
        "Rank of a truth variable's token in unembed(norm(S[layer, pos])); top1 is rank 0, a tie "
        "counts against it, reciprocal_rank is 1 / (1 + rank). Vocabulary: all tokens, or those of "
        "the variable's kind. Null: the truth of another example, drawn at random."
    )
    outputs = {
        name: ("norm", "vocabulary", "truth", "variable", "layer", "pos", "example")
        for name in ("top1", "reciprocal_rank")
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Probe rows of every split of chains; a state is one distinct prefix."""
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MOST)
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
            clusters=state_keys(dataset, rows),
            cluster_dim="pos",
            coords={
                "variable": variables.names,
                "norm": NORMS,
                "vocabulary": VOCABULARIES,
                "truth": ("true", "shuffled"),
            },
        )

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """The residuals."""
        return resid_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Outcomes of every example."""
        states = residuals(model, params, inputs["tokens"])
        network = model.bind(params)

        def ranks(logits: Array) -> Array:
            """[vocabulary, truth, variable, example] of one (norm, layer, position)."""
            wanted = inputs["wanted"]
            of_wanted = jnp.take_along_axis(logits[None, None], wanted[..., None], axis=-1)
            better = ~(logits[None, None] < of_wanted)  # ties, nans and the token itself too
            token = jnp.arange(logits.shape[-1])[None]
            kind = (token >= inputs["first"][:, None]) & (token < inputs["end"][:, None])
            return jnp.stack([better.sum(-1), (better & kind[None, :, None]).sum(-1)]) - 1

        def place(state: Array) -> Array:
            """[norm, vocabulary, truth, variable, example] of one (layer, position)."""
            return jnp.stack(
                [ranks(network.readout(state, Taps())), ranks(network.unembedding(state))]
            )

        by_place = jax.lax.map(
            lambda states: jax.lax.map(place, states), jnp.swapaxes(states, 1, 2)
        )
        rank = jnp.moveaxis(by_place, (0, 1), (4, 5))
        return {"top1": rank == 0, "reciprocal_rank": 1 / (1 + rank)}

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """A variable is decodable where most examples have it on top, and not by chance."""
        best = result.sel(norm=NORMS[0], vocabulary=VOCABULARIES[0])
        low = best["top1_low"].sel(truth="true").max("group")
        null = best["top1"].sel(truth="shuffled").max("group")
        there = (low >= _DECODED) & (low >= _CHANCE * null)
        return claimed("decodable", there)
