"""Swap a variable's class mean in a state, and measure whether the answer changes as predicted.

The state `S[layer, pos]` is replaced by `S + mean_b - mean_a`. Here, a is the current value of the
variable, b is a new value, and the means are class means of states. The right answer for value b is
called the counterfactual answer. If the model computes the answer from the variable in this state,
the answer becomes the counterfactual answer. For queries that are answered correctly without an
edit, there are three outcomes: unchanged answer, counterfactual answer, and any other answer
(damage).

The counterfactual answer can also appear because the mean of a is missing, or because the state is
damaged. Three controls therefore insert class means that should not give the counterfactual answer.
If a control gives many counterfactual answers, nothing is claimed.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int, Key

from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MIN_CLUSTERS,
    Claim,
    claimed,
    has_min_clusters,
)
from implicit_reasoning.analysis.drawing import maps_by_variable
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import chain_splits
from implicit_reasoning.analysis.variables.cells import (
    Cell,
    Edited,
    broadcast_to_cells,
    intervene,
    with_worst_control,
)
from implicit_reasoning.analysis.variables.controls import control_variable, swap_controls
from implicit_reasoning.analysis.variables.counterfactuals import (
    choose_cases,
    determined_cells,
    make_examples,
    make_inputs,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.subspaces import class_means, swap
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

CONTROLS = ("permuted means", "third value", "another variable")
CONDITIONS = ("class means", *CONTROLS)
_MAX_CASES = 128  # maximum number of cases per split
_USED = 0.8  # minimum of the lower interval end of the counterfactual answers
_CONTROL = 0.2  # maximum of the upper interval end of counterfactual answers, for every control


class MeanSwap(Instrument):
    """Instrument that swaps the class mean of a variable in a state and measures the answer."""

    name = "mean_swap"
    definition = (
        "S[layer, pos] + mean_b - mean_a, where a is the value of a variable in a row and b is "
        "another value. Class means are over distinct states of training chains; the first "
        "facts of the cases differ from those of these chains. Shares are over cases that are "
        "answered correctly when clean. unchanged: share of answers that stay. counterfactual: "
        "share of answers that are what the world says for b. other: share of all other "
        "answers. Three controls are scored by the same answer for b: means permuted among the "
        "values; the mean of a third value in place of that of b; and the difference of two "
        "means of r1 (of e1 if the variable is r1), scaled to the same norm. counted: share of "
        "all cases that count. possible: share of cases that count for an edit; a control is "
        "not possible if there is no value for it."
    )
    version = 2
    outputs = {
        **{
            name: ("edit", "variable", "layer", "pos", "example")
            for name in ("counterfactual", "unchanged", "other")
        },
        "possible": ("edit", "variable", "layer", "pos", "example"),
        "counted": ("variable", "layer", "pos", "example"),
        "correct": ("example",),
    }
    given = dict.fromkeys(("counterfactual", "unchanged", "other"), "possible")
    nulls = {
        "means permuted among values": {"edit": CONTROLS[0]},
        "a third value's mean": {"edit": CONTROLS[1]},
        "another variable's means, of equal norm": {"edit": CONTROLS[2]},
    }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the rows to edit, and a new value of every variable for each row.

        The rows are full chains, such as (e1, r1, r2), from every split.
        """
        splits = chain_splits(dataset)
        fitted = rows_to_fit(dataset)
        cases = choose_cases(dataset, splits, _MAX_CASES, fitted)
        controls = swap_controls(dataset, cases, fitted)
        inputs = make_inputs(dataset, cases, fitted, controls)
        inputs["beside_known"] = _beside_known(dataset, cases.variables.names, fitted)
        return make_examples(dataset, splits, cases, inputs, CONDITIONS)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all swaps and controls at every layer and position."""
        n_classes = model.spec.d_vocab

        def edit(cell: Cell, _: None) -> Edited:
            place, more = cell.place, cell.more
            means, beside = (
                class_means(place.states, values, place.weight, n_classes)
                for values in (cell.fit_values, more["beside_values"])
            )
            swapped = swap(cell.states, means, cell.old, cell.new)
            length = jnp.linalg.norm(swapped - cell.states, axis=-1)
            other = swap(cell.states, beside, more["beside_old"], more["beside_new"]) - cell.states
            size = jnp.linalg.norm(other, axis=-1)
            there = (more["beside_old"] >= 0) & (more["beside_new"] >= 0) & (size > 0)
            scaled = other * (length / jnp.where(there, size, 1))[:, None]
            edited = [
                swapped,
                swap(cell.states, means, more["permuted"][cell.old], more["permuted"][cell.new]),
                swap(cell.states, means, cell.old, more["third"]),
                cell.states + jnp.where(there[:, None], scaled, 0),
            ]
            known = (means.size[cell.old] > 0) & (means.size[cell.new] > 0)
            known &= cell.expected >= 0
            return Edited(jnp.stack(edited), known, {"beside": there})

        found = intervene(model, params, inputs, lambda place: None, edit)
        counted = found["counted"]
        third = broadcast_to_cells(jnp.asarray(inputs["more"]["third"]) >= 0, counted)
        beside = found["beside"] & jnp.asarray(inputs["beside_known"])[:, None, :, None]
        every = jnp.ones_like(counted)
        return {
            **outcomes(found, inputs),
            "possible": counted[None] & jnp.stack([every, every, third, beside]),
            "counted": counted,
            "correct": found["correct"],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of counterfactual answers, by variable, layer and position."""
        values = with_worst_control(result, "counterfactual", CONDITIONS[0], CONTROLS)
        caption = (
            "The cases are queries that are answered correctly without an edit. At (layer, "
            "position), the class mean of another value of the variable replaces the class mean "
            "of its own value. A cell is the share of cases whose answer becomes the one that "
            "the world gives for the other value. The number in brackets is the highest of "
            "three nulls, which count the same answer: class means that are permuted among the "
            "values; the class mean of a third value; and class means of r1 (of e1 if the "
            "variable is r1), scaled to equal norm. At layer 0, the swap only exchanges one "
            "token for another. A cell or a null is empty if the state cannot contain the "
            "variable, or if fewer than 20 clusters count (a cluster is a bridge where the "
            "prefix determines the bridge, and a prefix elsewhere). Checkpoints with only empty "
            "cells are left out."
        )
        drawing = maps_by_variable(values)
        return [Figure("mean_swap", "Answers that follow a swapped variable", caption, drawing)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim which states are used, and what this says of the whole model.

        "used" needs a (layer, position) at which a swap gives many counterfactual answers and every
        control gives few. A control that is measured on fewer than `MIN_CLUSTERS` clusters is
        ignored. If all controls are ignored, nothing is claimed.

        "factors" needs a (layer, position) at which e2 is used in chains of `test_ii`. The class
        mean of e2 comes from other prefixes than the chains that follow it, so these prefixes share
        the code. "grounded" needs the same in chains whose bridge no training chain identifies:
        those of `test_oi`, and those of `test_c0` if the dataset has them. A split with fewer than
        `MIN_CLUSTERS` bridges is ignored; of the others, all must agree. For both claims, most
        cases of the split must count: the lower end of `counted` is at least `MAJORITY`. Otherwise
        the cases that are answered correctly, and only these count, would not stand for the others.
        """
        follows = result["counterfactual_low"].sel(edit=CONDITIONS[0]) >= _USED
        there = has_min_clusters(result, "counterfactual")
        measured = there.sel(edit=list(CONTROLS))
        low = result["counterfactual_high"].sel(edit=list(CONTROLS)) <= _CONTROL
        by_chance = (low | ~measured).all("edit") & measured.any("edit")
        counts = there.sel(edit=CONDITIONS[0], drop=True)
        used = follows.drop_vars("edit") & by_chance & counts
        claims = claimed("used", used.any("group"))
        if "e2" not in used["variable"].values:
            return claims
        of_bridge = used.sel(variable="e2", drop=True)
        of_bridge &= result["counted_low"].sel(variable="e2", drop=True) >= MAJORITY
        for kind, splits in _EVIDENCE.items():
            asked = [name for name in splits if _has_bridges(result, name)]
            if asked and of_bridge.sel(group=asked).all("group").any():
                claims.add(Claim(kind, "e2"))
        return claims


_EVIDENCE = {"factors": ("test_ii",), "grounded": ("test_oi", "test_c0")}


def _has_bridges(result: xr.Dataset, split: str) -> bool:
    """Return whether a split has cases of at least `MIN_CLUSTERS` bridges, right or wrong."""
    if split not in result["group"].values:
        return False
    return bool(result["n_states"].sel(group=split, pos="r1") >= MIN_CLUSTERS)


def _beside_known(
    dataset: Dataset, names: tuple[str, ...], fitted: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, "variable pos"]:
    """Return whether the prefix up to each position determines the control variable."""
    variable, pos = determined_cells(dataset, fitted)
    known = np.zeros((len(names), len(dataset.positions)), bool)
    known[variable, pos] = True
    return known[[control_variable(names, name) for name in names]]


def outcomes(found: dict[str, Array], inputs: Any) -> dict[str, Array]:
    """Classify the answer after each edit as counterfactual, unchanged or other.

    Args:
      found: the result of `cells.intervene`.
      inputs: the inputs of `measure`.

    Returns:
      The three outcomes by name, each bool `[condition, variable, layer, pos, example]`.
    """
    answer = found["answer"]
    counterfactual = answer == broadcast_to_cells(inputs["expected"], answer)
    unchanged = answer == broadcast_to_cells(inputs["answer"], answer)
    return {
        "counterfactual": counterfactual,
        "unchanged": unchanged,
        "other": ~(counterfactual | unchanged),
    }
