"""What interventions on a variable are compared with: edits that must not have the same effect.

A control is of use only if it can fail. A random direction sets hardly any answer among many, so it
passes whatever the model does. The controls of a swap put in other *codes*, of equal norm: they
fail where an answer comes out because the old code is gone, whichever code takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.analysis.variables.counterfactuals import Cases, counterfactual_answers
from implicit_reasoning.worlds import Dataset

MAX_ERASED = 16
"""Values that are erased together: so many span at most 15 dimensions of class means."""

N_DRAWS = 10
"""How often values to erase are drawn."""


def swap_controls(
    dataset: Dataset, cases: Cases, fitted: Int[np.ndarray, " row"]
) -> dict[str, np.ndarray]:
    """Values for the controls of a swap, by variable.

    Returns:
      permuted: int32 [variable, class], for every class whose mean takes the place of its own: no
        class keeps its mean. Classes without a fitted state keep theirs.
      third: int32 [variable, case], a value that is neither the old nor the new one and does not
        lead to the answer that the new one leads to; -1 where there is none.
      beside_values: int32 [variable, fit], values of the fitted rows of another variable.
      beside_old, beside_new: int32 [variable, case], the value of that other variable, and another
        one that does not lead to the answer that the new value leads to; -1 where there is none.
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
    """Which other variable's code is put in as a control: r1, and for r1 itself e1."""
    return list(names).index("e1" if name == "r1" else "r1")


def _value(
    dataset: Dataset,
    cases: Cases,
    index: int,
    variable: tuple[str, np.ndarray],
    avoided: Int[np.ndarray, "some case"],
    random: np.random.Generator,
) -> Int[np.ndarray, " case"]:
    """Another value of a variable for each case; one that leads somewhere, if there is one."""
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
    """Classes dealt out among those that occur, none to itself: a random cycle through all."""
    there = random.permutation(np.unique(values[values >= 0]))
    dealt = np.arange(n_classes, dtype=np.int32)
    dealt[there] = np.roll(there, 1)
    return dealt


def draw_values(
    values: Int[np.ndarray, "variable row"], old: Int[np.ndarray, "variable case"]
) -> dict[str, np.ndarray]:
    """Which values of each variable are erased together, and in which draw each case is edited.

    Values that were drawn least often come first, so that all are drawn about equally often, and
    all are erased if there are at most `N_DRAWS * MAX_ERASED`. A case is edited once, by one of the
    draws that hold its value: so the draws cost no more forward passes than one erasure of all.

    Args:
      values: of the rows to fit on; -1: none.
      old: the values of the cases.

    Returns:
      drawn: int32 [variable, draw, MAX_ERASED], values; -2 where a variable has fewer.
      draw: int32 [variable, case], the case's draw; -1 where no draw holds its value.
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
