"""Choose the control edits of `mean_swap` and `erasure`.

A control edit should not have the effect of the real edit.

A control is useful only if it can fail. For example, adding a random direction to a state almost
never produces one specific answer, so a control with random directions would never fail. The
controls of a swap therefore insert class means of wrong values or of a different variable. A
control fails if it produces the answer that is expected after the real swap. In this case, the
class mean of the new value is not the cause of the expected answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.analysis.variables.counterfactuals import Cases, counterfactual_answers
from implicit_reasoning.worlds import Dataset

MAX_ERASED = 16
"""Maximum number of values in one erasure. The differences of 16 class means span 15 dimensions."""

N_DRAWS = 10
"""Number of erasures per variable. Each erasure erases a different random set of values."""


def swap_controls(
    dataset: Dataset, cases: Cases, fitted: Int[np.ndarray, " row"]
) -> dict[str, np.ndarray]:
    """Choose the values that the controls of a swap insert, for every variable.

    Args:
      dataset: the dataset.
      cases: the rows to edit, with the new values of the real swap.
      fitted: the dataset rows from whose states class means are computed.

    Returns:
      permuted: int32 `[variable, class]`, the class whose mean is used instead of the mean of each
        class. Classes that do not occur in the fitted rows are mapped to themselves.
      third: int32 `[variable, case]`, a value other than the old and the new value, which does not
        give the expected answer; -1 if there is no such value.
      beside_values: int32 `[variable, fit]`, the values of the control variable in the fitted rows.
        `control_variable` chooses the control variable.
      beside_old: int32 `[variable, case]`, the value of the control variable in the rows to edit.
      beside_new: int32 `[variable, case]`, a different value of the control variable, which does
        not give the expected answer; -1 if there is no such value.
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
    """Return the index of the control variable of a swap.

    One control of a swap inserts class means of the control variable. The control variable is r1.
    If the swapped variable is r1, the control variable is e1.

    Args:
      names: the names of all variables.
      name: the name of the swapped variable.
    """
    return list(names).index("e1" if name == "r1" else "r1")


def _value(
    dataset: Dataset,
    cases: Cases,
    index: int,
    variable: tuple[str, np.ndarray],
    avoided: Int[np.ndarray, "some case"],
    random: np.random.Generator,
) -> Int[np.ndarray, " case"]:
    """For each case, draw a value that does not give the answer that is expected for the swap.

    If possible, the value has a counterfactual answer.

    Args:
      dataset: the dataset.
      cases: the cases of the swap.
      index: the index of the swapped variable, whose expected answer is avoided.
      variable: the name of the variable to draw a value of, and its values in the fitted rows.
      avoided: values that must not be drawn. The first row has the current value.
      random: the random number generator.

    Returns:
      A value for each case; -1 if there is no such value.
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
    """Permute the classes that occur in `values` by a random cycle.

    Args:
      values: the class of each row; -1 if a row has no class.
      n_classes: the number of classes.
      random: the random number generator.

    Returns:
      int32 `[class]`, the class that replaces each class. Classes that do not occur are mapped to
      themselves.
    """
    there = random.permutation(np.unique(values[values >= 0]))
    dealt = np.arange(n_classes, dtype=np.int32)
    dealt[there] = np.roll(there, 1)
    return dealt


def draw_values(
    values: Int[np.ndarray, "variable row"], old: Int[np.ndarray, "variable case"]
) -> dict[str, np.ndarray]:
    """Draw sets of values to erase together, and choose one set for each row to edit.

    For each variable, `N_DRAWS` sets of at most `MAX_ERASED` values are drawn. Values that are in
    the fewest previous sets are drawn first, so all values are drawn about equally often. A row is
    edited only once, with a random set that contains the value of the row. The number of forward
    passes is therefore independent of the number of sets.

    Args:
      values: the values in the rows to which erasers are fitted; -1 if a row has no value.
      old: the values in the rows to edit.

    Returns:
      drawn: int32 `[variable, draw, MAX_ERASED]`, the values in each set, padded with -2.
      draw: int32 `[variable, case]`, the index of the chosen set; -1 if no set contains the value
        of the row.
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
