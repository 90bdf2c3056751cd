"""Measure the progress of a model towards composition through a shared code of the bridge.

A model that composes has one code for each bridge (e2), which all prefixes (e1, r1) with this
bridge share, and reads the answer to (e1, r1, r2) from this code. A model that has memorized chains
reads the answer from the part of the state that differs between prefixes with the same bridge. The
losses of edited states distinguish the
two. They are the analogue of the restricted and the excluded loss for modular addition
(`fourier_progress`). The layer of the states is chosen before anything is measured.

- Restricted loss: the state is replaced by the mean state of other prefixes with the same bridge,
  so only the shared code remains.
- Excluded loss: the shared code is removed from the state, so only the part of the state remains
  that differs between prefixes with the same bridge.

The class means are over facts that are first facts of training chains (role `I`). In a split whose
first facts have no training chains or few (roles `O` and `C`), the restricted loss asks whether
these chains would be answered if the single fact set the shared code. The loss of the own state
beside it says whether the single fact does so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.components.composition_figures import draw_progress
from implicit_reasoning.analysis.components.losses import cross_entropy
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.states import (
    chain_splits,
    choose_rows,
    determines,
    prompts,
    state_keys,
)
from implicit_reasoning.analysis.variables.counterfactuals import counterfactual_answers
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.cones import cache_sites, patched_logits, state
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import ROLES, Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.dataset import world_of

STATES = ("own", "restricted", "excluded", "restricted, other bridge", "excluded, other bridge")
POSITION = "r1"
_MAX_ROWS = 256  # maximum number of rows per split
_MAX_FITTED = 4096  # maximum number of prefixes of which class means are computed
_SEED = 0


class CompositionProgress(Instrument):
    """Instrument that measures losses with the shared code of the bridge alone, and without it."""

    name = "composition_progress"
    definition = (
        "S is the state at (layer, r1); the default layer is 1. mu_b is the mean of S over first "
        "facts of training chains (role I) that lead to the bridge b, without the first fact of "
        "the row itself; mu is the mean over all of them. restricted: S is replaced by mu_b, where "
        "b is the bridge of the row. excluded: S is replaced by S - (mu_b - mu). other bridge "
        "(null): the same with the mean of a random other bridge, which leads to another answer. "
        "loss: cross-entropy of the training target in nats, over all tokens. correct: share of "
        "right answers. A row counts if mu_b has at least one first fact. In splits whose first "
        "facts have another role than I, restricted is the loss that the chains would have if the "
        "single fact set the shared code (grounded)."
    )
    outputs = {"loss": ("state", "example"), "correct": ("state", "example")}
    nulls = {
        "mean of another bridge": {"state": STATES[3]},
        "mean of another bridge removed": {"state": STATES[4]},
    }
    default = False

    def __init__(self, layer: int = 1):
        """Set the layer of the edited states.

        Args:
          layer: number of blocks before the state, at least 1.

        Raises:
          InputError: `layer` is below 1.
        """
        if layer < 1:
            raise InputError(
                f"layer is {layer}; it must be at least 1, because S[0, r1] contains only r1"
            )
        self.layer = layer

    def options(self) -> dict[str, Any]:
        """Return the layer of the edited states."""
        return {"layer": self.layer}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose bridge has a first fact in other training chains.

        In confidence intervals, rows with the same bridge (e2) form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, the prompt does not state e1 and r1 before
            the other relations, no two first facts of training chains lead to one bridge, or the
            model has no block after the layer.
        """
        splits = chain_splits(dataset)
        pos = self._place(model, dataset)
        fitted = fitted_rows(dataset)
        bridge, fact = dataset.truth["e2"], dataset.truth["fact1"]
        sizes = np.bincount(bridge[fitted], minlength=world_of(dataset).n_entities)
        own = np.full(fact.max() + 1, -1)
        own[fact[fitted]] = np.arange(len(fitted))

        rows, group = choose_rows(dataset, splits, len(dataset))
        others = sizes[bridge[rows]] - (own[fact[rows]] >= 0)
        rows, group = rows[others > 0], group[others > 0]
        chosen = np.concatenate(
            [np.flatnonzero(group == number)[:_MAX_ROWS] for number in range(len(splits))]
        )
        other = other_bridges(dataset, rows[chosen], np.flatnonzero(sizes))
        rows, group, other = (x[other >= 0] for x in (rows[chosen], group[chosen], other))
        if not len(rows):
            raise NotApplicable(
                f"the instrument {self.name!r} needs two first facts of training chains that lead "
                "to one bridge, and a second such bridge; this dataset has none"
            )
        there = np.unique(group)
        inputs = {
            "tokens": prompts(dataset, rows),
            "answer": dataset.truth["answer"][rows].astype(np.int32),
            "bridge": bridge[rows].astype(np.int32),
            "other": other.astype(np.int32),
            "own": own[fact[rows]].astype(np.int32),
            "fit_tokens": prompts(dataset, fitted)[:, : pos + 1],
            "fit_bridge": bridge[fitted].astype(np.int32),
        }
        return Examples(
            inputs,
            groups=tuple(splits[number] for number in there),
            group=np.searchsorted(there, group),
            clusters=clusters_of(dataset, rows),
            coords={"state": STATES},
        )

    def _place(self, model: Transformer, dataset: Dataset) -> int:
        """Return the index of the position of the edited states, and check that it can be used."""
        if self.layer >= model.spec.depth:
            raise NotApplicable(
                f"the instrument {self.name!r} edits states of layer {self.layer}, which needs at "
                f"least {self.layer + 1} blocks; the model has {model.spec.depth}"
            )
        pos = list(dataset.positions).index(POSITION)
        rows = choose_rows(dataset, chain_splits(dataset), len(dataset))[0]
        key, bridge = state_keys(dataset, rows)[pos], dataset.truth["e2"][rows]
        if pos == len(dataset.positions) - 1 or not determines(key, bridge):
            raise NotApplicable(
                f"the instrument {self.name!r} needs prompts that state e1 and r1 before the other "
                f"relations; the prompts of this task are {', '.join(dataset.positions)}"
            )
        return pos

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the loss and the answer of every example in all states."""
        site = model.resid_sites[self.layer]
        fitted = model.forward(params, inputs["fit_tokens"], sites=(site,))[1][site][:, -1]
        means = LeaveOneOut.of(fitted, jnp.asarray(inputs["fit_bridge"]), model.spec.d_vocab)
        pos, layer = inputs["fit_tokens"].shape[1] - 1, self.layer

        def outcomes(example: dict[str, Array]) -> dict[str, Array]:
            logits, cache = forward_at(model, params, example["tokens"], sites=cache_sites(model))
            clean = state(model, cache, layer)[:, pos]
            edited = []
            for bridge in (example["bridge"], example["other"]):
                code = means.without(example["own"], bridge)
                edited.append((code, clean - (code - means.overall[None])))
            (restricted, excluded), (null, null_excluded) = edited
            new = jnp.stack([restricted, excluded, null, null_excluded])
            patched = patched_logits(model, params, cache, {(layer, pos): new})[layer, pos]
            every = jnp.concatenate([logits[:, 0][None], patched])
            return {
                "loss": cross_entropy(every, example["answer"]),
                "correct": answers_with(every, example["answer"]),
            }

        names = ("tokens", "answer", "bridge", "other", "own")
        return map_in_chunks(outcomes, {name: inputs[name] for name in names})

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw loss and accuracy in all states over training."""
        return [draw_progress(result)]


class LeaveOneOut(NamedTuple):
    """Class means of states, which can leave out one state.

    Attributes:
      states: the states, [fit, d_model], minus `overall`.
      classes: the class of each state.
      sums: the sum of the states of each class, minus `overall` for each of them.
      sizes: the number of states of each class.
      overall: the mean of all states.
    """

    states: Float[Array, "fit d_model"]
    classes: Int[Array, " fit"]
    sums: Float[Array, "class d_model"]
    sizes: Float[Array, " class"]
    overall: Float[Array, " d_model"]

    @classmethod
    def of(
        cls, states: Float[Array, "fit d_model"], classes: Int[Array, " fit"], n_classes: int
    ) -> LeaveOneOut:
        """Compute the sums of the classes.

        Args:
          states: the states.
          classes: the class of each state, below `n_classes`.
          n_classes: number of classes.
        """
        overall = states.mean(0)
        # Sums of differences from the mean lose less precision when a state is subtracted.
        centered = states - overall[None]
        sums = jax.ops.segment_sum(centered, classes, n_classes)
        sizes = jax.ops.segment_sum(jnp.ones(len(classes)), classes, n_classes)
        return cls(centered, classes, sums, sizes, overall)

    def without(
        self, own: Int[Array, " example"], wanted: Int[Array, " example"]
    ) -> Float[Array, "example d_model"]:
        """Return the mean of a class for each example, without one state.

        Args:
          own: the index of the state to leave out; -1 if there is no such state. A state of another
            class changes nothing.
          wanted: the class. The mean of a class without states is `overall`.
        """
        member = (own >= 0) & (self.classes[own] == wanted)
        sums = self.sums[wanted] - jnp.where(member[:, None], self.states[own], 0)
        sizes = self.sizes[wanted] - member
        return self.overall[None] + sums / jnp.maximum(sizes, 1)[:, None]


def fitted_rows(dataset: Dataset) -> Int[np.ndarray, " row"]:
    """Return one training chain for each first fact with role `I`, at most `_MAX_FITTED`.

    If there are too many first facts, a random part is returned.
    """
    truth, trained = dataset.truth, slice(dataset.n_train)
    is_chain = truth[f"fact{dataset.hops}"][trained] >= 0
    rows = np.flatnonzero(is_chain & (truth["role1"][trained] == ROLES.index("I")))
    rows = rows[np.unique(truth["fact1"][rows], return_index=True)[1]]
    return np.random.default_rng(_SEED).permutation(rows)[:_MAX_FITTED]


def other_bridges(
    dataset: Dataset, rows: Int[np.ndarray, " row"], bridges: Int[np.ndarray, " bridge"]
) -> Int[np.ndarray, " row"]:
    """Draw another bridge for each row, which does not lead to the answer of the row.

    Args:
      dataset: a dataset of a chain task.
      rows: indices of dataset rows.
      bridges: the bridges that can be drawn.

    Returns:
      A bridge for each row; -1 if there is none.
    """
    values = np.broadcast_to(bridges, (len(rows), len(bridges)))
    leads = counterfactual_answers(dataset, rows, "e2", values)
    usable = values != dataset.truth["e2"][rows][:, None]
    usable &= leads != dataset.truth["answer"][rows][:, None]
    order = np.where(usable, np.random.default_rng(_SEED).random(usable.shape), -1)
    if not len(bridges):
        return np.full(len(rows), -1)
    found = np.where(usable.any(1), bridges[order.argmax(1)], -1)
    return found
