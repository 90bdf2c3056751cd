"""Activation patching between a query and a corrupted copy of the query.

The clean run is the forward pass on the query. The corrupted run is the forward pass on a copy in
which one token is corrupted. Noising patches states of the corrupted run into the clean run.
Denoising patches states of the clean run into the corrupted run. The state at every (layer,
position) is patched. There are three corruptions:

- `counterfactual` replaces the token so that the new query has a known, different answer. If
  possible, the new query is a training query. A model that only memorizes training queries can then
  also answer the new query. For this corruption, the outputs of attention, of the MLP and of each
  head are also patched.
- `symmetric` replaces the token by a random token of the same type (entity or relation). The new
  query may have no answer, or the same answer as the clean query.
- `noise` adds Gaussian noise to the embedding of the token. The standard deviation of the noise is
  three times the standard deviation of the embedding matrix.

Sources: Wang et al. 2024, section 3.3 (counterfactual corruption); Zhang and Nanda 2024 (symmetric
corruption, metrics); Meng et al. 2022 (noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import (
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    MIN_TIMES_CHANCE,
    Claim,
    has_min_clusters,
    known_means,
)
from implicit_reasoning.analysis.drawing import maps_over_steps
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.grids import (
    noising_and_denoising,
    part_names,
    patch_parts,
    patch_states,
)
from implicit_reasoning.analysis.patching.outcomes import (
    GRADED_METRICS,
    OUTCOMES,
    answers_with,
    graded_metrics,
    outcomes_of,
)
from implicit_reasoning.analysis.patching.query_pairs import replacements, symmetric_replacements
from implicit_reasoning.analysis.states import chain_splits, choose_rows
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Edit, Params, Transformer, add
from implicit_reasoning.model.cones import Cache, cache_sites
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

CORRUPTIONS = ("counterfactual", "symmetric", "noise")
DIRECTIONS = ("noising", "denoising")
_MAX_ROWS = 150  # maximum number of rows per split
_SIGMAS = 3.0
_SEED = 0

_STATES = ("direction", "kind", "token", "layer", "pos", "example")
_PARTS = ("direction", "token", "block", "part", "pos", "example")
_PARTS_GRADED = tuple(f"part_{name}" for name in GRADED_METRICS)


class ActivationPatching(Instrument):
    """Instrument that patches states between a query and a copy with one corrupted token."""

    name = "activation_patching"
    version = 3
    definition = (
        "One token of a query is corrupted. S[layer, pos] of the corrupted run replaces that "
        "of the clean run (noising), or the reverse (denoising). Shares are over queries that "
        "are answered correctly when clean. fraction: share of predictions that are the clean "
        "answer, the counterfactual answer (that of the query with the exchanged token), or "
        "another answer. A symmetric token may give a query that has no answer or the clean "
        "answer, and noise gives no query; no prediction then counts as counterfactual. "
        "compared: whether there is a counterfactual answer. null_fraction: share of "
        "predictions that are the counterfactual answer of another query. logit_difference: "
        "logit of the clean answer minus that of the counterfactual answer, over compared "
        "queries. probability: probability of the clean answer. divergence: KL(clean run || "
        "patched run), in nats. part_...: the same for the output of one part of a block, for "
        "counterfactual tokens only. followed: share of counterfactual answers in noising, "
        "over queries whose counterfactual query is also answered correctly."
    )
    outputs = {
        "fraction": ("outcome", *_STATES),
        "null_fraction": _STATES,
        "compared": ("kind", "token", "example"),
        **dict.fromkeys(GRADED_METRICS, _STATES),
        "part_fraction": ("outcome", *_PARTS),
        "part_null_fraction": _PARTS,
        **dict.fromkeys(_PARTS_GRADED, _PARTS),
        "followed": ("token", "layer", "pos", "example"),
        "counts": ("token", "example"),
        "both_correct": ("token", "example"),
        "corrupted": ("kind", "token", "example"),
        "correct": ("example",),
    }
    given = {
        **dict.fromkeys(("fraction", "null_fraction", *GRADED_METRICS, "corrupted"), "counts"),
        "logit_difference": "compared",
        **dict.fromkeys(("part_fraction", "part_null_fraction", *_PARTS_GRADED), "counts"),
        "followed": "both_correct",
    }
    nulls = {
        "answer of another question": "null_fraction",
        "answer of another question, for parts": "part_null_fraction",
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts are full chains, such as (e1, r1, r2).

        In confidence intervals, rows with the same bridge (e2) form a cluster.
        """
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        asked, random = queries.queries_of_rows(dataset, rows), np.random.default_rng(_SEED)
        order = queries.prompt_order(dataset)
        token, answer = replacements(dataset, asked, random)
        another = random.permutation(len(rows))
        symmetric, its_answer = symmetric_replacements(dataset, asked, random)
        answers = np.stack([answer, its_answer, np.full_like(answer, -1)])[:, order]
        shuffled = answers[:, :, another]
        shuffled = np.where(shuffled == asked.answer, -1, shuffled)
        inputs = {
            "clean": asked.answer,
            "tokens": queries.prompt_tokens(dataset, asked.parts),
            # The example axis comes first, because examples are evaluated in chunks.
            "corrupt": _by_example(np.stack([token, symmetric])[:, order]),
            "answer": _by_example(answers),
            "shuffled": _by_example(shuffled),
            "noise": random.standard_normal((len(rows), model.spec.d_model)).astype(np.float32),
        }
        coords = {"outcome": OUTCOMES, "direction": DIRECTIONS, "kind": CORRUPTIONS}
        coords["token"] = dataset.positions
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the layers, positions, blocks and block parts."""
        of_parts = {"block": range(model.spec.depth), "part": part_names(model)}
        return super().coords(model, dataset) | of_parts

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return cache_sites(model, inside=True)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all patches.

        Only queries that the model answers correctly without a patch are patched.
        """
        correct = answers_with(final_logits(model, params, inputs["tokens"]), inputs["clean"])
        # A query counts for a token if the model answers the query correctly and the query with
        # this token exchanged has a known answer.
        known = jnp.moveaxis(jnp.asarray(inputs["answer"]) >= 0, 0, -1)  # [kind, token, example]
        counts = correct[None] & known[0]
        found = map_in_chunks(lambda e: _outcomes(model, params, e), inputs, counts.any(0))
        both_correct = counts & found["corrupted"][0]
        found |= {"counts": counts, "both_correct": both_correct, "correct": correct}
        return found | {"compared": counts[None] & known}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of answers that become the answer to the query with the replaced token.

        The first figure shows patches of states. The second figure shows patches of block parts.
        """
        group = str(result.group.values[0])
        of_group = result.sel(group=group, direction="noising")
        moved = known_means(of_group, "fraction").sel(outcome=OUTCOMES[1], kind=CORRUPTIONS[0])
        rows = {f"{token}\nexchanged": moved.sel(token=token) for token in result.token.values}
        null = known_means(of_group, "null_fraction").sel(kind=CORRUPTIONS[0])
        rows_and_null = rows | {"null: answer to\nanother query": null.max("token")}
        caption = (
            f"The figure has the queries of {group} that are answered correctly without a "
            "patch. One input token is exchanged (rows of maps), and S[layer, pos] of the run "
            "with the exchanged token replaces that of the clean run. A cell is the share of "
            "answers that become the answer to the query with the exchanged token. High cells "
            "lie on the path from the token to the answer. A state before the position of the "
            "token is the same in both runs, so it changes nothing. The row 'null' counts the "
            "answer to another query with an exchanged token, as the maximum over tokens. White "
            f"cells have fewer than {MIN_CLUSTERS} bridges that count."
        )
        states = maps_over_steps(rows_and_null, "share of changed answers")
        by_part = known_means(of_group, "part_fraction").sel(outcome=OUTCOMES[1]).max("pos")
        parts = {f"{token}\nexchanged": by_part.sel(token=token) for token in result.token.values}
        null = known_means(of_group, "part_null_fraction").max(("token", "pos"))
        parts["null: answer to\nanother query"] = null
        written = maps_over_steps(
            parts, "share of changed answers (maximum over pos)", rows="part", columns="block"
        )
        about_parts = (
            f"This figure is like the figure of states (split {group}), but only the output of "
            "one part of one block comes from the run with the exchanged token. A cell is the "
            "maximum over positions. A part that does not carry the token to the answer has a "
            "share of 0. The row 'null' counts the answer to another query with an exchanged "
            "token, as the maximum over tokens and positions. The file "
            "analysis/activation_patching.nc has all positions, both directions and the other "
            "shares."
        )
        return [
            Figure(
                "activation_patching",
                "Which states carry a token to the answer?",
                caption,
                states,
            ),
            Figure(
                "activation_patching_parts",
                "Which parts of blocks carry a token to the answer?",
                about_parts,
                written,
            ),
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "carried" where most answers become the answer to the query with the new token.

        Claims are made only for states at the position of the replaced token. States at later
        positions may represent a variable that is computed from the token. The share of changed
        answers is measured in noising, over queries that the model answers correctly with both the
        old and the new token. A high share in one split is sufficient for a claim.
        """
        null, null_high = (
            result[name].sel(kind=CORRUPTIONS[0], direction="noising", drop=True)
            for name in ("null_fraction", "null_fraction_high")
        )
        low, enough = result.followed_low, has_min_clusters(result, "followed")
        not_by_chance = (low >= MIN_TIMES_CHANCE * null) & (low > null_high)
        there = (enough & (low >= MIN_LOWER_BOUND) & not_by_chance).any("group")
        return {
            Claim("carried", str(token), int(layer), str(token))
            for token in result.token.values
            for layer in result.layer.values
            if there.sel(token=token, pos=token, layer=layer)
        }


def _by_example(values: Int[np.ndarray, "kind token row"]) -> Int[np.ndarray, "row kind token"]:
    return values.transpose(2, 0, 1).astype(np.int32)


def _outcomes(model: Transformer, params: Params, example: dict[str, Array]) -> dict[str, Array]:
    """Compute the outcomes of a chunk of examples."""
    tokens, clean = example["tokens"], example["clean"]
    sites = cache_sites(model, inside=True)
    whole, base = forward_at(model, params, tokens, sites=sites)
    whole = whole[:, 0]
    sigma = _SIGMAS * params["embed"]["W_E"].std()

    def corrupted(kind: Array, place: Array) -> tuple[Array, Cache]:
        """Run the model with the token at position `place` corrupted. Arguments may be traced."""
        here = jnp.arange(tokens.shape[1]) == place
        new = example["corrupt"][:, jnp.minimum(kind, 1)]
        exchange = here[None] & (kind < 2) & (new >= 0)
        noise = sigma * example["noise"][:, None] * (here & (kind == 2))[None, :, None]
        edits = {"hook_embed": Edit(add, noise)}
        tokens_there = jnp.where(exchange, new, tokens)
        return forward_at(model, params, tokens_there, edits=edits, sites=sites)

    def states(kind: Array, place: Array) -> dict[str, Array]:
        logits, donor = corrupted(kind, place)
        grid = noising_and_denoising(partial(patch_states, only=place), model, params, base, donor)
        answer, other = (example[name][:, kind, place] for name in ("answer", "shuffled"))
        return {
            "fraction": outcomes_of(grid, clean, answer),
            "null_fraction": answers_with(grid, other),
            **graded_metrics(grid, clean, answer, whole),
            "corrupted": answers_with(logits[:, 0], answer),
        }

    def parts(place: Array) -> dict[str, Array]:
        _, donor = corrupted(jnp.int32(0), place)
        grid = noising_and_denoising(partial(patch_parts, only=place), model, params, base, donor)
        answer, other = (example[name][:, 0, place] for name in ("answer", "shuffled"))
        return {
            "part_fraction": outcomes_of(grid, clean, answer),
            "part_null_fraction": answers_with(grid, other),
            **{f"part_{n}": x for n, x in graded_metrics(grid, clean, answer, whole).items()},
        }

    places = jnp.arange(tokens.shape[1])
    by_state = jax.lax.map(
        lambda kind: jax.lax.map(lambda place: states(kind, place), places),
        jnp.arange(len(CORRUPTIONS)),
    )
    by_part = jax.lax.map(parts, places)
    one_each = {
        **{name: jnp.moveaxis(by_state[name], 2, 0) for name in ("null_fraction", *GRADED_METRICS)},
        **{n: jnp.moveaxis(by_part[n], 1, 0) for n in ("part_null_fraction", *_PARTS_GRADED)},
    }
    return one_each | {
        "fraction": jnp.moveaxis(by_state["fraction"], (2, 3), (0, 1)),
        "corrupted": by_state["corrupted"],
        "part_fraction": jnp.moveaxis(by_part["part_fraction"], (1, 2), (0, 1)),
        "followed": by_state["fraction"][0, :, OUTCOMES.index("counterfactual"), 0],
    }
