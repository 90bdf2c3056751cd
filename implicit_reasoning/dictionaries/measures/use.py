"""Measure whether answers change as predicted when features of bridges are changed.

For a prompt (e1, r1, r2), the prefix (e1, r1) determines the bridge e. The instrument changes the
features of e and of a different bridge e'. The changes apply to the dictionary's output in the
residual stream, at the position of r1. The dictionary's reconstruction error is kept. The changes
are:

- `swap`: the feature of e is set to 0. The feature of e' is set to the mean positive activation of
  this feature on prompts with the bridge e';
- `clamp`: the feature of e' is set to the same activation as in `swap`, and the feature of e does
  not change;
- `ablate`: the feature of e is set to 0;
- `ablate another`: the feature of e' is set to 0. The feature of e' should be inactive, so any
  effect is a side effect.

If the model uses the features, the answer after a swap is the tail of the fact (e', r2), for
*every* relation r2 of e'. Features are chosen on prompts that share no first fact with the changed
prompts. There are three rules for choosing the feature of a bridge:

- `truth`: the feature whose activity predicts the bridge with the highest F1;
- `activation`: the feature with the highest mean activation on prompts with the bridge;
- `attribution`: the feature with the highest mean attribution on prompts with the bridge. The
  attribution is the activation times the derivative of the right answer's logit with respect to the
  activation.

The null control `null` applies the rule `truth` to bridges that are permuted among the prompts. The
control `class means` needs no dictionary. In this control, the class mean of a bridge minus the
mean of all states replaces the output of the bridge's feature.

Sources: Makelov, Lange and Nanda 2024; Hernandez et al. 2024. Both papers argue that an edit of a
concept should change everything that follows from the concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples, NotApplicable
from implicit_reasoning.analysis.queries import prompt_tokens
from implicit_reasoning.analysis.states import prompts
from implicit_reasoning.analysis.suffix import answer_after_patch, logits_from_layer
from implicit_reasoning.analysis.variables.counterfactuals import follow_relations, rows_to_fit
from implicit_reasoning.analysis.variables.subspaces import class_means
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
)
from implicit_reasoning.dictionaries.measures.bridges import bridge_position, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import Half, best_features
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

RULES = ("truth", "activation", "attribution", "null", "class means")
CHANGES = ("swap", "clamp", "ablate", "ablate another")
OUTCOMES = ("moved", "unchanged", "other")
_PAIRS = 100
_SEED = 0


class Swaps(NamedTuple):
    """Prompts in which the feature of a bridge is replaced by the feature of a new bridge.

    A case is a prompt (e1, r1, r2) with a new bridge. A pair contains the cases with the same (e1,
    r1) and the same new bridge. There is a case for a relation r2 if the new bridge has an answer
    that differs from the old bridge's answer.

    Attributes:
      tokens: int32 [case, pos], the prompt of each case.
      old: int32 [case], entity number of the old bridge.
      new: int32 [case], entity number of the new bridge.
      expected: int32 [case], right answer for the new bridge.
      clean: int32 [case], right answer for the old bridge, or -1 if the old bridge has no fact with
        r2.
      pair: int [case], number of the pair that contains the case.
    """

    tokens: Int[np.ndarray, "case pos"]
    old: Int[np.ndarray, " case"]
    new: Int[np.ndarray, " case"]
    expected: Int[np.ndarray, " case"]
    clean: Int[np.ndarray, " case"]
    pair: Int[np.ndarray, " case"]


def choose_swaps(dataset: Dataset) -> Swaps:
    """Choose prefixes (e1, r1) of two-hop chains, and a new bridge for each prefix.

    Features are chosen on the rows that `rows_to_fit` returns. The prefixes are first facts of
    training chains. First facts in these rows are excluded. The new bridges are bridges that occur
    in these rows. Expected answers use only facts that training uses at the second hop, because a
    model can fail on facts that were never trained at this hop. The function chooses at most
    `_PAIRS` prefixes.
    """
    world, truth = world_of(dataset), dataset.truth
    random, fitted = np.random.default_rng(_SEED), rows_to_fit(dataset)
    chains = np.flatnonzero((truth["fact2"] >= 0)[: dataset.n_train])
    facts, rows = np.unique(truth["fact1"][chains], return_index=True)
    rows = chains[rows[~np.isin(facts, truth["fact1"][fitted])]]
    rows = random.permutation(rows)[:_PAIRS]
    bridges = np.unique(truth["e2"][fitted])
    old = truth["e2"][rows]
    shift = random.integers(1, len(bridges), len(rows))
    # A bridge that is not in `bridges` gets the place at which it would be inserted.
    place = np.searchsorted(bridges, old)
    new = bridges[(place + shift) % len(bridges)]
    new = np.where(new == old, bridges[(place + shift + 1) % len(bridges)], new)
    relations = np.broadcast_to(np.arange(world.n_relations), (len(rows), world.n_relations))
    start = [np.broadcast_to(value[:, None], relations.shape) for value in (old, new)]
    clean, expected = (follow_relations(world, [relations, relations], one, 1) for one in start)
    pair, r2 = np.nonzero((expected >= 0) & (expected != clean))
    parts = np.stack([truth["e1"][rows[pair]], truth["r1"][rows[pair]], r2], axis=1)
    return Swaps(
        prompt_tokens(dataset, parts.astype(np.int32)),
        old[pair].astype(np.int32),
        new[pair].astype(np.int32),
        expected[pair, r2].astype(np.int32),
        clean[pair, r2].astype(np.int32),
        pair,
    )


class SwapPrompts(NamedTuple):
    """The prompts on which features are chosen, and the prompts whose states are changed.

    Attributes:
      fit_tokens: int32 [prompt, pos], the prompts on which features are chosen.
      fit_values: int32 [prompt], the bridges of the prompts `fit_tokens`.
      fit_null: int32 [prompt], a random permutation of `fit_values` for the null control.
      fit_answer: int32 [prompt], the right answers to the prompts `fit_tokens`.
      swaps: the prompts whose states are changed.
      pos: index of the first position at which the prefix determines the bridge.
      n_values: number of entities in the world.
    """

    fit_tokens: Int[np.ndarray, "prompt pos"]
    fit_values: Int[np.ndarray, " prompt"]
    fit_null: Int[np.ndarray, " prompt"]
    fit_answer: Int[np.ndarray, " prompt"]
    swaps: Swaps
    pos: int
    n_values: int

    @classmethod
    def choose(cls, dataset: Dataset) -> SwapPrompts:
        """Return the prompts on which features are chosen, and prompts whose states are changed.

        The two kinds of prompts share no first facts.
        """
        fitted = rows_to_fit(dataset)
        e2 = dataset.truth["e2"][fitted].astype(np.int32)
        return cls(
            prompts(dataset, fitted),
            e2,
            np.random.default_rng(_SEED).permutation(e2),
            dataset.truth["answer"][fitted].astype(np.int32),
            choose_swaps(dataset),
            bridge_position(dataset),
            world_of(dataset).n_entities,
        )


class Use(DictionaryInstrument):
    """Changes the features of bridges and measures the model's answers.

    The outcome of a change is `moved`, `unchanged` or `other`. `moved` means the right answer for
    the new bridge. `unchanged` means the same answer as without the change. `other` means any
    remaining answer.
    """

    name = "use"
    definition = (
        "use: the share of answers that become the other bridge's (moved), stay, or become "
        "another (other) when features of bridges are changed where the bridge is first known: "
        "swap, clamp, ablate, ablate another. use_all: of pairs of a prefix and another bridge, "
        "the share whose answers move for all relations by a swap. Features are chosen on other "
        "first facts, by truth, activation or attribution. Nulls: features of bridges that are "
        "permuted among the prompts, and class means, which need no dictionary. nan after the "
        "last block."
    )
    outputs = {
        "use": ("rule", "change", "outcome", EXAMPLE),
        "use_all": ("rule", EXAMPLE),
        "first_of_pair": (EXAMPLE,),
    }
    given = {"use_all": "first_of_pair"}
    nulls = {
        "permuted bridges": {"rule": "null"},
        "class means": {"rule": "class means"},
    }
    needs_model = True

    def examples(self, source: ExampleSource) -> Examples:
        """Choose the prompts on which features are chosen and changed.

        Raises:
          NotApplicable: the chains do not have two hops, or a dictionary does not write to exactly
            one site that is in the residual stream or is added to the residual stream.
        """
        model, dataset = source.run.model, source.run.dataset
        written = {_residual(member.write) for member in source.members}
        choose_bridges(source)
        if dataset.hops != 2 or not written <= set(model.resid_sites[1:]):
            raise NotApplicable(
                "this instrument needs chains of two hops, and dictionaries that write to exactly "
                "one site, which must be in the residual stream or be added to the residual stream"
            )
        return self.of(SwapPrompts.choose(dataset))

    @staticmethod
    def of(inputs: SwapPrompts) -> Examples:
        """Return one example per case, clustered by the replaced bridge.

        A case is a prompt with a new bridge.
        """
        swaps = inputs.swaps
        coords = {"rule": RULES, "change": CHANGES, "outcome": OUTCOMES}
        return Examples(inputs, ("swaps",), np.zeros(len(swaps.pair), int), swaps.old, None, coords)

    def shared(self, subject: DictionarySubject, inputs: SwapPrompts) -> dict[str, Any]:
        """Compute the values that do not depend on a dictionary.

        The values are the states on which features are chosen, the states that are changed, the
        gradient of the right answer's logit, and the outcomes for the control `class means`.
        """
        layer = _layer_of(subject)
        if layer == subject.model.spec.depth:
            return {}  # after the last block no attention moves information between positions
        fit_x, fit = _states(inputs, subject, layer, inputs.fit_tokens)
        x, resid = _states(inputs, subject, layer, inputs.swaps.tokens)
        gradient = _gradient(inputs, subject, layer, fit)
        values = jnp.asarray(inputs.fit_values)
        means = class_means(fit[:, inputs.pos], values, jnp.ones(len(values)), inputs.n_values)
        clean = logits_from_layer(subject.model, subject.params, resid, layer).argmax(-1)
        away = means.mean - fit[:, inputs.pos].mean(0)[None]
        away = jnp.where(means.size[:, None] > 0, away, 0.0)
        with_means = _changed_means(inputs, resid[:, inputs.pos], away)
        said = _outcomes(inputs, subject, layer, resid, clean, with_means)
        found = {"fit_x": fit_x, "gradient": gradient, "x": x, "resid": resid, "clean": clean}
        return {**found, "class means": said}

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: SwapPrompts,
    ) -> dict[str, Array]:
        """Compute the outcomes of each case.

        The outcomes are nan for a site after the last block.
        """
        swaps, layer = inputs.swaps, _layer_of(subject)
        if layer == subject.model.spec.depth:
            shape = len(RULES), len(CHANGES), len(OUTCOMES), len(swaps.pair)
            outcome = jnp.full(shape, jnp.nan)
        else:
            outcome = _outcome_of_features(subject, shared, encoded, inputs)
        first, all_of = all_of_pair(outcome[:, 0, 0], swaps.pair)  # swap, moved
        return {"use": outcome, "use_all": all_of, "first_of_pair": jnp.asarray(first)}

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add the number of cases as `use_cases` and the number of pairs as `use_pairs`."""
        pair = examples.inputs.swaps.pair
        return result.assign(use_cases=len(pair), use_pairs=len(np.unique(pair)))


def _outcome_of_features(
    subject: DictionarySubject,
    shared: Mapping[str, Any],
    encoded: EncodedStates,
    inputs: SwapPrompts,
) -> Float[Array, "rule change outcome case"]:
    layer = _layer_of(subject)
    acts = encoded.dictionary.encode(encoded.params, shared["fit_x"])
    toward = acts * (shared["gradient"] @ encoded.rows.T)
    values, null = jnp.asarray(inputs.fit_values), jnp.asarray(inputs.fit_null)
    mean, mean_toward = (
        class_means(of, values, jnp.ones(len(values)), inputs.n_values).mean
        for of in (acts, toward)
    )
    chosen = {
        "truth": (best_features(Half(acts, values), inputs.n_values), values),
        "activation": (mean.argmax(1), values),
        "attribution": (mean_toward.argmax(1), values),
        "null": (best_features(Half(acts, null), inputs.n_values), null),
    }
    here = encoded.dictionary.encode(encoded.params, shared["x"])
    state = shared["resid"][:, inputs.pos]
    found = []
    for feature, of in chosen.values():
        size = _sizes(acts, feature, of)
        changed = _changed_features(inputs, here, encoded.rows, state, feature, size)
        found.append(_outcomes(inputs, subject, layer, shared["resid"], shared["clean"], changed))
    return jnp.stack([*found, shared["class means"]]).astype(jnp.float32)


def _states(
    inputs: SwapPrompts, subject: DictionarySubject, layer: int, tokens: np.ndarray
) -> tuple[Array, Array]:
    """Return the dictionary's input at the bridge's position, and the residual at all positions."""
    resid, read = subject.model.resid_sites[layer], subject.sites.read
    sites = (resid, *read)
    _, found = subject.model.forward(subject.params, jnp.asarray(tokens), sites=sites)
    x = jnp.concatenate([found[site][:, inputs.pos] for site in read], axis=-1)
    return x, found[resid]


def _gradient(inputs: SwapPrompts, subject: DictionarySubject, layer: int, resid: Array) -> Array:
    """Compute the gradient of the right answer's logit with respect to the state."""
    answer = jnp.asarray(inputs.fit_answer)

    def logits(state: Array) -> Array:
        changed = resid.at[:, inputs.pos].set(state)
        found = logits_from_layer(subject.model, subject.params, changed, layer)
        return jnp.take_along_axis(found, answer[:, None], axis=1).sum()

    gradient: Array = jax.grad(logits)(resid[:, inputs.pos])
    return gradient


def _changed_features(
    inputs: SwapPrompts,
    acts: Float[Array, "case d_sae"],
    rows: Float[Array, "d_sae width"],
    state: Float[Array, "case width"],
    feature: Int[Array, " value"],
    size: Float[Array, " value"],
) -> Float[Array, "change case width"]:
    """Return the states after each change of features."""
    case = jnp.arange(len(state))
    old, new = feature[inputs.swaps.old], feature[inputs.swaps.new]
    less_old = -acts[case, old][:, None] * rows[old]
    less_new = -acts[case, new][:, None] * rows[new]
    more_new = size[inputs.swaps.new][:, None] * rows[new] + less_new
    # If one feature stands for both bridges, the swap sets it to the new bridge's activation.
    both = jnp.where((old == new)[:, None], more_new, less_old + more_new)
    return state[None] + jnp.stack([both, more_new, less_old, less_new])


def _changed_means(
    inputs: SwapPrompts, state: Float[Array, "case width"], away: Float[Array, "value width"]
) -> Float[Array, "change case width"]:
    """Return the states after each change of class means.

    `away` has the class mean of each bridge minus the mean of all states.
    """
    old, new = away[inputs.swaps.old], away[inputs.swaps.new]
    return state[None] + jnp.stack([new - old, new, -old, -new])


def _outcomes(
    inputs: SwapPrompts,
    subject: DictionarySubject,
    layer: int,
    resid: Array,
    clean: Array,
    changed: Array,
) -> Bool[Array, "change outcome case"]:
    model, params, pos = subject.model, subject.params, inputs.pos
    said = jax.lax.map(
        lambda state: answer_after_patch(model, params, resid, layer, pos, state), changed
    )
    # An answer equal to the clean answer counts as unchanged, even if it is the expected answer.
    unchanged = said == clean[None]
    moved = (said == jnp.asarray(inputs.swaps.expected)[None]) & ~unchanged
    return jnp.stack([moved, unchanged, ~(moved | unchanged)], axis=1)


def _layer_of(subject: DictionarySubject) -> int:
    """Return the number of blocks before the residual that is changed."""
    return subject.model.resid_sites.index(str(_residual(subject.sites.write)))


def _residual(write: Sequence[str]) -> str | None:
    """Return the residual that includes the written site; None if several sites are written."""
    return write[0].replace("hook_mlp_out", "hook_resid_post") if len(write) == 1 else None


def all_of_pair(
    outcome: Float[Array, "*rule case"], pair: Int[np.ndarray, " case"]
) -> tuple[Bool[np.ndarray, " case"], Float[Array, "*rule case"]]:
    """Compute whether all cases of a pair have an outcome, and find each pair's first case.

    Args:
      outcome: [..., case], 1 if the case has the outcome, 0 if not, and nan if unknown.
      pair: int [case], the number of each case's pair.

    Returns:
      `(first, all_of)`. `first`, bool [case], is true for the first case of each pair. `all_of`,
      [..., case], is 1 if all cases of the case's pair have the outcome, nan if the outcome of one
      of these cases is nan, and 0 otherwise.
    """
    _, first, number = np.unique(pair, return_index=True, return_inverse=True)
    missing = jax.ops.segment_sum(jnp.moveaxis(1 - outcome, -1, 0), number, len(first))
    every = jnp.where(jnp.isnan(missing), jnp.nan, missing == 0)
    return np.isin(np.arange(len(pair)), first), jnp.moveaxis(every[number], 0, -1)


def _sizes(
    acts: Float[Array, "case feature"], feature: Int[Array, " value"], values: Int[Array, " case"]
) -> Float[Array, " value"]:
    """Return the mean positive activation of each value's feature on states with the value."""
    own = acts[jnp.arange(len(values)), feature[values]]
    member = jax.nn.one_hot(values, len(feature)) * (own > 0)[:, None]
    return (member * own[:, None]).sum(0) / jnp.maximum(member.sum(0), 1)
