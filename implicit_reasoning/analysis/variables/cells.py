"""Edit states, and compute the answers after each edit, for `mean_swap` and `erasure`.

A combination (variable, layer, position) is called a cell. All cells are computed in one program.
"""

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
    """One (layer, position), with the states to which edits are fitted.

    Attributes:
      layer: the number of blocks before the states; a traced scalar.
      states: the states to which class means or erasers are fitted, `[fit, d_model]`.
      weight: the weight of each state in the fit, `[fit, ...]`; 0 for duplicates of a state.
    """

    layer: Int[Array, ""]
    states: Float[Array, "fit d_model"]
    weight: Float[Array, " fit *more"]


class Cell(NamedTuple):
    """One variable at one (layer, position), with the states to edit.

    Attributes:
      place: the layer and position, with the states to which edits are fitted.
      states: the states to edit, `[example, d_model]`.
      old: the value of the variable in each example, int `[example]`.
      new: the value that the edit should insert, int `[example]`; -1 if there is no such value.
      expected: the right answer token for the new value, int `[example]`; -1 if there is no new
        value.
      fit_values: the value of the variable for each of `place.states`, int `[fit, ...]`.
      more: further arrays for this variable, by name, which an instrument passes to `make_inputs`.
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
      states: the edited states, `[condition, example, d_model]`. The conditions are the real edit
        and the controls.
      possible: whether the real edit is possible for each example, bool `[example]`.
      kept: further arrays by name, which `intervene` adds to its outputs.
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
    """Edit states in every cell (variable, layer, position), and compute the answers.

    A cell is skipped if the prefix up to the position does not determine the variable. The outputs
    of a skipped cell are 0.

    Args:
      model: the model (static).
      params: the parameters of one checkpoint.
      inputs: the arrays from `counterfactuals.make_inputs`.
      prepare: function that computes arrays for all variables of one (layer, position), such as a
        whitening transform.
      edit: function that edits the states of one cell. The second argument is the result of
        `prepare`.

    Returns:
      A dict with the arrays in `Edited.kept`, each `[variable, layer, pos, ...]`, and with:

      - `answer`: int `[condition, variable, layer, pos, example]`, the answer token after the edit.
      - `counted`: bool `[variable, layer, pos, example]`, whether the edit is possible, and the
        answer without an edit is correct.
      - `correct`: bool `[example]`, whether the answer without an edit is correct.
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
    """Broadcast an array of examples to all layers and positions.

    Args:
      value: the array to broadcast, `[variable, example]` or `[example]`.
      like: an array `[..., variable, layer, pos, example]` with the new shape.
    """
    if value.ndim == 2:
        value = value[:, None, None]
    return jnp.broadcast_to(jnp.expand_dims(value, range(like.ndim - value.ndim)), like.shape)


def with_worst_control(
    result: xr.Dataset, name: str, edit: str, controls: Sequence[str], *, worst: str = "max"
) -> xr.DataArray:
    """Select an outcome of an edit and the worst outcome of the controls, for a figure.

    The returned array is an input of `drawing.maps_by_variable`.

    Args:
      result: the result of an instrument.
      name: the name of the outcome. It has the dimension `edit`.
      edit: the label of the real edit.
      controls: the labels of the controls.
      worst: which outcome of a control is the worst: "max" (the largest) or "min" (the smallest).

    Returns:
      The outcome, with two labels of the dimension `edit`: the label of the real edit, and "worst
      control". Means over fewer than `MIN_CLUSTERS` clusters are nan.
    """
    values = known_means(result, name)
    of_controls = getattr(values.sel(edit=list(controls)), worst)("edit")
    both = [values.sel(edit=edit, drop=True), of_controls]
    return xr.concat(both, dim=xr.Variable("edit", [edit, "worst control"]))
