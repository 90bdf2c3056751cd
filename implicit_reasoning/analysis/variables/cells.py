"""Interventions cell by cell: the part that instruments of class means have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import MIN_CLUSTERS
from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import Cache, cache_sites, patched_logits, state


class Place(NamedTuple):
    """One (layer, position), whichever variable is looked at: the states to fit on.

    Attributes:
      layer: blocks before the states; traced.
      states: [fit, d_model].
      weight: [fit, ...], 0 for copies.
    """

    layer: Int[Array, ""]
    states: Float[Array, "fit d_model"]
    weight: Float[Array, " fit *more"]


class Cell(NamedTuple):
    """One variable at a place: the states there, and what is known of them.

    Attributes:
      place: with the states to fit on; `fit_values` are theirs.
      states: [example, d_model], of the cases.
      old, new, expected: int [example], see `Cases`.
      more: what a method needs beside, of this variable: see `inputs_of`.
    """

    place: Place
    states: Float[Array, "example d_model"]
    old: Int[Array, " example"]
    new: Int[Array, " example"]
    expected: Int[Array, " example"]
    fit_values: Int[Array, " fit *more"]
    more: dict[str, Array]


class Edited(NamedTuple):
    """What a method makes of the states of a cell.

    Attributes:
      states: [condition, example, d_model], to go on from.
      possible: bool [example], where the edit could be made at all.
      kept: further arrays of the cell, by the name of their output.
    """

    states: Float[Array, "condition example d_model"]
    possible: Bool[Array, " example"]
    kept: dict[str, Array]


def intervene(
    model: Transformer,
    params: Params,
    inputs: dict[str, Any],
    prepare: Callable[[Place], Any],
    edit: Callable[[Cell, Any], Edited],
) -> dict[str, Array]:
    """Edit every cell, and look at the answers.

    Args:
      model: static.
      params: of one checkpoint.
      inputs: as `counterfactuals.inputs_of` makes them.
      prepare: what all variables of a place share; so that it is computed once.
      edit: of a cell, with what was prepared for its place. Both are traced once a position.

    Returns:
      `answer` int [condition, variable, layer, pos, example]; `counted` bool [variable, layer, pos,
      example], where the clean answer is right and the edit possible; `correct` [example]; and what
      `edit` kept, [variable, layer, pos, ...]. What a cell has that is not among those of the
      inputs (the variable is not known there) is 0, and not counted.
    """
    sites = cache_sites(model)
    cache = model.forward(params, inputs["tokens"], sites=sites)[1]
    fitted = model.forward(params, inputs["fit_tokens"], sites=sites)[1]
    depth = model.spec.depth
    clean = logits_from_layer(model, params, state(model, cache, depth), depth).argmax(-1)
    correct = clean == inputs["answer"]
    layers = range(depth + 1)

    def of_pos(pos: int) -> dict[str, Array]:
        """[variable, layer, ...] of one position."""
        places = Place(
            jnp.arange(depth + 1),
            jnp.stack([state(model, fitted, layer)[:, pos] for layer in layers]),
            jnp.broadcast_to(
                inputs["fit_weight"][pos], (depth + 1, *inputs["fit_weight"][pos].shape)
            ),
        )
        states = jnp.stack([state(model, cache, layer)[:, pos] for layer in layers])
        prepared = jax.lax.map(prepare, places)

        def of_variable(variable: Array) -> dict[str, Array]:
            known = {name: inputs[name][variable] for name in ("old", "new", "expected")}
            values = inputs["fit_values"][variable]
            more = {name: of_all[variable] for name, of_all in inputs["more"].items()}

            def of_layer(here: tuple[Place, Array, Any]) -> Edited:
                place, own, shared = here
                return edit(Cell(place, own, **known, fit_values=values, more=more), shared)

            def answers(cases: tuple[Cache, Array]) -> dict[str, Array]:
                own, new = cases  # new [example, layer, condition, d_model]
                starts = {(layer, pos): jnp.swapaxes(new[:, layer], 0, 1) for layer in layers}
                logits = patched_logits(model, params, own, starts)
                return {"answer": jnp.stack([says.argmax(-1) for says in logits.values()])}

            edited = jax.lax.map(of_layer, (places, states, prepared))
            counted = edited.possible & correct[None]
            cases = map_in_chunks(
                answers, (cache, edited.states.transpose(2, 0, 1, 3)), counted.any(0)
            )
            return {**cases, "counted": counted, **edited.kept}

        variables = inputs["variables_at"][pos]
        found = jax.lax.map(of_variable, variables)
        return {
            name: jnp.zeros((len(inputs["old"]), *value.shape[1:]), value.dtype)
            .at[variables]
            .set(value)
            for name, value in found.items()
        }

    positions = [of_pos(pos) for pos in range(inputs["tokens"].shape[1])]
    table = {name: jnp.stack([of[name] for of in positions], axis=2) for name in positions[0]}
    return {**table, "answer": jnp.moveaxis(table["answer"], 3, 0), "correct": correct}


def broadcast_to_cells(value: Array, like: Array) -> Array:
    """`value` [variable, example] or [example] along [.., variable, layer, pos, example]."""
    if value.ndim == 2:
        value = value[:, None, None]
    return jnp.broadcast_to(jnp.expand_dims(value, range(like.ndim - value.ndim)), like.shape)


def has_min_clusters(result: xr.Dataset, name: str) -> xr.DataArray:
    """Where the mean of an output is over enough clusters to say anything."""
    return result[f"{name}_n"] >= MIN_CLUSTERS


def with_worst_control(
    result: xr.Dataset, name: str, edit: str, controls: Sequence[str], *, worst: str = "max"
) -> xr.DataArray:
    """An outcome and its worst control, along `edit`, where enough counts: for `maps_by_variable`.

    Args:
      result: of an instrument.
      name: of the outcome, with the dimension `edit`.
      edit: the label of what is shown.
      controls: labels of its controls.
      worst: "max" or "min", which of the controls is nearest to the effect that is looked for.
    """
    values = result[name].where(has_min_clusters(result, name))
    of_controls = getattr(values.sel(edit=list(controls)), worst)("edit")
    both = [values.sel(edit=edit, drop=True), of_controls]
    return xr.concat(both, dim=xr.Variable("edit", [edit, "worst control"]))
