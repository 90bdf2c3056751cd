"""Does the model go on with what a feature says? A bridge's feature is set to another bridge's.

In `S[layer, pos]` of a prompt (e1, r1, r2) the feature of its bridge e goes to 0, that of another
bridge e' to what it is where e' is the bridge; all that the dictionary does not write stays. If the
features are what the model uses, then the answer becomes where r2 leads from e' - for *every*
relation of e', not for one. Features are chosen by three rules, on prompts with other first facts:

- `truth`: active most nearly where the bridge is (F1, see `matching.py`);
- `activation`: most active, on average, where the bridge is;
- `attribution`: most activation times gradient of the right answer's logit, where the bridge is;

and, as a null, by `truth` for bridges dealt out anew. Beside them stands the swap of class means,
which no dictionary is needed for. What a swap does to answers of other kinds is its side effect.

Source of the test: that a concept's vector should move all that follows from it (Makelov, Lange and
Nanda 2024; Hernandez et al. 2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.facts import known_at
from implicit_reasoning.analysis.questions import tokens_of
from implicit_reasoning.analysis.rest import answer_logits
from implicit_reasoning.analysis.states import prompts
from implicit_reasoning.analysis.variables.counterfactuals import follow, rows_to_fit
from implicit_reasoning.analysis.variables.subspaces import class_means, swap
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.matching import match
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

RULES = ("truth", "activation", "attribution", "null", "class means")
OUTCOMES = ("moved", "unchanged", "other")
_PAIRS = 100
_SEED = 0


class Swaps(NamedTuple):
    """Prompts whose bridge is exchanged: for every pair all relations that lead on from the new.

    Attributes:
      tokens: int32 [case, pos].
      old, new: entities, the two bridges.
      expected: the answer from the new one.
      clean: the answer from the old one; -1 where it has no such fact.
      pair: int [case], which prefix and new bridge.
    """

    tokens: Int[np.ndarray, "case pos"]
    old: Int[np.ndarray, "case"]
    new: Int[np.ndarray, "case"]
    expected: Int[np.ndarray, "case"]
    clean: Int[np.ndarray, "case"]
    pair: Int[np.ndarray, "case"]


def choose_swaps(dataset: Dataset, n_pairs: int = _PAIRS) -> Swaps:
    """Prefixes whose facts were not fitted to, each with another bridge, for two hops.

    Only facts that training uses at the second hop lead on: others no model need know.
    """
    world, truth = world_of(dataset), dataset.truth
    random, fitted = np.random.default_rng(_SEED), rows_to_fit(dataset)
    chains = np.flatnonzero((truth["fact2"] >= 0)[: dataset.n_train])
    facts, rows = np.unique(truth["fact1"][chains], return_index=True)
    rows = chains[rows[~np.isin(facts, truth["fact1"][fitted])]]
    rows = random.permutation(rows)[:n_pairs]
    bridges = np.unique(truth["e2"][fitted])
    old = truth["e2"][rows]
    shift = random.integers(1, len(bridges), len(rows))
    place = np.searchsorted(bridges, old)  # of those that are not there, where they would be
    new = bridges[(place + shift) % len(bridges)]
    new = np.where(new == old, bridges[(place + shift + 1) % len(bridges)], new)
    relations = np.broadcast_to(np.arange(world.n_relations), (len(rows), world.n_relations))
    start = [np.broadcast_to(value[:, None], relations.shape) for value in (old, new)]
    clean, expected = (follow(world, [relations, relations], one, 1) for one in start)
    pair, r2 = np.nonzero((expected >= 0) & (expected != clean))
    parts = np.stack([truth["e1"][rows[pair]], truth["r1"][rows[pair]], r2], axis=1)
    return Swaps(
        tokens_of(dataset, parts.astype(np.int32)),
        old[pair].astype(np.int32),
        new[pair].astype(np.int32),
        expected[pair, r2].astype(np.int32),
        clean[pair, r2].astype(np.int32),
        pair,
    )


def use_inputs(dataset: Dataset) -> dict[str, Any]:
    """Arrays for `swap_bridges`: prompts to choose features on, and swaps."""
    fitted = rows_to_fit(dataset)
    swaps = choose_swaps(dataset)
    e2 = dataset.truth["e2"][fitted].astype(np.int32)
    return {
        "fit_tokens": prompts(dataset, fitted),
        "fit_values": e2,
        "fit_null": np.random.default_rng(_SEED).permutation(e2),
        "fit_answer": dataset.truth["answer"][fitted].astype(np.int32),
        **swaps._asdict(),
    }


def bridge_position(dataset: Dataset) -> int:
    """The number of the first position that knows the bridge."""
    return list(dataset.positions).index(known_at("e2", dataset.positions))


def swap_bridges(
    model: Transformer,
    params: Params,
    finished: Finished,
    dictionary: Params,
    inputs: dict[str, Any],
    *,
    layer: int,
    pos: int,
    n_values: int,
) -> dict[str, Array]:
    """Swap bridges in `S[layer, pos]`, by every rule; traced.

    Args:
      model: static.
      params: of a checkpoint.
      finished: an autoencoder of residuals, static.
      dictionary: its parameters.
      inputs: see `use_inputs`.
      layer: blocks before the state.
      pos: number of the position.
      n_values: entities.

    Returns:
      `outcome` bool [rule, outcome, case], and `feature` int [rule, value] (not of class means).
    """
    site = model.resid_sites[layer]

    def states_of(tokens: Array) -> Array:
        return model.forward(params, tokens, sites=(site,))[1][site]

    fit = states_of(jnp.asarray(inputs["fit_tokens"]))
    acts = finished.encode(dictionary, fit[:, pos])
    values, null = (jnp.asarray(inputs[name]) for name in ("fit_values", "fit_null"))
    gradient = _gradient(model, params, fit, layer, pos, jnp.asarray(inputs["fit_answer"]))
    toward = acts * (gradient @ finished.kind.rows(dictionary).T)
    chosen = {
        "truth": (_by_f1(acts, values, n_values), values),
        "activation": (_mean_by_value(acts, values, n_values).argmax(1), values),
        "attribution": (_mean_by_value(toward, values, n_values).argmax(1), values),
        "null": (_by_f1(acts, null, n_values), null),
    }
    resid = states_of(jnp.asarray(inputs["tokens"]))
    state, old, new = resid[:, pos], jnp.asarray(inputs["old"]), jnp.asarray(inputs["new"])
    edited = [
        _with_features(finished, dictionary, state, feature, _sizes(acts, feature, of), old, new)
        for feature, of in chosen.values()
    ]
    means = class_means(fit[:, pos], values, jnp.ones(len(values)), n_values)
    edited.append(swap(state, means, old, new))

    def answer(states: Array) -> Array:
        return answer_logits(model, params, resid.at[:, pos].set(states), layer).argmax(-1)

    said = jax.lax.map(answer, jnp.stack(edited))
    # What is said anyway has not moved, whatever it is.
    unchanged = said == answer(state)[None]
    moved = (said == jnp.asarray(inputs["expected"])[None]) & ~unchanged
    outcome = jnp.stack([moved, unchanged, ~(moved | unchanged)], axis=1)
    return {"outcome": outcome, "feature": jnp.stack([feature for feature, _ in chosen.values()])}


def all_of_pair(
    outcome: Bool[np.ndarray, "*rule case"], pair: Int[np.ndarray, "case"]
) -> Bool[np.ndarray, "*rule pair"]:
    """Whether all of a pair's relations have an outcome."""
    return np.stack([outcome[..., pair == one].all(-1) for one in np.unique(pair)], axis=-1)


def _gradient(
    model: Transformer, params: Params, resid: Array, layer: int, pos: int, answer: Array
) -> Float[Array, "case d_model"]:
    """Of the right answer's logit, by the state."""

    def logits(states: Array) -> Array:
        found = answer_logits(model, params, resid.at[:, pos].set(states), layer)
        return jnp.take_along_axis(found, answer[:, None], axis=1).sum()

    gradient: Array = jax.grad(logits)(resid[:, pos])
    return gradient


def _by_f1(acts: Array, values: Array, n_values: int) -> Int[Array, "value"]:
    return match(acts, values, jnp.zeros(len(values), bool), n_values).feature


def _mean_by_value(
    numbers: Float[Array, "case feature"], values: Int[Array, "case"], n_values: int
) -> Float[Array, "value feature"]:
    member = jax.nn.one_hot(values, n_values)
    return (member.T @ numbers) / jnp.maximum(member.sum(0), 1)[:, None]


def _sizes(
    acts: Float[Array, "case feature"], feature: Int[Array, "value"], values: Int[Array, "case"]
) -> Float[Array, "value"]:
    """Mean activation of each value's feature where the value is and the feature is active."""
    own = acts[jnp.arange(len(values)), feature[values]]
    member = jax.nn.one_hot(values, len(feature)) * (own > 0)[:, None]
    return (member * own[:, None]).sum(0) / jnp.maximum(member.sum(0), 1)


def _with_features(
    finished: Finished,
    dictionary: Params,
    state: Float[Array, "case d_model"],
    feature: Int[Array, "value"],
    size: Float[Array, "value"],
    old: Int[Array, "case"],
    new: Int[Array, "case"],
) -> Float[Array, "case d_model"]:
    """States in which the old value's feature is 0 and the new one's has its size."""
    acts, rows = finished.encode(dictionary, state), finished.kind.rows(dictionary)
    case = jnp.arange(len(state))
    wanted = acts.at[case, feature[old]].set(0.0).at[case, feature[new]].set(size[new])
    return state + (wanted - acts) @ rows
