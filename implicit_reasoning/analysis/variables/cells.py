"""Interventions cell by cell: the part that instruments of class means have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.rest import answer_from, answer_logits
from implicit_reasoning.analysis.states import residuals
from implicit_reasoning.model import Params, Transformer

ENOUGH = 20  # facts or prefixes whose cases count, before a mean is taken for a claim


class Cell(NamedTuple):
    """One (variable, position) in one layer: the states there, and those to fit on.

    Attributes:
      variable, pos: places among the variables and positions; traced.
      layer: blocks before the states; static.
      states: [example, d_model], of the cases.
      old, new, expected: int [example], see `Cases`.
      fit_states: [fit, d_model], with their `fit_values` and `fit_weight` (0 for copies).
    """

    variable: Int[Array, ""]
    pos: Int[Array, ""]
    layer: int
    states: Float[Array, "example d_model"]
    old: Int[Array, "example"]
    new: Int[Array, "example"]
    expected: Int[Array, "example"]
    fit_states: Float[Array, "fit d_model"]
    fit_values: Int[Array, "fit *more"]
    fit_weight: Float[Array, "fit *more"]


class Edited(NamedTuple):
    """What a method makes of the states of a cell.

    Attributes:
      states: [condition, example, d_model], to go on from.
      possible: bool [example], where the edit could be made at all.
      kept: further arrays of the cell, by the name of their output.
    """

    states: Float[Array, "condition example d_model"]
    possible: Array
    kept: dict[str, Array]


def intervene(
    model: Transformer, params: Params, inputs: dict[str, Any], edit: Callable[[Cell], Edited]
) -> dict[str, Array]:
    """Edit every cell, and look at the answers.

    Args:
      model: static.
      params: of one checkpoint.
      inputs: as `counterfactuals.inputs_of` makes them.
      edit: of a cell; traced once for a layer.

    Returns:
      `answer` int [condition, variable, layer, pos, example]; `counted` bool [variable, layer, pos,
      example], where the clean answer is right and the edit possible; `correct` [example]; and what
      `edit` kept, [variable, layer, pos, ...]. What a cell has that is not among those of the
      inputs (the variable is not known there) is 0, and not counted.
    """
    states = residuals(model, params, inputs["tokens"])
    fit_states = residuals(model, params, inputs["fit_tokens"])
    depth, n_pos = model.spec.depth, inputs["tokens"].shape[1]
    correct = answer_logits(model, params, states[depth], depth).argmax(-1) == inputs["answer"]

    def of_cell(layer: int, variable: Array, pos: Array) -> dict[str, Array]:
        cell = Cell(
            variable=variable,
            pos=pos,
            layer=layer,
            states=states[layer][:, pos],
            **{name: inputs[name][variable] for name in ("old", "new", "expected")},
            fit_states=fit_states[layer][:, pos],
            fit_values=inputs["fit_values"][variable],
            fit_weight=inputs["fit_weight"][pos],
        )
        edited = edit(cell)
        answer = jax.lax.map(
            lambda new: answer_from(model, params, states[layer], layer, pos, new), edited.states
        )
        return {"answer": answer, "counted": edited.possible & correct, **edited.kept}

    where = (inputs["cell_variable"], inputs["cell_pos"])
    shape = (len(inputs["old"]), n_pos)

    def of_layer(layer: int) -> dict[str, Array]:
        found = jax.lax.map(lambda at: of_cell(layer, *at), where)
        return {
            name: jnp.zeros((*shape, *value.shape[1:]), value.dtype).at[where].set(value)
            for name, value in found.items()
        }

    layers = [of_layer(layer) for layer in range(depth + 1)]
    table = {name: jnp.stack([of[name] for of in layers], axis=1) for name in layers[0]}
    return {**table, "answer": jnp.moveaxis(table["answer"], 3, 0), "correct": correct}


def across(value: Array, like: Array) -> Array:
    """`value` [variable, example] or [example] along [.., variable, layer, pos, example]."""
    if value.ndim == 2:
        value = value[:, None, None]
    return jnp.broadcast_to(jnp.expand_dims(value, range(like.ndim - value.ndim)), like.shape)


def enough(result: xr.Dataset, name: str) -> xr.DataArray:
    """Where the mean of an output is over enough facts or prefixes to say anything."""
    return result[f"{name}_n"] >= ENOUGH
