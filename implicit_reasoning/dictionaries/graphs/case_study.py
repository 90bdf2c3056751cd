"""A blind case study as a procedure: guess from weights alone what every feature stands for.

The published case studies ask a person what a feature means, and show only weights: de-embeddings
and connections. Here a rule reads the same weights, and truth scores the guess. No activation is
read before the guess.

For a feature at a position, every value of every variable that is known there gets three scores:

1. the de-embedding of the token that has the value, directly if the token is at the position, and
   otherwise through the head with the largest score. For the bridge e2, it is the mean over facts
   (e1, r1) that lead to the value of the sum of the scores of e1 and r1;
2. the sum over features of earlier layers of their scores of the value at the same position,
   weighted by the connections from these features;
3. for the answer, the logit that the feature writes.

The mean of each score over the values of a variable is subtracted, and each kind of score is
divided by its deviation over all values. The guess is the value with the largest score. A guess is
scored by F1 of "the feature is active" on facts that the rule has not read. The null shuffles the
values over the prefixes.

    found = measure_guesses(run, load(run, "transcoder"))
    found.named.sel(pos="r1")

Source: Dunefsky, Chlenski and Nanda 2024, arXiv 2406.11944 (blind case studies).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.dictionaries.graphs.bridge import MIN_F1, f1_of_values
from implicit_reasoning.dictionaries.graphs.connections import (
    connections,
    de_embeddings,
    logit_vectors,
    reading_vectors,
    through_heads,
)
from implicit_reasoning.dictionaries.graphs.label_prompts import any_label_prompts
from implicit_reasoning.dictionaries.graphs.labels import (
    TrueValues,
    label_features,
    true_values,
)
from implicit_reasoning.dictionaries.graphs.measure import group_coords, over_groups
from implicit_reasoning.dictionaries.replacement import Replacement, Weights, local_run
from implicit_reasoning.dictionaries.store import Dictionaries
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runtime.machine import highest_precision

Table = Float[Array, "variable value feature"]
MIN_PREFIXES = 3
"""A feature counts if it is active at this many of the prefixes on which guesses are scored."""

_SEED = 0


class Guesses(NamedTuple):
    """The value that each feature is guessed to stand for, at each position.

    Attributes:
      variable: the index of the variable among `TrueValues.names`.
      value: the number of the value.
      score: the standardized score of the guess.
    """

    variable: Int[Array, "pos layer feature"]
    value: Int[Array, "pos layer feature"]
    score: Float[Array, "pos layer feature"]


@highest_precision
def guess_features(
    model: Transformer,
    model_params: Params,
    weights: Weights,
    true: TrueValues,
    positions: Sequence[str],
    read: Bool[np.ndarray, " state"],
) -> Guesses:
    """Guess from weights alone what every feature stands for at every position.

    Args:
      model: the model.
      model_params: the parameters of one model.
      weights: the weights of the transcoders.
      true: the values of the variables of some chains. Only the facts (e1, r1) -> e2 are read.
      positions: the names of the positions of the prompts.
      read: the chains whose facts may be read.
    """
    readers = reading_vectors(model, model_params, weights)
    by_pos = []
    for pos in range(len(positions)):
        known = jnp.asarray(true.known[:, pos])
        exists = _existing(true) & known[:, None]
        layers: list[Table] = []
        for layer, vectors in enumerate(readers):
            moved = through_heads(model, model_params, vectors)[: layer + 1]
            tokens = (
                de_embeddings(model_params, vectors),
                de_embeddings(model_params, moved).max((0, 1)),
            )
            tables = [_from_tokens(tokens, true, positions, pos, read)]
            if layer:
                tables.append(_from_features(weights, vectors, layers))
            logits = connections(
                weights, logit_vectors(model, model_params), layer, before=len(readers)
            )
            tables.append(_from_logits(logits.T, true))
            layers.append(jnp.stack([_standardized(table, exists) for table in tables]).max(0))
        by_pos.append([_best(scores, exists) for scores in layers])
    stacked = [[jnp.stack(parts) for parts in zip(*layers, strict=True)] for layers in by_pos]
    return Guesses(*(jnp.stack(parts) for parts in zip(*stacked, strict=True)))


def _existing(true: TrueValues) -> Bool[Array, "variable value"]:
    """Return which values occur."""
    numbers = np.arange(true.n_values)
    return jnp.asarray(np.stack([np.isin(numbers, values) for values in true.values]))


def _rows(table: Float[Array, "token feature"], true: TrueValues, variable: int) -> Array:
    """Return the rows of the tokens of the values of a variable, [value, feature]."""
    last = len(table) - 1
    return table[np.minimum(true.first_token[variable] + np.arange(true.n_values), last)]


def _from_tokens(
    tokens: tuple[Array, Array],
    true: TrueValues,
    positions: Sequence[str],
    pos: int,
    read: Bool[np.ndarray, " state"],
) -> Table:
    """Return the scores from de-embeddings: of the own token, and of earlier ones through heads."""
    own, earlier = tokens
    of_token: dict[str, Array] = {}
    for number, name in enumerate(true.names):
        if name in positions:
            table = own if positions.index(name) == pos else earlier
            of_token[name] = _rows(table, true, number)
    found = []
    for number, name in enumerate(true.names):
        if name in of_token:
            found.append(of_token[name])
        elif name == "e2":
            found.append(_from_facts(of_token, true, number, read))
        else:
            found.append(jnp.zeros_like(found[0]))
    return jnp.stack(found)


def _from_facts(
    of_token: dict[str, Array], true: TrueValues, bridge: int, read: Bool[np.ndarray, " state"]
) -> Float[Array, "value feature"]:
    """Return the mean score of the facts that lead to each bridge."""
    parts = [true.values[true.names.index(name)][read] for name in ("e1", "r1")]
    tails = true.values[bridge][read]
    facts = np.unique(np.stack([*parts, tails], 1), axis=0)
    score = of_token["e1"][facts[:, 0]] + of_token["r1"][facts[:, 1]]
    leads = (facts[:, 2][None] == np.arange(true.n_values)[:, None]).astype(np.float32)
    share = leads / np.maximum(leads.sum(1, keepdims=True), 1)
    # A bridge without a fact gets the mean over all facts.
    return jnp.where(leads.any(1)[:, None], jnp.asarray(share) @ score, score.mean(0))


def _from_features(
    weights: Weights, vectors: Float[Array, "d_model feature"], layers: Sequence[Table]
) -> Table:
    """Return the scores of earlier features, weighted by the connections from them."""
    parts = [
        jnp.einsum("vnf,fg->vng", scores, connections(weights, vectors, source, before=len(layers)))
        for source, scores in enumerate(layers)
    ]
    return jnp.stack(parts).sum(0)


def _from_logits(logits: Float[Array, "d_vocab feature"], true: TrueValues) -> Table:
    """Return the logits that features write, for the answer; 0 for all other variables."""
    return jnp.stack(
        [_rows(logits, true, number) * (name == "answer") for number, name in enumerate(true.names)]
    )


def _standardized(table: Table, exists: Bool[Array, "variable value"]) -> Table:
    """Subtract the mean over the values of each variable, and divide by the deviation over all."""
    counts = exists[..., None]
    n = jnp.maximum(exists.sum(1), 1)[:, None, None]
    centred = table - jnp.where(counts, table, 0).sum(1, keepdims=True) / n
    # Variables share the deviation. Otherwise the small scores of a head that does nothing would
    # count as much as large ones.
    deviation = jnp.sqrt(jnp.where(counts, centred**2, 0).sum((0, 1)) / exists.sum())
    return centred / jnp.where(deviation > 0, deviation, 1)[None, None]


def _best(scores: Table, exists: Bool[Array, "variable value"]) -> tuple[Array, Array, Array]:
    """Return the variable, the value and the score of the best guess of each feature."""
    flat = jnp.where(exists[..., None], scores, -jnp.inf).reshape(-1, scores.shape[-1])
    variable, value = jnp.unravel_index(flat.argmax(0), exists.shape)
    return variable, value, flat.max(0)


class Judged(NamedTuple):
    """How well guesses predict activity.

    Attributes:
      f1: F1 of "the feature is active" as a predictor of the guessed value.
      null: the same for values that are shuffled over the prefixes.
      fires: the number of prefixes at which the feature is active. F1 is 0 if it never is.
    """

    f1: Float[Array, "pos layer feature"]
    null: Float[Array, "pos layer feature"]
    fires: Float[Array, "pos layer feature"]


def judge_guesses(
    guesses: Guesses,
    acts: Float[Array, "state pos layer feature"],
    true: TrueValues,
    counted: Bool[np.ndarray, "state pos"],
    random: np.random.Generator,
) -> Judged:
    """Score guesses on prefixes.

    Args:
      guesses: the guesses.
      acts: the activations of all features for some prompts.
      true: the values of the variables of these prompts.
      counted: whether the state at each position counts: it is the first of its prefix, and the
        guess did not read its fact.
      random: shuffles the values for the null.
    """
    active = (acts > 0).astype(jnp.float32)
    order = random.permutation(len(acts))
    found = {}
    for name, values in {"f1": true.values, "null": true.values[:, order]}.items():
        by_variable = []
        for number in range(len(true.names)):
            one_hot = (values[number][:, None] == np.arange(true.n_values)).astype(np.float32)
            scores = f1_of_values(active, jnp.asarray(one_hot), jnp.asarray(counted))
            of_guess = jnp.take_along_axis(scores, guesses.value[..., None], -1)[..., 0]
            by_variable.append(of_guess)
        of_values = jnp.stack(by_variable)
        found[name] = jnp.take_along_axis(of_values, guesses.variable[None], 0)[0]
    fires = jnp.einsum("splf,sp->plf", active, jnp.asarray(counted, jnp.float32))
    return Judged(found["f1"], found["null"], fires)


def measure_guesses(run: Subject, made: Dictionaries) -> xr.Dataset:
    """Guess what the features of all replacement models of a set stand for, and score the guesses.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.

    Returns:
      A dataset with the dimensions `group` (replacement models, with the coordinates `step`,
      `sparsity` and `seed`), `pos` and `layer`. Of the features that are active at `MIN_PREFIXES`
      prefixes or more, it has the share whose guess has an F1 of at least .5 (`named`), the same
      with shuffled values (`null`), the share that stands for any value if activity may choose it
      (`labeled`, as in `labels.py`), and the number of these features (`n_features`).

    Raises:
      InputError: the set has no transcoders of all MLPs.
      NotApplicable: the task has no chains.
    """
    dataset = run.dataset
    prompts = any_label_prompts(dataset)
    true = true_values(dataset, prompts.rows)
    counted = prompts.distinct & prompts.second[:, None]

    def measure(
        model: Transformer, params: Params, replacement: Replacement, own: Sequence[Params]
    ) -> dict[str, Array]:
        acts = local_run(model, params, replacement, own, jnp.asarray(prompts.tokens)).acts
        guesses = guess_features(
            model, params, replacement.weights(own), true, dataset.positions, ~prompts.second
        )
        judged = judge_guesses(guesses, acts, true, counted, np.random.default_rng(_SEED))
        labels = label_features(acts, true, prompts)
        alive = judged.fires >= MIN_PREFIXES
        n = alive.sum(-1)
        found = {
            "named": judged.f1 >= MIN_F1,
            "null": judged.null >= MIN_F1,
            "labeled": labels.variable >= 0,
        }
        shares = {k: (v & alive).sum(-1) / jnp.maximum(n, 1) for k, v in found.items()}
        return shares | {"n_features": n}

    found, groups = over_groups(run, made, measure)
    dims = "group", "pos", "layer"
    return xr.Dataset(
        {name: (dims, values) for name, values in found.items()},
        {"pos": list(dataset.positions), **group_coords(groups)},
    )
