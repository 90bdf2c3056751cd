"""Ablate every feature of a graph alone, in all replacement models of a set, and test predictions.

The effect of an ablation is the change of the logit of the model's answer, minus the mean of all
logits. It is predicted from the edges of the graph of the prompt, and observed in the replacement
model, in the model with frozen attention and norms, and in the model (`interventions.py`).

    found = measure_ablations(run, load(run, "transcoder"))
    found.slope.sel(prediction="paths", observation="real")

All replacement models, prompts and features are one compiled program.

Source: Ameisen et al. 2025, "Circuit tracing", section on mechanistic faithfulness.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int

from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.dictionaries.graphs.agreement import Agreement, agreement
from implicit_reasoning.dictionaries.graphs.attribution import attribute
from implicit_reasoning.dictionaries.graphs.interventions import (
    OBSERVED,
    PREDICTED,
    Interventions,
    ablate,
    predicted_effects,
)
from implicit_reasoning.dictionaries.graphs.measure import group_coords, over_groups
from implicit_reasoning.dictionaries.replacement import Replacement
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds.clusters import clusters_of

_MAX_CHAINS = 20  # of each split
_SEED = 0


def measure_ablations(
    run: Subject,
    made: Dictionaries,
    *,
    splits: Sequence[str] = (),
    max_features: int = 64,
    max_chains: int = _MAX_CHAINS,
) -> xr.Dataset:
    """Ablate every feature of the graphs of chains, for all replacement models of a set.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      splits: the splits of the chains; default: all splits of chains.
      max_features: the number of places for features in a graph. Only these are ablated.
      max_chains: the largest number of chains of each split.

    Returns:
      A dataset with the dimensions `group` (replacement models), `split`, `prediction` and
      `observation`. It has `slope` and `correlation` of observed with predicted effects, with
      intervals that are clustered by bridge, as `<name>_low` and `<name>_high`, and
      `correlation_null`: the correlation if the predictions are dealt anew among the features of
      each prompt. `n_nodes` is the number of ablated features, and `n_clusters` that of bridges.

    Raises:
      InputError: the set has no transcoders of all MLPs.
      NotApplicable: the task has no chains.
    """
    dataset = run.dataset
    chosen = tuple(splits) or chain_splits(dataset)
    rows, split = choose_rows(dataset, chosen, max_chains)
    found, groups = over_groups(
        run, made, partial(_effects, tokens=prompts(dataset, rows), max_features=max_features)
    )
    clusters = clusters_of(dataset, rows)
    shape = len(groups), len(chosen), len(PREDICTED), len(OBSERVED)
    compared = np.full((*shape, len(Agreement._fields)), np.nan)
    null, nodes = np.full(shape, np.nan), np.zeros(shape[:2], int)
    for place in np.ndindex(shape):
        effects, counted = (found[name][place[0]] for name in ("effects", "counted"))
        of = np.broadcast_to(clusters, counted.shape).ravel()
        here = counted & (split == place[1])[None]
        nodes[place[:2]] = here.sum()
        predicted, observed = effects[place[2]], effects[len(PREDICTED) + place[3]]
        compared[place] = agreement(predicted.ravel(), observed.ravel(), of, here.ravel())
        dealt = _dealt(predicted, here)
        null[place] = agreement(dealt.ravel(), observed.ravel(), of, here.ravel()).correlation
    dims = ("group", "split", "prediction", "observation")
    arrays = {
        name: (dims, compared[..., number]) for number, name in enumerate(Agreement._fields[:-1])
    }
    coords = {
        "split": list(chosen),
        "prediction": list(PREDICTED),
        "observation": list(OBSERVED),
        **group_coords(groups),
    }
    return xr.Dataset(arrays, coords).assign(
        correlation_null=(dims, null),
        n_nodes=(dims[:2], nodes),
        n_clusters=(dims[:2], compared[:, :, 0, 0, -1].astype(int)),
    )


def _effects(
    model: Transformer,
    params: Params,
    replacement: Replacement,
    own: Sequence[Params],
    *,
    tokens: Int[np.ndarray, "chain pos"],
    max_features: int,
) -> dict[str, Array]:
    """Return the effects of all ablations, [model, feature, chain], and which features count."""
    arguments = model, params, replacement, own, jnp.asarray(tokens)
    graphs = attribute(*arguments, max_features=max_features, max_logits=1)
    run = Interventions.of(*arguments)
    chain = jnp.arange(len(tokens))

    def answer(logits: Array) -> Array:
        centred = logits - logits.mean(-1, keepdims=True)
        return centred[chain, graphs.token[:, 0]]

    before = answer(run.local.logits)

    def of_feature(place: tuple[Array, Array, Array, Array]) -> Array:
        pos, layer, feature, counts = place
        where = jnp.zeros(run.local.acts.shape, bool).at[chain, pos, layer, feature].set(counts)
        change = ablate(where)
        predicted = jax.vmap(predicted_effects)(graphs, *change)
        effects = [getattr(predicted, name)[:, -1] for name in PREDICTED]
        effects += [answer(run(change, within).logits) - before for within in OBSERVED]
        return jnp.stack(effects)

    places = graphs.pos.T, graphs.layer.T, graphs.feature.T, graphs.counts.T
    found = jax.lax.map(of_feature, places)
    return {"effects": jnp.swapaxes(found, 0, 1), "counted": graphs.counts.T}


def _dealt(predicted: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Deal the predictions anew among the features of each chain that count."""
    random, dealt = np.random.default_rng(_SEED), predicted.copy()
    for chain, own in enumerate(counted.T):
        dealt[own, chain] = random.permutation(predicted[own, chain])
    return dealt
