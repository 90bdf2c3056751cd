"""Is a variable's code needed? All that a linear reader could know of it is erased from the state.

LEACE (Belrose et al. 2023) makes the smallest change after which no linear classifier can tell the
variable's value. If the answers stay, the model does not need the code that a probe finds there. It
may use it all the same, where another route does as well: to call it unused, another value's code
must change nothing either.

Erasing many classes takes many directions, and some damage comes with any of them; hence two
controls, made alike: the variable's values dealt out anew among the states, which overfits as the
truth does, and as many random directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.claims import NEARLY_ALL, Claim, claimed
from implicit_reasoning.analysis.drawing import maps_by_variable
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
    across,
    enough,
    intervene,
)
from implicit_reasoning.analysis.variables.counterfactuals import (
    choose_cases,
    examples_of,
    inputs_of,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.subspaces import (
    Whitening,
    class_means,
    distinct_weights,
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
_MOST = 128  # cases of a split
_SHRINKAGE = 0.1  # of the covariance of the discriminant that decodes
_DECODED = NEARLY_ALL  # held-out accuracy, lower end of the interval
_UNCHANGED = NEARLY_ALL  # answers that stay, lower end of the interval


class Erasure(Instrument):
    """See the module."""

    name = "erasure"
    definition = (
        "LEACE of a variable in S[layer, pos], fitted on all distinct states there (so that on "
        "these very states no linear classifier beats chance), then the answer: unchanged, share "
        "of cases right when clean in which another value leads to another answer. Controls: the "
        "variable's values shuffled among states; random directions of equal rank. swapped: not "
        "erased, but that other value's class mean put in its place. decoded: a linear "
        "discriminant fitted on states of other first facts finds the value. counted: share of all "
        "cases."
    )
    outputs = {
        "unchanged": ("edit", "variable", "layer", "pos", "example"),
        "decoded": ("variable", "layer", "pos", "example"),
        "counted": ("variable", "layer", "pos", "example"),
        "known": ("variable", "pos", "example"),
        "correct": ("example",),
        "rank": ("variable", "layer", "pos"),
    }
    given = {"unchanged": "counted", "decoded": "known"}
    nulls = {
        "values shuffled among states": {"edit": CONTROLS[0]},
        "random directions": {"edit": CONTROLS[1]},
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Probe rows of every split of chains; fitted on training chains, and on these too."""
        splits = chain_splits(dataset)
        fitted = rows_to_fit(dataset)
        cases = choose_cases(dataset, splits, _MOST, fitted)
        both = np.concatenate([fitted, cases.rows])
        keys = state_keys(dataset, both)
        values = chain_variables(dataset, both).values
        inputs = inputs_of(dataset, cases, fitted) | {
            # The rows to erase for begin with the rows to decode from.
            "fit_tokens": prompts(dataset, both),
            "fit_values": np.stack([values, _dealt_anew(values)], axis=-1),
            "fit_weight": np.stack([distinct_weights(keys), _first_half(keys, len(fitted))], -1),
        }
        return examples_of(dataset, splits, cases, inputs, CONDITIONS)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Outcomes of every case in every cell."""
        n_classes = model.spec.d_vocab

        def prepare(place: Place) -> _Fitted:
            all_of_it, half = place.weight[:, 0], place.weight[:, 1]
            white = whiten(place.states, all_of_it)
            return _Fitted(
                white,
                random_directions(white, jax.random.fold_in(key, place.layer)),
                whiten(place.states, half, _SHRINKAGE),
            )

        def edit(cell: Cell, fitted: _Fitted) -> Edited:
            place, white = cell.place, fitted.white
            eraser, other = (
                leace(white, place.states, classes, place.weight[:, 0], n_classes)
                for classes in (cell.fit_values[:, 0], cell.fit_values[:, 1])
            )
            nowhere = erase_some(white, fitted.directions, eraser.rank)
            means = class_means(place.states, cell.fit_values[:, 0], place.weight[:, 0], n_classes)
            erased = [erase(cell.states) for erase in (eraser, other, nowhere)]
            edited = jnp.stack([*erased, swap(cell.states, means, cell.old, cell.new)])
            found = _decode(cell, fitted.decoder, n_classes)
            possible = (cell.old >= 0) & (cell.new >= 0)
            return Edited(edited, possible, {"rank": eraser.rank, "decoded": found})

        found = intervene(model, params, inputs, prepare, edit)
        answer = found["answer"]
        there = jnp.zeros((len(inputs["old"]), inputs["tokens"].shape[1]), bool)
        for pos, variables in enumerate(inputs["variables_at"]):
            there = there.at[variables, pos].set(True)
        return {
            "unchanged": answer == across(inputs["answer"], answer),
            "decoded": found["decoded"],
            "counted": found["counted"],
            "known": there[:, :, None] & (inputs["old"] >= 0)[:, None],
            "correct": found["correct"],
            "rank": found["rank"],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Answers that stay, by cell."""
        shown = result.sel(edit=["variable", "shuffled"])
        values = shown["unchanged"].where(enough(shown, "unchanged"))
        caption = (
            "Share of cases, right when clean, whose answer stays when all linear "
            "information on the variable is erased at (layer, position). Dark: it is "
            "needed there. In brackets the null: the same erasure for values dealt out "
            "anew among the states. Empty: the state cannot know the variable, or fewer "
            "than 20 facts count; checkpoints where that is so everywhere are left out."
        )
        drawing = maps_by_variable(values, "share of cases")
        return [
            Figure("erasure", "Answers that survive the erasure of a variable", caption, drawing)
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """A variable is unused where it is decodable, and neither erasure nor swap is of effect."""
        there = (result["decoded_low"] >= _DECODED) & enough(result, "decoded")
        edits = ["variable", "swapped"]
        stays = (result["unchanged_low"].sel(edit=edits) >= _UNCHANGED).all("edit")
        counts = enough(result, "unchanged").sel(edit="variable", drop=True)
        # In every group that can say anything: one where answers change is enough to be silent.
        unused = (there & stays & counts).any("group") & (stays | ~counts).all("group")
        return claimed("unused", unused)


class _Fitted(NamedTuple):
    """What all variables of a place share."""

    white: Whitening
    directions: Array
    decoder: Whitening


def _decode(cell: Cell, white: Whitening, n_classes: int) -> Array:
    """Whether a discriminant of the held-out half finds each case's value: float [example]."""
    flat = [
        jnp.matmul(states - white.mean[None], white.inverse, precision="highest")
        for states in (cell.place.states, cell.states)
    ]
    means = class_means(flat[0], cell.fit_values[:, 0], cell.place.weight[:, 1], n_classes)
    return nearest_mean(flat[1], means) == cell.old


def _dealt_anew(values: np.ndarray) -> np.ndarray:
    """Values [variable, state], each variable's dealt out anew."""
    return np.random.default_rng(0).permuted(values, axis=1)


def _first_half(keys: np.ndarray, n_fitted: int) -> np.ndarray:
    """Weights that leave out the states after the first `n_fitted`."""
    weight = distinct_weights(keys[:, :n_fitted])
    return np.pad(weight, ((0, 0), (0, keys.shape[1] - n_fitted)))
