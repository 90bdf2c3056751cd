"""Swap the features of bridges in all replacement models of a set, and compare with predictions.

A case is a prompt (e1, r1, r2) and a new bridge b'. A swap sets the features of the bridge b to 0,
and the features of b' to their mean activation. If the model reads its bridge where these features
write, it then answers T[b', r2]. Features are found (`bridge.py`) on training chains whose first
facts differ from those of the cases. They are set at all positions from the first one that knows
the bridge.

Two nulls show what any change of this size does: random features of the same layers, changed by
vectors of the same norms, and the features of a third bridge.

    found = measure_swaps(run, load(run, "transcoder"))
    found.follows.sel(change="swap", control="own", within="real")

All replacement models and cases are one compiled program.

Sources: Ameisen et al. 2025, "Circuit tracing" (interventions against predictions); Makelov, Lange
and Nanda 2024 (edits of a concept should change all that follows from it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.analysis.variables.counterfactuals import rows_to_fit
from implicit_reasoning.dictionaries.graphs.agreement import Agreement, agreement
from implicit_reasoning.dictionaries.graphs.bridge import bridge_features
from implicit_reasoning.dictionaries.graphs.interventions import (
    OBSERVED,
    PREDICTED,
    WITHIN,
    Intervention,
    Interventions,
    mean_activations,
    random_features,
    swap,
)
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts, label_prompts
from implicit_reasoning.dictionaries.graphs.measure import Group, group_coords, over_groups
from implicit_reasoning.dictionaries.measures.bridges import bridge_position
from implicit_reasoning.dictionaries.measures.use import choose_swaps
from implicit_reasoning.dictionaries.replacement import Replacement, local_run
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.worlds import Dataset

CHANGES = ("swap", "clamp", "ablate")
"""`swap` replaces the features of b by those of b', `clamp` only activates those of b', and
`ablate` only sets those of b to 0."""

CONTROLS = ("own", "random features", "another bridge")
_MAX_CASES = 200
_SEED = 0


class Cases(NamedTuple):
    """The prompts in which features are set.

    Attributes:
      tokens: the prompt of each case.
      old: its bridge.
      new: the new bridge.
      third: another bridge, for the null.
      expected: the right answer for the new bridge.
      at: the positions at which features are set.
    """

    tokens: Int[np.ndarray, "case pos"]
    old: Int[np.ndarray, " case"]
    new: Int[np.ndarray, " case"]
    third: Int[np.ndarray, " case"]
    expected: Int[np.ndarray, " case"]
    at: Bool[np.ndarray, " pos"]


def choose_cases(dataset: Dataset, most: int = _MAX_CASES) -> Cases:
    """Choose the cases.

    Args:
      dataset: the dataset.
      most: the largest number of cases.

    Raises:
      NotApplicable: the task has no chains of two hops.
    """
    need_chains(dataset)
    if dataset.hops != 2:
        raise NotApplicable(f"swaps of the bridge need chains of two hops; got {dataset.hops}")
    random, swaps = np.random.default_rng(_SEED), choose_swaps(dataset)
    chosen = np.sort(random.permutation(len(swaps.old))[:most])
    old, new = swaps.old[chosen], swaps.new[chosen]
    bridges = np.unique(dataset.truth["e2"][rows_to_fit(dataset)])
    third = random.permutation(new)
    for place in np.flatnonzero((third == new) | (third == old)):
        third[place] = random.choice(bridges[(bridges != new[place]) & (bridges != old[place])])
    return Cases(
        swaps.tokens[chosen],
        old,
        new,
        third,
        swaps.expected[chosen],
        np.arange(len(dataset.positions)) >= bridge_position(dataset),
    )


def measure_swaps(run: Subject, made: Dictionaries, *, max_cases: int = _MAX_CASES) -> xr.Dataset:
    """Swap the features of bridges in all replacement models of a set.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      max_cases: the largest number of cases.

    Returns:
      A dataset with the dimensions `group` (replacement models), `change`, `control` and `within`:

      - `follows`: the share of cases whose answer becomes T[b', r2];
      - `unchanged`: the share whose answer stays;
      - `effect`: the mean change of the logit of T[b', r2] minus the logit of the model's answer
        without a change;
      - `n_set`: the mean number of features that are set. If it is 0, there is nothing to swap.

      With the dimensions `prediction` and `observation` instead of `within`, it has `slope` and
      `correlation` of the observed with the predicted `effect`. Intervals are clustered by bridge,
      as `<name>_low` and `<name>_high`, and `n_clusters` is the number of bridges. Cases that
      the model answers with T[b', r2] without a change do not count.

    Raises:
      InputError: the set has no transcoders of all MLPs.
      NotApplicable: the task has no chains of two hops.
    """
    cases = choose_cases(run.dataset, max_cases)
    labels = label_prompts(run.dataset, rows_to_fit(run.dataset))
    found, groups = over_groups(run, made, partial(_outcomes, cases=cases, labels=labels))
    return _labeled(found, groups, cases)


def _outcomes(
    model: Transformer,
    params: Params,
    replacement: Replacement,
    own: Sequence[Params],
    *,
    cases: Cases,
    labels: LabelPrompts,
) -> dict[str, Array]:
    """Return the outcomes of every case for one replacement model, [change, control, within]."""
    arguments = model, params, replacement, own
    acts = local_run(*arguments, jnp.asarray(labels.tokens)).acts
    features = bridge_features(acts, labels)
    means = mean_activations(acts, features, labels)
    run = Interventions.of(*arguments, jnp.asarray(cases.tokens))
    old, new, third = (jnp.asarray(x) for x in (cases.old, cases.new, cases.third))
    none = jnp.full_like(old, -1)
    bridges = {
        "swap": ((old, new), (old, third)),
        "clamp": ((none, new), (none, third)),
        "ablate": ((old, none), (third, none)),
    }
    made: list[Intervention] = []
    for number, change in enumerate(CHANGES):
        own_change, other = (swap(features, means, *pair, cases.at) for pair in bridges[change])
        key = jax.random.key(number)
        null = random_features(key, own_change, run.local.acts, run.weights)
        made += [own_change, null, other]
    changes = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
    expected = jnp.asarray(cases.expected)[:, None]
    answer = run.local.logits.argmax(-1)[:, None]

    def margin(logits: Array) -> Array:
        high, low = (jnp.take_along_axis(logits, token, 1)[:, 0] for token in (expected, answer))
        return high - low

    before, parts = margin(run.local.logits), []
    for within in WITHIN:
        logits = jax.lax.map(lambda change, within=within: run(change, within).logits, changes)
        follows, unchanged = (answers_with(logits, token[:, 0]) for token in (expected, answer))
        parts.append((follows, unchanged, jax.vmap(margin)(logits) - before[None]))
    shape = len(CHANGES), len(CONTROLS), len(cases.old)
    follows, unchanged, effect = (
        jnp.stack([x.astype(jnp.float32).reshape(shape) for x in part], 2)
        for part in zip(*parts, strict=True)
    )
    n_set = changes.where.sum((2, 3, 4)).astype(jnp.float32).reshape(shape)
    counted = (answer != expected)[:, 0].astype(jnp.float32)
    names = "follows", "unchanged", "effect", "n_set", "counted"
    return dict(zip(names, (follows, unchanged, effect, n_set, counted), strict=True))


def _labeled(outcomes: dict[str, np.ndarray], groups: Sequence[Group], cases: Cases) -> xr.Dataset:
    """Average the outcomes over cases, with clustered intervals, and compare effects."""
    intervals = ClusterIntervals(cases.old)
    arrays: dict[str, Any] = {}
    counted = outcomes.pop("counted") > 0  # [group, case]
    for name, values in outcomes.items():
        dims = ("group", "change", "control", "within")[: values.ndim - 1]
        of = counted.reshape(len(groups), *[1] * (values.ndim - 2), -1)
        found = intervals.interval_given(np.asarray(values, np.float64), of)
        for end, part in (("", found.mean), ("_low", found.low), ("_high", found.high)):
            arrays[f"{name}{end}"] = dims, np.asarray(part)
    effect = outcomes["effect"]
    shape = len(groups), len(CHANGES), len(CONTROLS), len(PREDICTED), len(OBSERVED)
    compared = np.empty((*shape, len(Agreement._fields)))
    for place in np.ndindex(shape):
        here = effect[place[:3]]
        predicted, observed = here[place[3]], here[len(PREDICTED) + place[4]]
        compared[place] = agreement(predicted, observed, cases.old, counted[place[0]])
    dims = ("group", "change", "control", "prediction", "observation")
    for number, name in enumerate(Agreement._fields[:-1]):
        arrays[name] = dims, compared[..., number]
    arrays["n_clusters"] = "group", compared[:, 0, 0, 0, 0, -1].astype(int)
    coords = {
        "change": list(CHANGES),
        "control": list(CONTROLS),
        "within": list(WITHIN),
        "prediction": list(PREDICTED),
        "observation": list(OBSERVED),
        **group_coords(groups),
    }
    found_set = xr.Dataset(arrays, coords)
    return found_set.assign(n_cases=("group", counted.sum(1)))
