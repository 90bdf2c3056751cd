"""Add a direction to a state, and measure which answers follow and what else changes.

The state `S[layer, pos]` of a chain with bridge b becomes `S + alpha v`. The vector v stands for
another bridge b' and comes from one of several methods (see `directions.py`). All vectors are
scaled to the norm of the difference of the class means of b' and b, so alpha is in units of this
norm. There are two edits: `add` adds the vector of b', and `replace` also subtracts that of b.

Two numbers are measured. The share of answers that follow is the share that become the answer of
b'. Side effects are the KL divergence of unrelated chains to which the same vector is added (see
`steering_cases.py`). A large alpha makes more answers follow and has larger side effects. Methods
are therefore compared at equal side effects, and not at equal alpha.

There are two null controls: random vectors, and the class mean of a third bridge, which is scored
by the answer of b'.

Directions are fitted to training chains. The first facts of the steered chains and of the unrelated
chains differ from those of these chains.

The instrument makes no claims. At alpha = 1, `replace` with class means is the edit of `mean_swap`,
which claims that a state is used. A claim from the best of many directions and many alphas would be
weaker evidence.

Sources: Marks and Tegmark 2023, *The geometry of truth* (difference of means against probes); Wu et
al. 2025, *AxBench* (difference of means against dictionary features).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.facts import first_known_position, first_occurrences
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.patching.outcomes import answers_with, divergence, outcomes_of
from implicit_reasoning.analysis.states import prompts, residuals, state_keys
from implicit_reasoning.analysis.steering.directions import (
    DIRECTIONS,
    Direction,
    FitData,
    class_mean,
    random,
)
from implicit_reasoning.analysis.steering.steering_cases import GROUPS, choose_steering_cases
from implicit_reasoning.analysis.steering.steering_figures import steering_figures
from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.analysis.variables.counterfactuals import rows_to_fit
from implicit_reasoning.analysis.variables.interchange import Rules, find_pairs
from implicit_reasoning.analysis.variables.subspaces import class_means
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

RANDOM, WRONG = "random", "wrong bridge"
NULLS = (RANDOM, WRONG)
EDITS = ("add", "replace")
OUTCOMES = ("followed", "unchanged", "other")
ALPHAS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
_VARIABLE = "e2"
_PAIRS = 1024  # number of training pairs for a search

_CELLS = ("direction", "edit", "alpha", "layer", "example")


class Steering(Instrument):
    """Instrument that adds directions of several origins to a state and measures the answers."""

    name = "steering"
    definition = (
        "S[layer, pos] + alpha v, with v scaled to the norm of mu_b' - mu_b, where b is the bridge "
        "of a chain, b' another bridge and mu are class means over distinct states of training "
        "chains. edit: v is the vector of b' (add), or that of b' minus that of b (replace). "
        "direction: centered class mean; LDA; weights of a ridge probe and of a logistic probe; "
        "class mean projected onto a subspace from distributed alignment search (DAS); column of "
        "the unembedding; vectors that the user gives. fraction: share of answers that become that "
        "of b' (followed), stay, or are others, over chains that are answered correctly when not "
        "steered. There is one chain for each fact (b', r2). The groups say whether training "
        "chains use this fact at the second hop. side_divergence: KL(not steered || steered), in "
        "nats, of an unrelated chain to which the same v is added: its bridge is neither b nor "
        "b', b' has no fact with its r2, and it is answered correctly when not steered. "
        "side_unchanged: share of unrelated chains whose answer stays. Controls: random vectors; "
        "the class mean of a third bridge, scored by the answer of b'. distance: norm of mu_b' - "
        "mu_b over the norm of the state."
    )
    outputs = {
        "fraction": ("outcome", *_CELLS),
        "side_divergence": _CELLS,
        "side_unchanged": _CELLS,
        "distance": ("layer", "example"),
        "counts": ("direction", "edit", "layer", "example"),
        "side_counts": ("direction", "edit", "layer", "example"),
        "correct": ("example",),
    }
    given = {
        "fraction": "counts",
        "side_divergence": "side_counts",
        "side_unchanged": "side_counts",
    }
    nulls = {
        "random vector of equal norm": {"direction": RANDOM},
        "class mean of a third bridge": {"direction": WRONG},
    }
    default = False

    def __init__(
        self,
        directions: Sequence[Direction] = DIRECTIONS,
        *,
        layers: Sequence[int] = (1,),
        pos: str | None = None,
        alphas: Sequence[float] = ALPHAS,
    ):
        """Choose the directions, the states and the strengths.

        Args:
          directions: the directions. The null controls are added.
          layers: the layers of the states.
          pos: the position of the states. The default is the first position whose prefix determines
            the bridge: r1 if e1 precedes r1.
          alphas: the strengths in ascending order.

        Raises:
          InputError: two directions have the same name, or `alphas` is not ascending.
        """
        self.directions, self.layers, self.pos = tuple(directions), tuple(layers), pos
        self.alphas = tuple(map(float, alphas))
        names = [*(direction.name for direction in self.directions), *NULLS]
        if len(set(names)) < len(names):
            raise InputError(
                f"directions have the names {', '.join(names)} (the last two are null controls); "
                "choose different names"
            )
        if list(self.alphas) != sorted(set(self.alphas)) or not self.alphas:
            raise InputError(f"alphas must be ascending numbers, got {self.alphas}")

    def options(self) -> dict[str, Any]:
        """Return all options of the instrument."""
        return {
            "directions": [direction.identity() for direction in self.directions],
            "layers": list(self.layers),
            "pos": self.pos,
            "alphas": list(self.alphas),
        }

    def place(self, dataset: Dataset) -> int:
        """Return the index of the position of the steered states.

        Raises:
          InputError: the position does not exist in the dataset.
        """
        pos = self.pos or first_known_position(_VARIABLE, dataset.positions)
        if pos not in dataset.positions:
            raise InputError(
                f"prompts of this task have no position {pos!r}; choose from the positions "
                f"{', '.join(dataset.positions)}"
            )
        return dataset.positions.index(pos)

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the chains to steer. Cases with the same new bridge form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, or no chain can be steered.
          InputError: a chosen layer or position does not exist.
        """
        if wrong := [layer for layer in self.layers if not 0 <= layer <= model.spec.depth]:
            raise InputError(
                f"there is no layer {wrong[0]}; choose layers from 0 to {model.spec.depth}"
            )
        place = self.place(dataset)
        fitted = rows_to_fit(dataset)
        cases = choose_steering_cases(dataset, fitted)
        draw = np.random.default_rng(0)
        bases = fitted[draw.integers(len(fitted), size=_PAIRS)]
        world = world_of(dataset)
        anything = np.ones((world.n_entities, world.n_relations), bool)
        pairs = find_pairs(dataset, bases, fitted, Rules(_VARIABLE, place, anything, False), draw)
        truth, side = dataset.truth, np.maximum(cases.unrelated, 0)
        inputs = {
            "place": np.array(place),
            "entities": np.zeros(world.n_entities, np.int32),  # only the length is used
            "fit_tokens": prompts(dataset, fitted),
            "fit_values": truth[_VARIABLE][fitted],
            "fit_weight": first_occurrences(state_keys(dataset, fitted))[place].astype(np.float32),
            "base": np.searchsorted(fitted, np.tile(bases, len(pairs.source))).astype(np.int32),
            "source": np.searchsorted(fitted, np.maximum(pairs.source, fitted[0])).ravel(),
            "due": pairs.expected.ravel(),
            # The example axis comes first, because examples are evaluated in chunks. The second
            # axis has the chain of the case and the unrelated chain.
            "tokens": np.stack([prompts(dataset, rows) for rows in (cases.row, side)], axis=1),
            "answer": np.stack([truth["answer"][rows] for rows in (cases.row, side)], axis=1),
            "expected": np.stack([cases.expected, np.full_like(cases.expected, -1)], axis=1),
            "old": truth[_VARIABLE][cases.row],
            "new": cases.new,
            "wrong": cases.wrong,
            "has_side": cases.unrelated >= 0,
        }
        inputs = {
            name: value.astype(np.int32) if value.dtype == np.int64 else value
            for name, value in inputs.items()
        }
        return Examples(inputs, GROUPS, cases.group, cases.new)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions."""
        return {
            "outcome": OUTCOMES,
            "direction": (*(direction.name for direction in self.directions), *NULLS),
            "edit": EDITS,
            "alpha": self.alphas,
            "layer": self.layers,
        }

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Fit the directions, and compute the outcomes of all edits."""
        resid = residuals(model, params, inputs["fit_tokens"])[jnp.array(self.layers)]
        place, values = inputs["place"], inputs["fit_values"]
        fitted = []
        for number, layer in enumerate(self.layers):
            states = jnp.take(resid[number], place, axis=1)
            n_values = len(inputs["entities"])
            data = FitData(
                states=states,
                values=values,
                weight=inputs["fit_weight"],
                means=class_means(states, values, inputs["fit_weight"], n_values),
                n_values=n_values,
                model=model,
                params=params,
                layer=layer,
                resid=resid[number],
                place=place,
                base=inputs["base"],
                source=inputs["source"],
                expected=inputs["due"],
                key=jax.random.fold_in(key, layer),
            )
            fitted.append(_case_vectors(self.directions, data, inputs))
        vectors = jax.tree.map(lambda *of: jnp.stack(of), *fitted)
        by_case = {name: inputs[name] for name in ("tokens", "answer", "expected")}
        by_case["vectors"] = jnp.moveaxis(vectors.vector, 3, 0)  # [case, layer, direction, edit]
        found = map_in_chunks(
            lambda e: _steered(model, params, e, place, self.layers, self.alphas), by_case
        )
        there = jnp.moveaxis(vectors.there, 0, 2)  # [direction, edit, layer, case]
        correct = found["correct"]
        return {
            "fraction": found["fraction"][0],
            "side_divergence": found["divergence"][1],
            "side_unchanged": found["fraction"][1, OUTCOMES.index("unchanged")],
            "distance": vectors.distance / jnp.maximum(found["norm"][0], 1e-12),
            "counts": there & correct[0][None, None, None],
            "side_counts": there & (correct[1] & inputs["has_side"])[None, None, None],
            "correct": correct[0],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of followed answers by strength, and by side effect."""
        return steering_figures(result)


class _CaseVectors(NamedTuple):
    """The vectors of all cases.

    Attributes:
      vector: the vectors for alpha = 1; 0 if there is none.
      there: whether there is a vector.
      distance: the norm of the difference of the class means, which all vectors have.
    """

    vector: Float[Array, "direction edit case d_model"]
    there: Bool[Array, "direction edit case"]
    distance: Float[Array, " case"]


def _case_vectors(directions: Sequence[Direction], data: FitData, inputs: Any) -> _CaseVectors:
    old, new, wrong = inputs["old"], inputs["new"], inputs["wrong"]
    means = data.means
    difference = means.mean[new] - means.mean[old]
    distance = jnp.linalg.norm(difference, axis=-1)
    fitted = [one.fit(data) for one in (*directions, Direction(RANDOM, random))]
    pairs = [(vectors, new, jnp.ones(new.shape, bool)) for vectors in fitted]
    pairs.append((class_mean(data), jnp.maximum(wrong, 0), wrong >= 0))
    found, there = [], []
    for vectors, target, exists in pairs:
        both = jnp.stack([vectors[target], vectors[target] - vectors[old]])
        # A value without states, or without a vector, has the vector 0.
        known = exists & _not_zero(vectors[target]) & _not_zero(vectors[old])
        known &= (means.size[new] > 0) & (means.size[old] > 0)
        size = jnp.linalg.norm(both, axis=-1)
        possible = known[None] & (size > 0)
        scaled = both * (distance[None] / jnp.where(possible, size, 1))[..., None]
        found.append(jnp.where(possible[..., None], scaled, 0))
        there.append(possible)
    return _CaseVectors(jnp.stack(found), jnp.stack(there), distance)


def _not_zero(vectors: Float[Array, "case d_model"]) -> Bool[Array, " case"]:
    return (vectors != 0).any(-1)


def _steered(
    model: Transformer,
    params: Params,
    example: dict[str, Array],
    place: Array,
    layers: tuple[int, ...],
    alphas: tuple[float, ...],
) -> dict[str, Array]:
    """Compute the outcomes of all edits, for a chunk of cases.

    The first axis of the outcomes distinguishes the chain of the case and the unrelated chain.
    """
    strengths = jnp.array(alphas)[None, :, None, None]

    def of_chain(chain: tuple[Array, Array, Array]) -> dict[str, Array]:
        tokens, answer, expected = chain
        states = residuals(model, params, tokens)
        clean = logits_from_layer(model, params, states[-1], model.spec.depth)

        def of_layer(number: int, layer: int) -> dict[str, Array]:
            own = states[layer]

            def of_direction(vectors: Array) -> dict[str, Array]:
                moved = vectors[:, None] * strengths  # [edit, alpha, case, d_model]
                here = (jnp.arange(own.shape[1]) == place)[None, :, None]
                cells = own[None, None] + jnp.where(here, moved[..., None, :], 0)
                flat = cells.reshape(-1, *own.shape[1:])
                logits = logits_from_layer(model, params, flat, layer)
                logits = logits.reshape(*moved.shape[:-1], -1)
                stays, follows, other = outcomes_of(logits, answer, expected)
                return {
                    "fraction": jnp.stack([follows, stays, other]),
                    "divergence": divergence(logits, clean),
                }

            of_all = jnp.moveaxis(example["vectors"][:, number], 0, 2)
            found = jax.lax.map(of_direction, of_all)
            fraction = jnp.moveaxis(found["fraction"], 1, 0)
            return {"fraction": fraction, "divergence": found["divergence"]}

        found = [of_layer(number, layer) for number, layer in enumerate(layers)]
        stacked = {name: jnp.stack([of[name] for of in found], axis=-2) for name in found[0]}
        norm = [jnp.linalg.norm(jnp.take(states[n], place, axis=1), axis=-1) for n in layers]
        return {
            **stacked,
            "correct": answers_with(clean, answer),
            "norm": jnp.stack(norm),
        }

    chains = (jnp.swapaxes(example[name], 0, 1) for name in ("tokens", "answer", "expected"))
    return jax.lax.map(of_chain, tuple(chains))
