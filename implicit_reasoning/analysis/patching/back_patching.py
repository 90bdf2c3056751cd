"""Back-patching: patch the state of a later layer into an earlier layer, at one position.

A model may compute the first hop only after the layers that compute the second hop. The answer is
then wrong. If the later state, which represents the bridge, is patched into an earlier layer, the
answer can become right. All pairs of layers are measured, including patches from an earlier into a
later layer. A patched wrong answer has one of three outcomes: it becomes right, it stays the same,
or it becomes a different wrong answer (damage). With much damage, some answers become right by
chance.

Source: Biran et al. 2024, "Hopping too late", section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.drawing import maps_over_steps, some_groups
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.outcomes import answers_with, probability
from implicit_reasoning.analysis.states import chain_splits, choose_rows
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import Cache, cache_sites, patched_logits, state
from implicit_reasoning.model.edits import expand_to_rank
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

DONORS = ("own", "another's")
OUTCOMES = ("unchanged", "repaired", "other")
"""What a patch does to a wrong answer: leaves it, makes it right, or makes it wrong differently."""

_MAX_ROWS = 150  # maximum number of rows per split
_SEED = 0
_CELLS = ("donor", "pos", "from_layer", "layer", "example")


class BackPatching(Instrument):
    """Instrument that patches later states into earlier layers, for wrongly answered queries."""

    name = "back_patching"
    version = 4
    definition = (
        "S[from_layer, pos] replaces S[layer, pos] of the same run, for queries that are "
        "answered wrongly (Biran et al. 2024). repaired: share that is then answered "
        "correctly. unchanged: share that keeps its wrong answer. other: share that gets a "
        "different wrong answer, which is damage. probability: probability of the right "
        "answer. correct: share of all queries that are answered correctly without a patch. "
        "Null: the state of another query's run."
    )
    outputs = {
        **dict.fromkeys((*OUTCOMES, "probability"), _CELLS),
        "wrong": ("example",),
        "correct": ("example",),
    }
    given = dict.fromkeys((*OUTCOMES, "probability"), "wrong")
    nulls = {"another question's state": {"donor": DONORS[1]}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts are full chains, such as (e1, r1, r2).

        In confidence intervals, rows with the same bridge (e2) form a cluster.
        """
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        asked = queries.queries_of_rows(dataset, rows)
        tokens = queries.prompt_tokens(dataset, asked.parts)
        other = np.random.default_rng(_SEED).permutation(len(rows))
        inputs = {"tokens": tokens, "others": tokens[other], "answer": asked.answer}
        clusters = clusters_of(dataset, rows)
        return Examples(inputs, splits, group, clusters, coords={"donor": DONORS})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the layers, of the positions, and of `from_layer`.

        The state is taken from the layer `from_layer` and replaces the state of the layer `layer`.
        """
        return super().coords(model, dataset) | {"from_layer": range(model.spec.depth + 1)}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return cache_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all patches, for queries that the model answers wrongly."""
        sites = cache_sites(model)

        def outcomes(question: dict[str, Array]) -> dict[str, Array]:
            _, base = model.forward(params, question["tokens"], sites=sites)
            _, other = model.forward(params, question["others"], sites=sites)
            grid = jnp.stack([_from_all_layers(model, params, base, d) for d in (base, other)])
            repaired = answers_with(grid, question["answer"])
            # `outcomes_of` cannot be used here. It counts a tie of logits as no answer, but here a
            # tie is a wrong answer, which can stay unchanged.
            says = grid.argmax(-1)
            unchanged = ~repaired & (says == expand_to_rank(question["said"], says))
            became = (unchanged, repaired, ~(unchanged | repaired))
            by_share = dict(zip(OUTCOMES, became, strict=True))
            return by_share | {"probability": probability(grid, question["answer"])}

        logits = final_logits(model, params, inputs["tokens"])
        correct = answers_with(logits, inputs["answer"])
        asked = inputs | {"said": logits.argmax(-1)}
        return map_in_chunks(outcomes, asked, ~correct) | {"wrong": ~correct, "correct": correct}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the shares of repaired and of damaged answers, for every pair of layers."""
        group = some_groups(result)[-1]
        repaired, damaged = (
            known_means(result, name).sel(group=group) for name in ("repaired", "other")
        )
        rows = {
            f"position {pos}": repaired.sel(donor=DONORS[0], pos=pos) for pos in result.pos.values
        }
        rows["null: another query,\nmaximum over pos"] = repaired.sel(donor=DONORS[1]).max("pos")
        rows["new wrong answer,\nmean over pos"] = damaged.sel(donor=DONORS[0]).mean("pos")
        caption = (
            f"The figure has the queries of {group} that are answered wrongly. In a cell, the "
            "state after from_layer blocks replaces the state after `layer` blocks, at one "
            "position. In the first rows of maps, a cell is the share of queries that are then "
            "answered correctly, for the position in the title. Above the diagonal, a later "
            "state replaces an earlier one. On the diagonal nothing changes, so the share is 0. "
            "The row 'null' uses the state of another query, and shows the maximum over "
            "positions. The highest of many cells is high by chance as well, so compare it with "
            "the highest cell of the null. The last row is damage: the share of queries that "
            "get a different wrong answer, as the mean over positions. White cells have fewer "
            f"than {MIN_CLUSTERS} bridges that count."
        )
        drawing = maps_over_steps(
            rows, "share of wrong answers", rows="from_layer", columns="layer"
        )
        return [
            Figure("back_patching", "Does a later state correct wrong answers?", caption, drawing)
        ]


def _from_all_layers(model: Transformer, params: Params, base: Cache, donor: Cache) -> Array:
    """Return the logits of `base` with the state of any layer of `donor` in any layer.

    Returns:
      [pos, from_layer, layer, example, d_vocab], logits at the last position.
    """
    layers = range(model.spec.depth + 1)
    n_pos = state(model, base, 0).shape[1]

    def at(pos: int) -> Array:
        taken = jnp.stack([state(model, donor, layer)[:, pos] for layer in layers])
        found = patched_logits(model, params, base, {(layer, pos): taken for layer in layers})
        return jnp.stack([found[layer, pos] for layer in layers], axis=1)

    return jnp.stack([at(pos) for pos in range(n_pos)])
