"""Erase a variable from a state with LEACE, and measure how many answers stay the same.

LEACE (Belrose et al. 2023) makes the smallest change after which no linear classifier can predict
the value of the variable. If the answers do not change, the model does not need the linear
representation of the variable in this state. The model may still use the representation, if it can
also compute the answer without the representation. A variable is therefore claimed to be unused
only if a swap of class means also leaves the answers unchanged.

A complete erasure of a variable with many values would remove many directions, often all directions
of a state. The model could then not compute any answer. One erasure therefore makes at most 16
values indistinguishable, which removes at most 15 directions. For each variable, ten sets of values
are drawn at random. Each state is edited once, with a set that contains the value of the state.
Every erased direction causes some damage, so two controls erase the same number of directions. The
first control fits the eraser to shuffled values. The second control erases random directions.

The number of forward passes does not depend on the number of sets. Fitting and editing need further
operations for each variable, layer and position. With n fitted states, c edited states and d
dimensions, class means need about 640 n d operations (2 labellings, 10 sets, 16 values). The
directions need about 1920 d^2 operations, and the edits need about 1920 c d operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.analysis.claims import MIN_LOWER_BOUND, Claim, claimed, has_min_clusters
from implicit_reasoning.analysis.drawing import maps_by_variable
from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import (
    chain_splits,
    chain_variables,
    prompts,
    state_keys,
)
from implicit_reasoning.analysis.variables.cells import (
    Cell,
    Edited,
    Place,
    broadcast_to_cells,
    intervene,
    with_worst_control,
)
from implicit_reasoning.analysis.variables.controls import MAX_ERASED, N_DRAWS, draw_values
from implicit_reasoning.analysis.variables.counterfactuals import (
    choose_cases,
    make_examples,
    make_inputs,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.subspaces import (
    Eraser,
    Whitening,
    class_means,
    erase_some,
    leace,
    nearest_mean,
    random_directions,
    swap,
    whiten,
)
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

CONTROLS = ("shuffled", "random")
CONDITIONS = ("variable", *CONTROLS, "swapped")
_MAX_CASES = 128  # maximum number of cases per split
_SHRINKAGE = 0.1  # shrinkage of the covariance in the discriminant for decoding
_DECODED = MIN_LOWER_BOUND  # minimum of the lower interval end of the held-out accuracy
_UNCHANGED = MIN_LOWER_BOUND  # minimum of the lower interval end of the unchanged answers


class Erasure(Instrument):
    """Instrument that erases a variable from states with LEACE and measures the answers."""

    name = "erasure"
    definition = (
        "LEACE makes at most 16 values of a variable indistinguishable for every linear "
        "classifier of S[layer, pos], in ten draws of values. It is fitted to all distinct "
        "states at this layer and position. unchanged: share of answers that stay, over cases "
        "that are answered correctly when clean and for which another value leads to another "
        "answer. Each case is edited by one draw that includes its value. Controls: values "
        "shuffled among the states; random directions of equal rank. swapped: instead of an "
        "erasure, the class mean of the other value replaces that of the current value. "
        "decoded: share of values that a linear discriminant reads, fitted to states of other "
        "first facts. counted: share of all cases that count."
    )
    version = 2
    outputs = {
        "unchanged": ("edit", "variable", "layer", "pos", "example"),
        "decoded": ("variable", "layer", "pos", "example"),
        "counted": ("variable", "layer", "pos", "example"),
        "known": ("variable", "pos", "example"),
        "correct": ("example",),
        "rank": ("variable", "layer", "pos", "draw"),
    }
    given = {"unchanged": "counted", "decoded": "known"}
    nulls = {
        "values shuffled among states": {"edit": CONTROLS[0]},
        "random directions": {"edit": CONTROLS[1]},
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the rows to edit.

        The rows are full chains, such as (e1, r1, r2), from every split.

        Erasers are fitted to training chains and to the rows to edit. The linear discriminant,
        which decodes the variable, is fitted to training chains only.
        """
        splits = chain_splits(dataset)
        fitted = rows_to_fit(dataset)
        cases = choose_cases(dataset, splits, _MAX_CASES, fitted)
        both = np.concatenate([fitted, cases.rows])
        keys = state_keys(dataset, both)
        values = chain_variables(dataset, both).values
        shuffled = np.random.default_rng(0).permuted(values, axis=1)
        draws = draw_values(values, cases.variables.values)
        inputs = make_inputs(dataset, cases, fitted, draws) | {
            # The discriminant for decoding is fitted to the first `len(fitted)` rows.
            "fit_tokens": prompts(dataset, both),
            "fit_values": np.stack([values, shuffled], axis=-1),
            "fit_weight": np.stack([_distinct(keys), _distinct(keys, len(fitted))], -1),
        }
        return make_examples(dataset, splits, cases, inputs, CONDITIONS)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the layers, positions and draws.

        A draw is a random set of values that are erased together.
        """
        return {**super().coords(model, dataset), "draw": range(N_DRAWS)}

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all erasures and controls at every layer and position."""
        n_classes = model.spec.d_vocab

        def prepare(place: Place) -> _Fitted:
            all_of_it, half = place.weight[:, 0], place.weight[:, 1]
            white = whiten(place.states, all_of_it)
            return _Fitted(
                white,
                _random_of_draws(white, jax.random.fold_in(key, place.layer)),
                whiten(place.states, half, _SHRINKAGE),
            )

        def edit(cell: Cell, fitted: _Fitted) -> Edited:
            place, white, drawn = cell.place, fitted.white, cell.more["drawn"]

            def of_draw(values: Array, directions: Array) -> tuple[Eraser, Eraser, Eraser]:
                eraser, other = (
                    leace(white, place.states, _among(classes, values), weight, MAX_ERASED)
                    for classes in cell.fit_values.T
                )
                return eraser, other, erase_some(white, directions, eraser.rank)

            weight = place.weight[:, 0]
            erasers = jax.vmap(of_draw)(drawn, fitted.directions)
            erased = [_erase_by_draw(one, cell.states, cell.more["draw"]) for one in erasers]
            means = class_means(place.states, cell.fit_values[:, 0], place.weight[:, 0], n_classes)
            edited = jnp.stack([*erased, swap(cell.states, means, cell.old, cell.new)])
            found = _decode(cell, fitted.decoder, n_classes)
            possible = (cell.more["draw"] >= 0) & (cell.new >= 0)
            return Edited(edited, possible, {"rank": erasers[0].rank, "decoded": found})

        found = intervene(model, params, inputs, prepare, edit)
        answer = found["answer"]
        there = jnp.zeros((len(inputs["old"]), inputs["tokens"].shape[1]), bool)
        for pos, variables in enumerate(inputs["variables_at"]):
            there = there.at[variables, pos].set(True)
        return {
            "unchanged": answer == broadcast_to_cells(inputs["answer"], answer),
            "decoded": found["decoded"],
            "counted": found["counted"],
            "known": there[:, :, None] & (inputs["old"] >= 0)[:, None],
            "correct": found["correct"],
            "rank": found["rank"],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of unchanged answers, by variable, layer and position."""
        values = with_worst_control(result, "unchanged", CONDITIONS[0], CONTROLS, worst="min")
        caption = (
            "The cases are queries that are answered correctly without an edit. At (layer, "
            "position), an edit makes the value of the variable indistinguishable from up to 15 "
            "other values for every linear reader. There are ten draws of 16 values, and each "
            "case is edited by one of them. A cell is the share of cases whose answer stays the "
            "same. Where a cell is dark, the model needs the linear representation of the "
            "variable. The number in brackets is the lower of two nulls: values that are "
            "shuffled among the states, and random directions of equal rank. A cell is empty if "
            "the state cannot contain the variable, or if fewer than 20 clusters count (a "
            "cluster is a bridge where the prefix determines the bridge, and a prefix "
            "elsewhere). Checkpoints with only empty cells are left out."
        )
        drawing = maps_by_variable(values)
        return [
            Figure("erasure", "Answers that survive the erasure of a variable", caption, drawing)
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "unused" where a variable is decodable, and erasure and swap change few answers."""
        there = (result["decoded_low"] >= _DECODED) & has_min_clusters(result, "decoded")
        edits = ["variable", "swapped"]
        stays = (result["unchanged_low"].sel(edit=edits) >= _UNCHANGED).all("edit")
        counts = has_min_clusters(result, "unchanged").sel(edit="variable", drop=True)
        # Answers must not change in any group with enough clusters.
        unused = (there & stays & counts).any("group") & (stays | ~counts).all("group")
        return claimed("unused", unused)


class _Fitted(NamedTuple):
    """Fitted transforms of one (layer, position), which are the same for all variables.

    Attributes:
      white: the whitening transform of all states.
      directions: random orthonormal directions for the control.
      decoder: the whitening transform for decoding. It is fitted with shrinkage, to training chains
        only.
    """

    white: Whitening
    directions: Float[Array, "draw direction d_model"]
    decoder: Whitening


def _random_of_draws(white: Whitening, key: Key[Array, ""]) -> Float[Array, "draw k d_model"]:
    """Return `MAX_ERASED - 1` random orthonormal directions for each draw."""
    keys = jax.random.split(key, N_DRAWS)
    return jax.vmap(lambda one: random_directions(white, one, MAX_ERASED - 1))(keys)


def _among(classes: Int[Array, " fit"], values: Int[Array, " value"]) -> Int[Array, " fit"]:
    """Return the index in `values` of each class; -1 if a class is not in `values`."""
    same = classes[:, None] == values[None]
    return jnp.where(same.any(-1), same.argmax(-1), -1)


def _erase_by_draw(
    erasers: Eraser, states: Float[Array, "example d_model"], draw: Int[Array, " example"]
) -> Float[Array, "example d_model"]:
    """Apply the eraser of its draw to each state. A state without a draw (-1) is not changed."""

    def step(after: Array, here: tuple[Eraser, Array]) -> tuple[Array, None]:
        eraser, number = here
        return jnp.where((draw == number)[:, None], eraser(states), after), None

    numbers = jnp.arange(erasers.rank.shape[0])
    return jax.lax.scan(step, states, (erasers, numbers))[0]


def _decode(cell: Cell, white: Whitening, n_classes: int) -> Array:
    """Return whether a linear discriminant predicts the value of each case.

    The discriminant is fitted to training chains whose first facts differ from those of the cases.

    Returns:
      bool `[example]`.
    """
    flat = [
        jnp.matmul(states - white.mean[None], white.inverse, precision="highest")
        for states in (cell.place.states, cell.states)
    ]
    means = class_means(flat[0], cell.fit_values[:, 0], cell.place.weight[:, 1], n_classes)
    return nearest_mean(flat[1], means) == cell.old


def _distinct(keys: np.ndarray, n_counted: int | None = None) -> np.ndarray:
    """Return weight 1 for the first of equal states among the first `n_counted` states, else 0."""
    there = first_occurrences(keys) & (np.arange(keys.shape[1]) < (n_counted or keys.shape[1]))
    return there.astype(np.float32)
