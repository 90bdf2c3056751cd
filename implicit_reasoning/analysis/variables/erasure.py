"""Is a variable's code needed? All that a linear reader could know of it is erased from the state.

LEACE (Belrose et al. 2023) makes the smallest change after which no linear classifier can tell the
variable's value. If the answers stay, the model does not need the code that a probe finds there.

Erasing many classes takes many directions, and some damage comes with any of them; hence two
controls, made alike: the variable's values dealt out anew among the states, which overfits as the
truth does, and as many random directions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.claims import Claim, claimed
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
    across,
    enough,
    intervene,
)
from implicit_reasoning.analysis.variables.counterfactuals import (
    choose_cases,
    fact_units,
    inputs_of,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.subspaces import (
    class_means,
    distinct_weights,
    erase_random,
    leace,
    nearest_mean,
    whiten,
)
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

CONDITIONS = ("variable", "shuffled", "random")
_MOST = 128  # cases of a split
_SHRINKAGE = 0.1  # of the covariance of the discriminant that decodes
_DECODED = 0.9  # held-out accuracy, lower end of the interval
_UNCHANGED = 0.95  # answers that stay, lower end of the interval


class Erasure(Instrument):
    """See the module."""

    name = "erasure"
    definition = (
        "LEACE of a variable in S[layer, pos], fitted on all distinct states there (so that on "
        "these very states no linear classifier beats chance), then the answer: unchanged, share "
        "of cases right when clean. Controls: the variable's values shuffled among states; random "
        "directions of equal rank. decoded: a linear discriminant fitted on states of other first "
        "facts finds the value. counted: share of all cases."
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
        return Examples(
            inputs,
            groups=splits,
            group=cases.group,
            clusters=fact_units(dataset, cases.rows),
            cluster_dim="pos",
            coords={"variable": cases.variables.names, "edit": CONDITIONS},
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Outcomes of every case in every cell."""
        n_classes = model.spec.d_vocab

        def edit(cell: Cell) -> Edited:
            values, weight = cell.fit_values[:, 0], cell.fit_weight[:, 0]
            shuffled = cell.fit_values[:, 1]
            white = whiten(cell.fit_states, weight)
            eraser, other = (
                leace(white, cell.fit_states, classes, weight, n_classes)
                for classes in (values, shuffled)
            )
            nowhere = erase_random(white, eraser.rank, jax.random.fold_in(key, cell.layer))
            erased = jnp.stack([erase(cell.states) for erase in (eraser, other, nowhere)])
            found = _decode(cell, n_classes)
            return Edited(erased, cell.old >= 0, {"rank": eraser.rank, "decoded": found})

        found = intervene(model, params, inputs, edit)
        answer = found["answer"]
        n_variables, _, n_pos, _ = found["decoded"].shape
        there = jnp.zeros((n_variables, n_pos), bool)
        there = there.at[inputs["cell_variable"], inputs["cell_pos"]].set(True)
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
            "than 20 facts count."
        )
        drawing = maps_by_variable(values, "share of cases")
        return [
            Figure("erasure", "Answers that survive the erasure of a variable", caption, drawing)
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """A variable is unused where it is decodable and its erasure changes no answer."""
        there = (result["decoded_low"] >= _DECODED) & enough(result, "decoded")
        stays = result["unchanged_low"].sel(edit=CONDITIONS[0]) >= _UNCHANGED
        counts = enough(result, "unchanged").sel(edit=CONDITIONS[0])
        # In every group that can say anything: one where answers change is enough to be silent.
        unused = (there & stays & counts).any("group") & (stays | ~counts).all("group")
        return claimed("unused", unused)


def _decode(cell: Cell, n_classes: int) -> Array:
    """Whether a discriminant of the held-out half finds each case's value: float [example]."""
    weight = cell.fit_weight[:, 1]
    white = whiten(cell.fit_states, weight, _SHRINKAGE)
    flat = [
        jnp.matmul(states - white.mean[None], white.inverse, precision="highest")
        for states in (cell.fit_states, cell.states)
    ]
    means = class_means(flat[0], cell.fit_values[:, 0], weight, n_classes)
    return nearest_mean(flat[1], means) == cell.old


def _dealt_anew(values: np.ndarray) -> np.ndarray:
    """Values [variable, state], each variable's dealt out anew."""
    return np.random.default_rng(0).permuted(values, axis=1)


def _first_half(keys: np.ndarray, n_fitted: int) -> np.ndarray:
    """Weights that leave out the states after the first `n_fitted`."""
    weight = distinct_weights(keys[:, :n_fitted])
    return np.pad(weight, ((0, 0), (0, keys.shape[1] - n_fitted)))
