"""Score how well the activity of neurons matches triggers, such as facts.

A neuron is active in a state if its activation is positive (`ACTIVITIES[0]`), or if its activation
exceeds half of its maximum over all states at this position (`ACTIVITIES[1]`). The first definition
suits rectified linear units. With gelu, many neurons are weakly active in many states.

F1 compares "the neuron is active" with "the trigger is present".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.components.triggers import PositionStates, Triggers, specificity
from implicit_reasoning.analysis.reading.ranking import f1_score

ACTIVITIES = ("positive", "above half of the maximum")


class Keys(NamedTuple):
    """The best trigger of each neuron at one position.

    Attributes:
      variable: index of the variable in the list of names that `best_keys` got; -1 for a neuron
        that is never active.
      value: index of the value of the variable.
      f1: F1 of the trigger on the half on which triggers are not chosen. For a trigger that is
        present in one state, F1 on all states.
      first_f1: F1 of the trigger on the half on which triggers are chosen.
      shared_f1: like `f1`, for the best trigger among those that are present in several states; nan
        if there is none.
      n_active: the number of states in which the neuron is active.
    """

    variable: Int[Array, " neuron"]
    value: Int[Array, " neuron"]
    f1: Float[Array, " neuron"]
    first_f1: Float[Array, " neuron"]
    shared_f1: Float[Array, " neuron"]
    n_active: Int[Array, " neuron"]


class Scored(NamedTuple):
    """For each neuron, the best value of one variable and its F1 on both halves."""

    value: Int[Array, " neuron"]
    first: Float[Array, " neuron"]
    second: Float[Array, " neuron"]


def active_states(acts: Float[Array, "state neuron"]) -> Bool[Array, "activity state neuron"]:
    """Return whether each neuron is active in each state, for each of `ACTIVITIES`."""
    half = acts.max(0, keepdims=True) / 2
    return jnp.stack([acts > 0, (acts > 0) & (acts > half)])


def best_keys(
    acts: Float[Array, "state neuron"],
    active: Bool[Array, "state neuron"],
    states: PositionStates,
    names: Sequence[str],
) -> Keys:
    """Find the best trigger of each neuron at one position.

    Args:
      acts: the activations in all states.
      active: whether each neuron is active in each state.
      states: the states and their triggers.
      names: names of all variables; `Keys.variable` is an index into this list.
    """
    shared = best_shared(active, states.shared)
    n_active = active.sum(0)
    count = active.shape[1]
    best = Scored(jnp.zeros(count, jnp.int32), jnp.full(count, -1.0), jnp.zeros(count))
    variable = jnp.full(count, -1)
    alone = {name: _alone(acts, n_active, one) for name, one in states.alone.items()}
    for name, found in sorted((shared | alone).items(), key=lambda item: specificity(item[0])):
        better = (found.first >= best.first) & (n_active > 0)
        variable = jnp.where(better, names.index(name), variable)
        best = Scored(*(jnp.where(better, *pair) for pair in zip(found, best, strict=True)))
    shared_f1 = best_of(shared).second if shared else jnp.full(count, jnp.nan)
    first = jnp.maximum(best.first, 0)
    return Keys(variable, best.value, best.second, first, shared_f1, n_active)


def best_shared(
    active: Bool[Array, "state neuron"], tables: Mapping[str, Triggers], *, often: bool = False
) -> dict[str, Scored]:
    """Return the best trigger of each neuron among triggers that are present in several states.

    Args:
      active: whether each neuron is active in each state.
      tables: the triggers of each variable.
      often: whether to use only triggers that are present in two states of each half.

    Returns:
      The best value of each variable, by name.
    """
    return {
        name: _shared(active, one._replace(scored=one.often) if often else one)
        for name, one in tables.items()
    }


def best_of(found: dict[str, Scored]) -> Scored:
    """Return the best trigger among several variables, by F1 on the half for the choice."""
    parts = [found[name] for name in sorted(found, key=specificity, reverse=True)]
    stacked = Scored(*(jnp.stack(part) for part in zip(*parts, strict=True)))
    best = stacked.first.argmax(0)[None]
    return Scored(*(jnp.take_along_axis(part, best, 0)[0] for part in stacked))


def _shared(active: Bool[Array, "state neuron"], triggers: Triggers) -> Scored:
    """Choose the best value on the first half of the states, and score it on the second half."""
    scored = jnp.asarray(triggers.scored)
    values, second = jnp.asarray(triggers.values), jnp.asarray(triggers.second)
    n_values = len(scored)
    pair = values * 2 + second
    on = active.astype(jnp.float32)
    both = jax.ops.segment_sum(on, pair, 2 * n_values).reshape(n_values, 2, -1)
    sizes = jax.ops.segment_sum(jnp.ones(len(pair)), pair, 2 * n_values).reshape(n_values, 2)
    n_active = both.sum(0)  # every state has a value
    first = f1_score(both[:, 0], sizes[:, :1], n_active[:1])
    first = jnp.where(scored[:, None], first, -1.0)
    best = first.argmax(0)
    of_best = jnp.take_along_axis(both[:, 1], best[None], 0)[0]
    return Scored(
        best.astype(jnp.int32), first.max(0), f1_score(of_best, sizes[best, 1], n_active[1])
    )


def _alone(
    acts: Float[Array, "state neuron"], n_active: Int[Array, " neuron"], triggers: Triggers
) -> Scored:
    """Score the trigger of the state in which each neuron has its highest activation.

    All states are used, because each trigger is present in one state only.
    """
    value = jnp.asarray(triggers.values)[acts.argmax(0)]
    one = jnp.ones(n_active.shape)
    f1 = jnp.where(n_active > 0, f1_score(one, one, n_active.astype(jnp.float32)), 0.0)
    return Scored(value, f1, f1)
