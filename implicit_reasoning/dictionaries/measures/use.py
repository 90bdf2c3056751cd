"""Measure: does the model go on with what a feature says? Bridges' features are changed.

Where a prompt (e1, r1, r2) first knows its bridge e, at the residual that a dictionary writes to,
features are changed, and all that the dictionary does not write stays:

- `swap`: e's feature is set to 0, another bridge's, e', to what it is where e' is the bridge;
- `clamp`: e' is set, e stays;
- `ablate`: e is set to 0;
- `ablate another`: e', which should not be there, is set to 0: a side effect, if anything changes.

If the features are what the model uses, then after a swap the answer is where r2 leads from e' -
for *every* relation of e', not for one. Features are chosen by three rules, on prompts with other
first facts:

- `truth`: active most nearly where the bridge is (F1, see `matching.py`);
- `activation`: most active, on average, where the bridge is;
- `attribution`: most activation times gradient of the right answer's logit, where the bridge is;

and, as a null, by `truth` for bridges dealt out anew. Beside them `class means` are changed (their
difference from the mean of all states), which no dictionary is needed for.

Source of the test: that a concept's vector should move all that follows from it (Makelov, Lange and
Nanda 2024; Hernandez et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.questions import tokens_of
from implicit_reasoning.analysis.rest import answer_logits
from implicit_reasoning.analysis.states import prompts
from implicit_reasoning.analysis.variables.counterfactuals import follow, rows_to_fit
from implicit_reasoning.analysis.variables.subspaces import class_means
from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.bridges import bridge_position, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import Half, best_features
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

RULES = ("truth", "activation", "attribution", "null", "class means")
CHANGES = ("swap", "clamp", "ablate", "ablate another")
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
    old: Int[np.ndarray, " case"]
    new: Int[np.ndarray, " case"]
    expected: Int[np.ndarray, " case"]
    clean: Int[np.ndarray, " case"]
    pair: Int[np.ndarray, " case"]


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


@dataclass(frozen=True, eq=False)
class Use(Measure):
    """Shares of answers that follow, stay, or do neither.

    Attributes:
      fit_tokens: int32 [prompt, pos], to choose features on.
      fit_values, fit_null: int32 [prompt], their bridges, and dealt out anew.
      fit_answer: int32 [prompt].
      swaps: what is changed.
      pos: number of the position where the bridge is first known.
      n_values: entities.
    """

    fit_tokens: Int[np.ndarray, "prompt pos"]
    fit_values: Int[np.ndarray, " prompt"]
    fit_null: Int[np.ndarray, " prompt"]
    fit_answer: Int[np.ndarray, " prompt"]
    swaps: Swaps
    pos: int
    n_values: int

    name: ClassVar[str] = "use"
    needs_model: ClassVar[bool] = True

    @classmethod
    def choose(cls, asked: Asked) -> Measure | None:
        """Of tasks of two hops, dictionaries that write one residual, or into one."""
        model, dataset = asked.run.model, asked.run.dataset
        written = {_residual(member.write) for member in asked.members}
        if dataset.hops != 2 or not written <= set(model.resid_sites[1:]):
            return None
        return None if choose_bridges(asked) is None else cls.of(dataset)

    @classmethod
    def of(cls, dataset: Dataset) -> Use:
        """Its prompts: those with first facts of one half to choose features on, others to swap."""
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

    def shared(self, subject: Subject) -> dict[str, Any]:
        """States to choose features on and to change; the answers' gradient; class means."""
        layer = _layer_of(subject)
        if layer == subject.model.spec.depth:
            return {}  # after the last block nothing moves from one position to another
        fit_x, fit = self._states(subject, layer, self.fit_tokens)
        x, resid = self._states(subject, layer, self.swaps.tokens)
        gradient = self._gradient(subject, layer, fit)
        values = jnp.asarray(self.fit_values)
        means = class_means(fit[:, self.pos], values, jnp.ones(len(values)), self.n_values)
        clean = self._answers(subject, layer, resid, resid[:, self.pos])
        away = means.mean - fit[:, self.pos].mean(0)[None]
        away = jnp.where(means.size[:, None] > 0, away, 0.0)
        with_means = self._changed_means(resid[:, self.pos], away)
        said = self._outcomes(subject, layer, resid, clean, with_means)
        found = {"fit_x": fit_x, "gradient": gradient, "x": x, "resid": resid, "clean": clean}
        return {**found, "class means": said}

    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """`outcome` [rule, change, outcome, case], nan after the last block."""
        layer = _layer_of(subject)
        if layer == subject.model.spec.depth:
            shape = len(RULES), len(CHANGES), len(OUTCOMES), len(self.swaps.pair)
            return {"outcome": jnp.full(shape, jnp.nan)}
        acts = coded.finished.encode(coded.params, shared["fit_x"])
        toward = acts * (shared["gradient"] @ coded.rows.T)
        values, null = jnp.asarray(self.fit_values), jnp.asarray(self.fit_null)
        mean = _mean_by_value(acts, values, self.n_values)
        chosen = {
            "truth": (self._by_f1(acts, values), values),
            "activation": (mean.argmax(1), values),
            "attribution": (_mean_by_value(toward, values, self.n_values).argmax(1), values),
            "null": (self._by_f1(acts, null), null),
        }
        here = coded.finished.encode(coded.params, shared["x"])
        state = shared["resid"][:, self.pos]
        found = []
        for feature, of in chosen.values():
            size = _sizes(acts, feature, of)
            changed = self._changed_features(here, coded.rows, state, feature, size)
            found.append(self._outcomes(subject, layer, shared["resid"], shared["clean"], changed))
        return {"outcome": jnp.stack([*found, shared["class means"]]).astype(jnp.float32)}

    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """Shares, intervals by bridge; and of pairs all of whose answers move by a swap."""
        outcome, pair = outputs["outcome"], self.swaps.pair
        all_of = all_of_pair(outcome[:, :, 0, 0], pair)
        dims = ("member", "rule", "change", "outcome")
        made: dict[str, Any] = {"use_all": (dims[:2], all_of.mean(-1))}
        for end, values in with_ends(outcome, self.swaps.old).items():
            made[f"use{end}"] = dims, values
        made |= {"use_pairs": ((), all_of.shape[-1]), "use_cases": ((), len(pair))}
        return made, {"rule": list(RULES), "change": list(CHANGES), "outcome": list(OUTCOMES)}

    def _states(self, subject: Subject, layer: int, tokens: np.ndarray) -> tuple[Array, Array]:
        """What a dictionary reads at the position, and the residual at all of them."""
        resid, read = subject.model.resid_sites[layer], subject.sites.read
        sites = (resid, *read)
        _, found = subject.model.forward(subject.params, jnp.asarray(tokens), sites=sites)
        x = jnp.concatenate([found[site][:, self.pos] for site in read], axis=-1)
        return x, found[resid]

    def _answers(self, subject: Subject, layer: int, resid: Array, state: Array) -> Array:
        changed = resid.at[:, self.pos].set(state)
        return answer_logits(subject.model, subject.params, changed, layer).argmax(-1)

    def _gradient(self, subject: Subject, layer: int, resid: Array) -> Array:
        """Of the right answer's logit, by the state."""
        answer = jnp.asarray(self.fit_answer)

        def logits(state: Array) -> Array:
            changed = resid.at[:, self.pos].set(state)
            found = answer_logits(subject.model, subject.params, changed, layer)
            return jnp.take_along_axis(found, answer[:, None], axis=1).sum()

        gradient: Array = jax.grad(logits)(resid[:, self.pos])
        return gradient

    def _by_f1(self, acts: Array, values: Array) -> Int[Array, " value"]:
        return best_features(Half(acts, values), self.n_values)

    def _changed_features(
        self,
        acts: Float[Array, "case d_sae"],
        rows: Float[Array, "d_sae width"],
        state: Float[Array, "case width"],
        feature: Int[Array, " value"],
        size: Float[Array, " value"],
    ) -> Float[Array, "change case width"]:
        """States after each change of features."""
        case = jnp.arange(len(state))
        old, new = feature[self.swaps.old], feature[self.swaps.new]
        less_old = -acts[case, old][:, None] * rows[old]
        less_new = -acts[case, new][:, None] * rows[new]
        more_new = size[self.swaps.new][:, None] * rows[new] + less_new
        # Where one feature stands for both, a swap sets it.
        both = jnp.where((old == new)[:, None], more_new, less_old + more_new)
        return state[None] + jnp.stack([both, more_new, less_old, less_new])

    def _changed_means(
        self, state: Float[Array, "case width"], away: Float[Array, "value width"]
    ) -> Float[Array, "change case width"]:
        """The same with what a bridge's mean has beyond the mean of all."""
        old, new = away[self.swaps.old], away[self.swaps.new]
        return state[None] + jnp.stack([new - old, new, -old, -new])

    def _outcomes(
        self, subject: Subject, layer: int, resid: Array, clean: Array, changed: Array
    ) -> Bool[Array, "change outcome case"]:
        said = jax.lax.map(lambda state: self._answers(subject, layer, resid, state), changed)
        # What is said anyway has not moved, whatever it is.
        unchanged = said == clean[None]
        moved = (said == jnp.asarray(self.swaps.expected)[None]) & ~unchanged
        return jnp.stack([moved, unchanged, ~(moved | unchanged)], axis=1)


def with_ends(
    outcome: Float[np.ndarray, "member *any case"], clusters: Int[np.ndarray, " case"]
) -> dict[str, np.ndarray]:
    """Means, and ends of 95% clustered intervals; nan for members that have no outcome."""
    there = np.isfinite(outcome).reshape(len(outcome), -1).all(1)
    found = {end: np.full(outcome.shape[:-1], np.nan, np.float32) for end in ("", "_low", "_high")}
    if there.any():
        interval = ClusterIntervals(clusters).interval(outcome[there])
        for end, values in {
            "": interval.mean,
            "_low": interval.low,
            "_high": interval.high,
        }.items():
            found[end][there] = values
    return found


def _layer_of(subject: Subject) -> int:
    """Blocks before the residual that is changed."""
    return subject.model.resid_sites.index(str(_residual(subject.sites.write)))


def _residual(write: Sequence[str]) -> str | None:
    """The residual that is written, or written into; None where several sites are."""
    return write[0].replace("hook_mlp_out", "hook_resid_post") if len(write) == 1 else None


def all_of_pair(
    outcome: Float[np.ndarray, "*rule case"], pair: Int[np.ndarray, " case"]
) -> Float[np.ndarray, "*rule pair"]:
    """1 where all of a pair's relations have an outcome, else 0; nan stays."""
    return np.stack([outcome[..., pair == one].min(-1) for one in np.unique(pair)], axis=-1)


def _mean_by_value(
    numbers: Float[Array, "case feature"], values: Int[Array, " case"], n_values: int
) -> Float[Array, "value feature"]:
    member = jax.nn.one_hot(values, n_values)
    return (member.T @ numbers) / jnp.maximum(member.sum(0), 1)[:, None]


def _sizes(
    acts: Float[Array, "case feature"], feature: Int[Array, " value"], values: Int[Array, " case"]
) -> Float[Array, " value"]:
    """Mean activation of each value's feature where the value is and the feature is active."""
    own = acts[jnp.arange(len(values)), feature[values]]
    member = jax.nn.one_hot(values, len(feature)) * (own > 0)[:, None]
    return (member * own[:, None]).sum(0) / jnp.maximum(member.sum(0), 1)
