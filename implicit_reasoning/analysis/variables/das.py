"""Distributed alignment search (DAS): learn a subspace that represents a variable.

A subspace is learned at every (layer, position) (see `alignment.py`). The subspace is scored on
pairs of a base query and a source query. The component of the base state in the subspace is
replaced by the component of the source state. The answer to the base should then depend on the
value of the variable in the source (cause), and on no other property of the source (isolation).
Training pairs and scored pairs have no first fact in common. For cause, training pairs and scored
pairs also have no combination (new value, last relation) in common.

An edit in a learned subspace can *make* a model compute something that the model does not compute
without the edit. Compare the result with `mean_swap`, which learns no subspace. This instrument
also has three edits without a learned subspace. These edits replace the component in the subspace
in which class means differ most, the component in a random subspace, or the whole state.

A random subspace almost never produces one specific answer, so it is no control for a search. Both
controls are therefore searches. The first control learns a subspace from pairs with shuffled
answers. This control can learn which answers are frequent, and how to remove the old answer. The
second control learns a subspace in a model at its initialization. This control shows what a search
achieves in a model that computes nothing (compare arXiv 2507.08802). Each control costs as much as
the main search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis.claims import Claim, claimed, has_min_clusters
from implicit_reasoning.analysis.drawing import maps_by_variable
from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import (
    chain_splits,
    chain_variables,
    prompts,
    residuals,
    state_clusters,
    state_keys,
)
from implicit_reasoning.analysis.suffix import answer_after_patch, logits_from_layer
from implicit_reasoning.analysis.variables.alignment import (
    AlignmentData,
    SearchSettings,
    align,
    interchange,
    orthonormal,
    start,
)
from implicit_reasoning.analysis.variables.cells import with_worst_control
from implicit_reasoning.analysis.variables.counterfactuals import (
    determined_cells,
    fitting_half,
    held_out_probes,
    rows_to_fit,
)
from implicit_reasoning.analysis.variables.interchange import (
    INTERCHANGE_KINDS,
    InterchangePairs,
    Rules,
    find_pairs,
)
from implicit_reasoning.analysis.variables.subspaces import basis, class_means
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

CONTROLS = ("shuffled targets", "untrained")
EDITS = ("learnt", "class means", "whole state", "random", *CONTROLS)
_MAX_CASES = 128  # maximum number of cases per split
_PAIRS = 2048  # number of training pairs of each kind
_USED = 0.8  # minimum of the lower interval ends of cause and isolation
# Maximum of the upper interval end of cause for each control. A control must not set most answers,
# but it may set some. A search with shuffled answers learns to remove the old value. In planted
# models that use the variable, this search sets up to 0.25 of the answers.
_CONTROL = 0.5


class Alignment(Instrument):
    """Instrument that learns a subspace for a variable by distributed alignment search (DAS)."""

    name = "das"
    definition = (
        "The component of S[layer, pos] of a base in a subspace is replaced by that of a "
        "source. cause: the source has another value of the variable; share of answers that "
        "are what the world says for the base with this value. isolation: the source has the "
        "same value, another first fact and another last relation; share of answers that stay. "
        "Both are over cases that are answered correctly when clean. The first facts of the "
        "pairs, and their combinations of value and last relation, were not used to learn the "
        "subspace, and their composed prompt is not in training. Edits: a learned subspace "
        "(DAS); the subspace of class means and a random subspace, both of equal rank; the "
        "whole state. Two controls are scored by the same answers: a subspace learned from "
        "pairs whose answers are shuffled within a kind of pair, and a subspace learned in a "
        "model at its initialization. For the second control all pairs count, because this "
        "model answers hardly any query correctly. counted: share of cases that have a pair "
        "for cause and are answered correctly when clean."
    )
    version = 2
    outputs = {
        **{kind: ("edit", "variable", "layer", "pos", "example") for kind in INTERCHANGE_KINDS},
        "counted": ("edit", "variable", "layer", "pos", "example"),
        "counted_isolation": ("edit", "variable", "layer", "pos", "example"),
        "correct": ("example",),
    }
    given = {"cause": "counted", "isolation": "counted_isolation"}
    nulls = {
        "learnt from shuffled targets": {"edit": CONTROLS[0]},
        "learnt in an untrained model": {"edit": CONTROLS[1]},
    }
    default = False

    def __init__(
        self,
        variable: str = "e2",
        positions: Sequence[str] | None = None,
        *,
        rank: int = 64,
        steps: int = 300,
    ):
        """Choose the variable, the positions and the size of the search.

        Args:
          variable: the name of the variable, such as "e2".
          positions: the names of the positions at which a subspace is learned. The default is the
            first position whose prefix determines the variable.
          rank: the dimension of the subspace; at most `d_model // 2` is used.
          steps: the number of optimization steps of Adam.
        """
        self.variable, self.positions = variable, positions
        self.rank, self.steps = rank, steps

    def options(self) -> dict[str, Any]:
        """Return all options of the instrument."""
        positions = None if self.positions is None else list(self.positions)
        return {
            "variable": self.variable,
            "positions": positions,
            "rank": self.rank,
            "steps": self.steps,
        }

    def places(self, dataset: Dataset) -> list[int]:
        """Return the indices of the positions at which a subspace is learned.

        Raises:
          InputError: a chosen position or the chosen variable does not exist in the dataset.
        """
        if self.positions is not None:
            missing = [pos for pos in self.positions if pos not in dataset.positions]
            if missing:
                raise InputError(
                    f"prompts of this task have no position {missing[0]!r}; choose from the "
                    f"positions {', '.join(dataset.positions)}"
                )
            return [dataset.positions.index(pos) for pos in self.positions]
        rows = rows_to_fit(dataset)
        names = chain_variables(dataset, rows[:1]).names
        if self.variable not in names:
            raise InputError(
                f"this task has no variable {self.variable!r}; choose from the variables "
                f"{', '.join(names)}"
            )
        variable, pos = determined_cells(dataset, rows)
        return [int(pos[variable == names.index(self.variable)].min())]

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the layers, of the positions, of the variable and of the edits."""
        return {
            "layer": range(model.spec.depth + 1),
            "pos": [dataset.positions[place] for place in self.places(dataset)],
            "variable": (self.variable,),
            "edit": EDITS,
        }

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose training pairs and held-out pairs of a base query and a source query.

        The examples are the base queries of the held-out pairs. The base queries are full chains,
        such as (e1, r1, r2), from every split.
        """
        random = np.random.default_rng(0)
        world, places = world_of(dataset), self.places(dataset)
        learnt = random.random((max(world.tail.shape), world.n_relations)) < 0.5
        fit = rows_to_fit(dataset)
        fit_bases = fit[random.integers(len(fit), size=_PAIRS)]
        to_fit = self._pairs(dataset, fit_bases, fit, learnt)
        splits, bases, group, pool = _held_out(dataset)
        scored = self._pairs(dataset, bases, pool, ~learnt, untrained=True)
        inputs = {
            "place": np.array(places, np.int32),
            "fit_tokens": prompts(dataset, fit),
            "fit_values": dataset.truth[self.variable][fit],
            "fit_weight": first_occurrences(state_keys(dataset, fit)).astype(np.float32),
            **(learnt_from := _as_places(fit_bases, to_fit, fit)),
            "shuffled": _shuffled(learnt_from["fit_expected"]),
            "tokens": prompts(dataset, bases),
            "answer": dataset.truth["answer"][bases],
            "source_tokens": np.stack(
                [np.stack([prompts(dataset, rows) for rows in pairs.source]) for pairs in scored]
            ),
            "expected": np.stack([pairs.expected for pairs in scored]),
        }
        return Examples(
            inputs,
            groups=splits,
            group=group,
            clusters=state_clusters(dataset, bases)[places],
            cluster_dim="pos",
        )

    def _pairs(
        self,
        dataset: Dataset,
        bases: np.ndarray,
        pool: np.ndarray,
        facts: np.ndarray,
        untrained: bool = False,
    ) -> list[InterchangePairs]:
        """Return the pairs of the bases for each position."""
        rules = [Rules(self.variable, place, facts, untrained) for place in self.places(dataset)]
        return [
            find_pairs(dataset, bases, pool, rule, np.random.default_rng(rule.pos))
            for rule in rules
        ]

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Learn the subspaces on the training pairs, and compute outcomes on the held-out pairs."""
        settings = SearchSettings(min(self.rank, model.spec.d_model // 2), self.steps)
        begin, draw, fresh = jax.random.split(key, 3)
        random = start(model, len(inputs["place"]), settings.rank, begin)

        def searched(what: tuple[Params, Array]) -> tuple[Array, Array]:
            """Search in one model, and return what `_answers` returns.

            Args:
              what: the parameters of the model, and the expected answers of the training pairs.
            """
            params, due = what
            material = AlignmentData(
                residuals(model, params, inputs["fit_tokens"]),
                inputs["place"],
                inputs["fit_base"],
                inputs["fit_source"],
                due,
            )
            learnt = align(model, params, material, random, settings, draw)
            of_means = _of_class_means(model, material, inputs, settings.rank)
            bases = jnp.stack([orthonormal(learnt), of_means, orthonormal(random)])
            return _answers(model, params, inputs, bases)

        # One program runs the main search and the searches of both controls.
        models = jax.tree.map(lambda *of: jnp.stack(of), params, params, model.init(fresh))
        due = jnp.stack([inputs[name] for name in ("fit_expected", "shuffled", "fit_expected")])
        answers, correct = jax.lax.map(searched, (models, due))
        answers = jnp.concatenate([answers[0], answers[1:, 0]])
        correct = correct[0]
        expected = inputs["expected"][None, None]  # [1, 1, pos, kind, example]
        hit = (answers == expected)[:, None]  # [edit, variable, layer, pos, kind, example]
        untrained = jnp.arange(len(EDITS)) == EDITS.index(CONTROLS[1])
        right = untrained[:, None] | correct[None]  # [edit, example]
        counted = (expected >= 0)[:, None] & right[:, None, None, None, None]
        there = jnp.broadcast_to(counted, hit.shape)
        return {
            **{kind: hit[..., index, :] for index, kind in enumerate(INTERCHANGE_KINDS)},
            "counted": there[..., 0, :],
            "counted_isolation": there[..., 1, :],
            "correct": correct,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the scores for cause and isolation, by layer and position."""
        what = {
            "cause": (
                "Answers that follow a variable set through a learned subspace",
                "The source has a different value of the variable. A cell is the share of answers "
                "that become what the world gives for the base with this value. ",
            ),
            "isolation": (
                "Answers that stay when a subspace is set to the same value",
                "The source has the same value of the variable, a different first fact and a "
                "different last relation. A cell is the share of answers that stay the same. ",
            ),
        }
        about = (
            "The cases are held-out pairs of a base, which is answered correctly without an "
            "edit, and a source. The component of the base's state in a learned subspace is "
            "replaced by that of the source's state. "
        )
        nulls = (
            "The number in brackets is the higher of two nulls: a subspace that is learned from "
            "pairs with shuffled answers, and a subspace that is learned in a model at its "
            "initialization. The pairs have no first fact and no (value, last relation) in "
            "common with the pairs that the subspace is learned from. A cell is empty if fewer "
            "than 20 clusters count (a cluster is a bridge where the prefix determines the "
            "bridge, and a prefix elsewhere). Checkpoints with only empty cells are left out."
        )
        return [
            Figure(
                f"das_{kind}",
                title,
                about + what_is_drawn + nulls,
                maps_by_variable(with_worst_control(result, kind, EDITS[0], CONTROLS)),
            )
            for kind, (title, what_is_drawn) in what.items()
        ]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "used" where the learned subspace has high scores for cause and isolation.

        A score is the share of pairs whose answer is the expected answer. In addition, the cause
        scores of both controls must be low, with upper interval ends of at most 0.5.
        """
        learnt = result.sel(edit=EDITS[0], drop=True)
        sets, alone = (learnt[f"{kind}_low"] >= _USED for kind in INTERCHANGE_KINDS)
        low = result["cause_high"].sel(edit=list(CONTROLS)) <= _CONTROL
        # Isolation has fewer clusters than cause, so no minimum number is required. Even if all
        # clusters agree, the lower interval end reaches `_USED` only with at least 17 clusters.
        there = sets & alone & low.all("edit") & has_min_clusters(learnt, "cause")
        return claimed("used", there.any("group"))


def _held_out(
    dataset: Dataset,
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Choose bases and sources for scoring. The search is not trained on their first facts.

    Returns:
      The splits, the rows of the bases, the split index of each base, and the rows that can be
      sources.
    """
    chains = np.flatnonzero(dataset.truth[f"fact{dataset.hops}"][: dataset.n_train] >= 0)
    learnt_from = np.unique(dataset.truth["fact1"][chains[fitting_half(dataset, chains)]])
    splits = chain_splits(dataset)
    bases, group = held_out_probes(dataset, splits, _MAX_CASES, learnt_from)
    return splits, bases, group, chains[~np.isin(dataset.truth["fact1"][chains], learnt_from)]


def _as_places(
    bases: np.ndarray, pairs: list[InterchangePairs], fit: np.ndarray
) -> dict[str, np.ndarray]:
    """Concatenate the pairs of both kinds, and replace rows by indices into `fit`.

    `fit` must be sorted.
    """
    both = np.concatenate([bases] * len(INTERCHANGE_KINDS))
    return {
        "fit_base": np.searchsorted(fit, both).astype(np.int32),
        "fit_source": np.stack(
            [np.searchsorted(fit, np.maximum(p.source, fit[0])).ravel() for p in pairs]
        ).astype(np.int32),
        "fit_expected": np.stack([p.expected.ravel() for p in pairs]),
    }


def _shuffled(expected: Int[np.ndarray, "pos pair"]) -> Int[np.ndarray, "pos pair"]:
    """Shuffle the expected answers among the pairs of each position and kind."""
    random, dealt = np.random.default_rng(0), expected.copy()
    for line in dealt.reshape(len(dealt) * len(INTERCHANGE_KINDS), -1):  # a view
        there = line >= 0
        line[there] = random.permutation(line[there])
    return dealt


def _of_class_means(model: Transformer, material: AlignmentData, inputs: Any, rank: int) -> Array:
    """Return the subspaces in which the class means of the variable differ most.

    Returns:
      Orthonormal bases, `[layer, pos, d_model, rank]`.
    """

    def of_place(states: Array, place: Array) -> Array:
        weight = jnp.asarray(inputs["fit_weight"])[place]
        means = class_means(states[:, place], inputs["fit_values"], weight, model.spec.d_vocab)
        found = basis(means, rank)
        return jnp.pad(found, ((0, 0), (0, rank - found.shape[1])))

    return jnp.stack(
        [
            jnp.stack([of_place(states, place) for place in material.place])
            for states in material.states
        ]
    )


def _answers(model: Transformer, params: Params, inputs: Any, bases: Array) -> tuple[Array, Array]:
    """Compute the answers after each edit, and whether the clean answers are correct.

    Args:
      model: the model.
      params: the parameters of the model.
      inputs: the inputs of `measure`.
      bases: the bases of three subspaces (learnt, class means, random),
        `[3, layer, pos, d_model, rank]`.

    Returns:
      The answers `[edit, layer, pos, kind, example]` for four edits (learnt, class means, whole
      state, random), and whether each clean answer is correct, `[example]`.
    """
    depth = model.spec.depth
    states = residuals(model, params, inputs["tokens"])
    clean = logits_from_layer(model, params, states[depth], depth).argmax(-1)

    def at_place(at: tuple[Array, ...]) -> Array:
        place, index, source_tokens = at
        of_kind = jax.lax.map(
            lambda tokens: residuals(model, params, tokens)[:, :, place], source_tokens
        )
        layers = []
        for layer in range(depth + 1):
            base = states[layer][:, place]

            def answers(source: Array, layer: int = layer, base: Array = base) -> Array:
                new = [interchange(base, source, bases[edit, layer, index]) for edit in range(3)]
                return jnp.stack(
                    [
                        answer_after_patch(model, params, states[layer], layer, place, one)
                        for one in (new[0], new[1], source, new[2])
                    ]
                )

            layers.append(jax.lax.map(answers, of_kind[:, layer]))
        return jnp.stack(layers)  # [layer, kind, edit, example]

    n_places = len(inputs["place"])
    found = jax.lax.map(at_place, (inputs["place"], jnp.arange(n_places), inputs["source_tokens"]))
    return found.transpose(3, 1, 0, 2, 4), clean == inputs["answer"]
