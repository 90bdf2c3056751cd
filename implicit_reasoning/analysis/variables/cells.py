"""Edit the state of every cell (variable, layer, position), for `mean_swap` and `erasure`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import known_means
from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import Cache, cache_sites, patched_logits, state


class Place(NamedTuple):
    """One (layer, position), with the states to which class means or erasers are fitted.

    Attributes:
      layer: the number of blocks that are applied before the states; a traced scalar.
      states: the states for fitting, `[fit, d_model]`.
      weight: the weight of each state for fitting, `[fit, ...]`; 0 for duplicates.
    """

    layer: Int[Array, ""]
    states: Float[Array, "fit d_model"]
    weight: Float[Array, " fit *more"]


class Cell(NamedTuple):
    """One variable at one (layer, position), with the states to edit.

    Attributes:
      place: the layer and position, with the states for fitting.
      states: the states to edit, `[example, d_model]`.
      old: the current value of the variable, int `[example]`.
      new: the value that the edit gives to the variable, int `[example]`; -1 if there is none.
      expected: the token that answers the query with the new value, int `[example]`; -1 if there is
        none.
      fit_values: the value of the variable in each state for fitting, int `[fit, ...]`.
      more: further arrays that the edit needs for this variable; see `make_inputs`.
    """

    place: Place
    states: Float[Array, "example d_model"]
    old: Int[Array, " example"]
    new: Int[Array, " example"]
    expected: Int[Array, " example"]
    fit_values: Int[Array, " fit *more"]
    more: dict[str, Array]


class Edited(NamedTuple):
    """Edited states of a cell.

    Attributes:
      states: the edited states, `[condition, example, d_model]`. A condition is an edit or a
        control.
      possible: whether the edit is possible for each example, bool `[example]`.
      kept: further outputs of the cell, by name. `intervene` returns them.
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
    """Edit the state in every cell, and compute the answer after each edit.

    Args:
      model: the model (static).
      params: the parameters of one checkpoint.
      inputs: the inputs from `counterfactuals.make_inputs`.
      prepare: function that computes what the edits of all variables share at one (layer,
        position), such as a whitening transform. It is called once per (layer, position).
      edit: function that edits the states of a cell. Its second argument is the result of
        `prepare`. JAX traces `prepare` and `edit` once per position.

    A cell is skipped if the prompt up to its position does not determine its variable (see
    `variables_at` of the inputs). The outputs of a skipped cell are 0, and no example counts.

    Returns:
      A dict with the outputs in `Edited.kept`, each `[variable, layer, pos, ...]`, and:
      answer: int `[condition, variable, layer, pos, example]`, the answer after the edit.
      counted: bool `[variable, layer, pos, example]`, whether the clean answer is correct and the
        edit is possible.
      correct: bool `[example]`, whether the clean answer is correct.
    """
    sites = cache_sites(model)
    cache = model.forward(params, inputs["tokens"], sites=sites)[1]
    fitted = model.forward(params, inputs["fit_tokens"], sites=sites)[1]
    depth = model.spec.depth
    clean = logits_from_layer(model, params, state(model, cache, depth), depth).argmax(-1)
    correct = clean == inputs["answer"]
    layers = range(depth + 1)

    def of_pos(pos: int) -> dict[str, Array]:
        """Return the outputs of one position, each `[variable, layer, ...]`."""
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
    """Broadcast `value` to the shape of `like`.

    Args:
      value: `[variable, example]` or `[example]`.
      like: `[..., variable, layer, pos, example]`.
    """
    if value.ndim == 2:
        value = value[:, None, None]
    return jnp.broadcast_to(jnp.expand_dims(value, range(like.ndim - value.ndim)), like.shape)


def with_worst_control(
    result: xr.Dataset, name: str, edit: str, controls: Sequence[str], *, worst: str = "max"
) -> xr.DataArray:
    """Select an outcome of one edit, and the worst outcome of the edit's controls.

    The result is an input for `drawing.maps_by_variable`.

    Args:
      result: the result of an instrument.
      name: the name of the outcome, which has the dimension `edit`.
      edit: the label of the edit to show.
      controls: the labels of the edit's controls.
      worst: "max" if a large outcome is evidence for an effect; "min" if a small outcome is.

    Returns:
      The outcome. The dimension `edit` has two labels: the value of the argument `edit`, and "worst
      control". Means over fewer than `MIN_CLUSTERS` clusters are NaN.
    """
    values = known_means(result, name)
    of_controls = getattr(values.sel(edit=list(controls)), worst)("edit")
    both = [values.sel(edit=edit, drop=True), of_controls]
    return xr.concat(both, dim=xr.Variable("edit", [edit, "worst control"]))
