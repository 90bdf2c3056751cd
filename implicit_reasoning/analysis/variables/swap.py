"""Is a variable's code used? Its class mean is swapped for another's, and truth says what follows.

In `S[layer, pos]` what codes value a on average is replaced by what codes b: `S + mean_b - mean_a`.
If the answer is computed from that code it becomes what the world says of b. Three shares, of cases
answered correctly when clean: unchanged, the counterfactual answer, something else (damage).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.claims import Claim, claimed
from implicit_reasoning.analysis.drawing import maps_by_variable
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import chain_splits
from implicit_reasoning.analysis.variables.cells import (
    Cell,
    Edited,
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
from implicit_reasoning.analysis.variables.subspaces import class_means, random_rotation, swap
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

CONDITIONS = ("class means", "random")
_MOST = 128  # cases of a split
_USED = 0.8  # counterfactual answers, lower end of the interval
_CONTROL = 0.2  # counterfactual answers of the random control, upper end


class ClassMeanSwap(Instrument):
    """See the module."""

    name = "swap"
    definition = (
        "S[layer, pos] + mean_b - mean_a, where a is the variable's value in this row, b another. "
        "Means over distinct states of training chains; cases have other first facts. Of cases "
        "right when clean: the answer stays, is what the world says of b, or is neither. Control: "
        "the same vectors, randomly rotated (equal norm and rank). counted: share of all cases."
    )
    outputs = {
        **{
            name: ("edit", "variable", "layer", "pos", "example")
            for name in ("counterfactual", "unchanged", "other")
        },
        "counted": ("variable", "layer", "pos", "example"),
        "correct": ("example",),
    }
    given = dict.fromkeys(("counterfactual", "unchanged", "other"), "counted")
    nulls = {"rotated at random": {"edit": CONDITIONS[1]}}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Probe rows of every split of chains, with another value for each variable."""
        splits = chain_splits(dataset)
        fitted = rows_to_fit(dataset)
        cases = choose_cases(dataset, splits, _MOST, fitted)
        inputs = inputs_of(dataset, cases, fitted)
        return examples_of(dataset, splits, cases, inputs, CONDITIONS)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Outcomes of every case in every cell."""
        rotation = random_rotation(key, model.spec.d_model)

        def edit(cell: Cell, _: None) -> Edited:
            place = cell.place
            means = class_means(place.states, cell.fit_values, place.weight, model.spec.d_vocab)
            swapped = swap(cell.states, means, cell.old, cell.new)
            turned = cell.states + jnp.matmul(swapped - cell.states, rotation, precision="highest")
            known = (means.size[cell.old] > 0) & (means.size[cell.new] > 0)
            return Edited(jnp.stack([swapped, turned]), known & (cell.expected >= 0), {})

        found = intervene(model, params, inputs, lambda place: None, edit)
        return {
            **outcomes(found, inputs),
            "counted": found["counted"],
            "correct": found["correct"],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Counterfactual answers by cell."""
        values = result["counterfactual"].where(enough(result, "counterfactual"))
        caption = (
            "Share of cases, right when clean, whose answer becomes what the world says "
            "when the variable has another value, after its class mean at (layer, "
            "position) was swapped. In brackets the null: the same vectors, randomly "
            "rotated. Empty: the state cannot know the variable there, or fewer than 20 "
            "facts count; checkpoints where that is so everywhere are left out. At layer 0 a "
            "token is exchanged for another, no more."
        )
        drawing = maps_by_variable(values, "share of cases")
        return [Figure("swap", "Answers that follow a swapped variable", caption, drawing)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """A variable is used where answers follow its swap, and do not follow a random one."""
        follows = result["counterfactual_low"].sel(edit=CONDITIONS[0]) >= _USED
        counts = enough(result, "counterfactual").sel(edit=CONDITIONS[0])
        by_chance = result["counterfactual_high"].sel(edit=CONDITIONS[1]) <= _CONTROL
        return claimed("used", (follows & by_chance & counts).any("group"))


def outcomes(found: dict[str, Array], inputs: Any) -> dict[str, Array]:
    """The three outcomes, bool [condition, variable, layer, pos, example]."""
    answer = found["answer"]
    counterfactual = answer == across(inputs["expected"], answer)
    unchanged = answer == across(inputs["answer"], answer)
    return {
        "counterfactual": counterfactual,
        "unchanged": unchanged,
        "other": ~(counterfactual | unchanged),
    }
