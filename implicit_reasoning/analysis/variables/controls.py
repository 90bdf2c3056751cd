"""Controls for interventions on a variable: edits that must not have the same effect.

A control is useful only if it can fail. A random direction almost never produces one specific
answer among many, so such a control passes for every model. The controls of a swap therefore insert
other *codes*. They fail if the expected answer appears because the old code is missing, whichever
code replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.analysis.variables.counterfactuals import Cases, counterfactual_answers
from implicit_reasoning.worlds import Dataset

MAX_ERASED = 16
"""Maximum number of values that are erased together; 16 class means span at most 15 dimensions."""

N_DRAWS = 10
"""Number of draws of values to erase."""


def swap_controls(
    dataset: Dataset, cases: Cases, fitted: Int[np.ndarray, " row"]
) -> dict[str, np.ndarray]:
    """Choose the values for the controls of a swap, for every variable.

    Args:
      dataset: the dataset.
      cases: the cases of the swap.
      fitted: the rows from which class means are computed.

    Returns:
      permuted: int32 `[variable, class]`, the class whose mean replaces the mean of each class. No
        class keeps its mean, except for classes without a fitted state.
      third: int32 `[variable, case]`, a value that differs from the old and the new value and does
        not give the answer of the new value; -1 if there is none.
      beside_values: int32 `[variable, fit]`, the values of another variable for the fitted rows.
      beside_old: int32 `[variable, case]`, the value of that other variable.
      beside_new: int32 `[variable, case]`, another value of that other variable, which does not
        give the answer of the new value; -1 if there is none.
    """
    known = chain_variables(dataset, fitted)
    names, random = cases.variables.names, np.random.default_rng(1)
    beside = [control_variable(names, name) for name in names]
    third, beside_new = [], []
    for index, (name, other) in enumerate(zip(names, beside, strict=True)):
        old, new = cases.variables.values[index], cases.new[index]
        avoided = np.stack([old, new])
        third.append(_value(dataset, cases, index, (name, known.values[index]), avoided, random))
        own = cases.variables.values[other][None]
        values = (names[other], known.values[other])
        beside_new.append(_value(dataset, cases, index, values, own, random))
    return {
        "permuted": np.stack(
            [permuted_classes(of_rows, dataset.n_vocab, random) for of_rows in known.values]
        ),
        "third": np.stack(third),
        "beside_values": known.values[beside],
        "beside_old": cases.variables.values[beside],
        "beside_new": np.stack(beside_new),
    }


def control_variable(names: Sequence[str], name: str) -> int:
    """Return the index of the variable that is the control for `name`: r1, or e1 for r1 itself."""
    return list(names).index("e1" if name == "r1" else "r1")


def _value(
    dataset: Dataset,
    cases: Cases,
    index: int,
    variable: tuple[str, np.ndarray],
    avoided: Int[np.ndarray, "some case"],
    random: np.random.Generator,
) -> Int[np.ndarray, " case"]:
    """Draw another value of a variable for each case; -1 if there is none.

    Values with a counterfactual answer are preferred.

    Args:
      dataset: the dataset.
      cases: the cases of the swap.
      index: the index of the swapped variable; its expected answer is avoided.
      variable: the name of the variable to draw, and its values in the fitted rows.
      avoided: values that must not be drawn; the first row has the current value.
      random: the random number generator.
    """
    name, known = variable
    values = np.unique(known[known >= 0])
    if not len(values):
        return np.full(len(cases.rows), -1, np.int32)
    others = np.broadcast_to(values, (len(cases.rows), len(values)))
    leads = counterfactual_answers(dataset, cases.rows, name, others)
    usable = (leads != cases.expected[index][:, None]) | (leads < 0)
    usable &= (values[None, None] != avoided[:, :, None]).all(0)
    usable &= (avoided[0] >= 0)[:, None]
    order = np.where(usable, random.random(leads.shape) + (leads >= 0), -1)
    place = order.argmax(-1)
    found = usable[np.arange(len(place)), place]
    return np.where(found, values[place], -1).astype(np.int32)


def permuted_classes(
    values: Int[np.ndarray, " row"], n_classes: int, random: np.random.Generator
) -> Int[np.ndarray, "class"]:
    """Permute the classes that occur in `values` by a random cycle, so that no class is fixed.

    Args:
      values: the class of each row; -1 for none.
      n_classes: the number of classes.
      random: the random number generator.

    Returns:
      int32 `[class]`; classes that do not occur are fixed.
    """
    there = random.permutation(np.unique(values[values >= 0]))
    dealt = np.arange(n_classes, dtype=np.int32)
    dealt[there] = np.roll(there, 1)
    return dealt


def draw_values(
    values: Int[np.ndarray, "variable row"], old: Int[np.ndarray, "variable case"]
) -> dict[str, np.ndarray]:
    """Draw the values of each variable that are erased together, and choose a draw for each case.

    Each draw takes the values that have been drawn least often. So all values are drawn about
    equally often, and every value is drawn if there are at most `N_DRAWS * MAX_ERASED`. A case is
    edited only once, in one of the draws that contain its value. The number of forward passes is
    therefore the same as for one erasure of all values.

    Args:
      values: the values of the rows for fitting; -1 for none.
      old: the values of the cases.

    Returns:
      drawn: int32 `[variable, draw, MAX_ERASED]`, the values; padded with -2.
      draw: int32 `[variable, case]`, the draw of each case; -1 if no draw contains its value.
    """
    random = np.random.default_rng(2)
    drawn = np.full((len(values), N_DRAWS, MAX_ERASED), -2, np.int32)
    draw = np.full(old.shape, -1, np.int32)
    for variable, (of_rows, of_cases) in enumerate(zip(values, old, strict=True)):
        there = np.unique(of_rows[of_rows >= 0])
        count = np.zeros(len(there))
        for number in range(N_DRAWS):
            order = np.lexsort((random.random(len(there)), count))[:MAX_ERASED]
            drawn[variable, number, : len(order)] = there[order]
            count[order] += 1
        holds = (drawn[variable][:, :, None] == of_cases).any(1)  # [draw, case]
        chosen = np.where(holds, random.random(holds.shape), -1).argmax(0)
        draw[variable] = np.where(holds.any(0), chosen, -1)
    return {"drawn": drawn, "draw": draw}
