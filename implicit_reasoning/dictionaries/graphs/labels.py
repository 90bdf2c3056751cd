"""For which value of which variable of a chain each feature stands, at each position.

A feature at a position stands for "e2 is b" if its activity predicts that value with an F1 of at
least .5. The value of each variable is chosen on one half of the first facts (e1, r1), and F1 is
computed on the other half, as for the bridge (`bridge.py`). A variable counts at the positions at
which the prefix determines it. If a feature stands for values of several variables, its label is
the one with the highest F1 on the first half.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.dictionaries.graphs.bridge import MIN_F1, f1_of_values
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts
from implicit_reasoning.worlds import Dataset


class TrueValues(NamedTuple):
    """The values of the variables of some chains.

    Attributes:
      names: the names of the variables, such as "e2".
      values: the number of the entity or relation; -1 if there is none.
      known: whether the prefix at each position determines each variable.
      first_token: the token of the value 0 of each variable.
      n_values: the largest number of values of a variable.
    """

    names: tuple[str, ...]
    values: Int[np.ndarray, "variable state"]
    known: Bool[np.ndarray, "variable pos"]
    first_token: tuple[int, ...]
    n_values: int


def true_values(dataset: Dataset, rows: Int[np.ndarray, " state"]) -> TrueValues:
    """Return the values of the variables of some chains.

    Raises:
      NotApplicable: the task has no chains with entities of one token.
    """
    found, positions = chain_variables(dataset, rows), list(dataset.positions)
    first = [positions.index(first_known_position(name, positions)) for name in found.names]
    return TrueValues(
        found.names,
        found.values,
        np.arange(len(positions)) >= np.array(first)[:, None],
        tuple(found.first_token[kind] for kind in found.kinds),
        max(found.sizes.values()),
    )


class FeatureLabels(NamedTuple):
    """The value for which each feature stands, at each position.

    Attributes:
      variable: the index of the variable; -1 if the feature stands for no value.
      value: the number of the value.
      f1: F1 on the facts that did not choose the value.
    """

    variable: Int[Array, "pos layer feature"]
    value: Int[Array, "pos layer feature"]
    f1: Float[Array, "pos layer feature"]


def label_features(
    acts: Float[Array, "state pos layer feature"],
    true: TrueValues,
    prompts: LabelPrompts,
    *,
    least: float = MIN_F1,
) -> FeatureLabels:
    """Find the value for which each feature stands.

    Args:
      acts: the activations of all features for some prompts.
      true: the values of the variables of these prompts.
      prompts: these prompts.
      least: the least F1.
    """
    active = (acts > 0).astype(jnp.float32)
    in_second = jnp.asarray(prompts.second)[:, None]
    best = []
    for values, known in zip(true.values, true.known, strict=True):
        one_hot = jnp.asarray((values[:, None] == np.arange(true.n_values)).astype(np.float32))
        counts = jnp.asarray(prompts.distinct & known & (values >= 0)[:, None])
        choosing, scoring = (
            f1_of_values(active, one_hot, counts & half) for half in (~in_second, in_second)
        )
        value = choosing.argmax(-1)
        chosen, f1 = (
            jnp.take_along_axis(scores, value[..., None], -1)[..., 0]
            for scores in (choosing, scoring)
        )
        best.append((chosen, value, f1))
    chosen, value, f1 = (jnp.stack(part) for part in zip(*best, strict=True))
    # A feature that is inactive on all facts of the first half has no best value.
    stands = (f1 >= least) & (chosen > 0)
    variable = jnp.where(stands, chosen, -1.0).argmax(0)
    stands, value, f1 = (
        jnp.take_along_axis(part, variable[None], 0)[0] for part in (stands, value, f1)
    )
    return FeatureLabels(jnp.where(stands, variable, -1), value, f1)
