"""The instruments of `editing.py` that edit elsewhere, or more than once.

`Places` edits at every block and position. `ThroughChains` edits the key that a chain reads at its
second hop. `Sequences` edits facts back, and edits facts one after another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from editing_instruments import USES, mean_by_use
from jaxtyping import Array, Bool, Key

from implicit_reasoning.analysis.editing.edit_cases import (
    KINDS,
    FactEdits,
    choose_edits,
)
from implicit_reasoning.analysis.editing.edited_models import (
    Kept,
    ScoredEdits,
    kept_together,
    prepare,
    score_changes,
    score_together,
)
from implicit_reasoning.analysis.editing.knowledge_editing import (
    RANDOM,
    ROME,
    KnowledgeEditing,
)
from implicit_reasoning.analysis.editing.rank_one import random_change, rome_edits
from implicit_reasoning.analysis.editing.scores import SCORES
from implicit_reasoning.analysis.editing.sequences import edit_back, edit_in_sequence, first_edits
from implicit_reasoning.analysis.editing.traces import read_strength
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import (
    LowRankChange,
    change_edits,
    write_change,
)
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

READERS = {"other chains": "second hop", "the fact": "fact", "other facts": "same relation"}
"""Where the read strength of a key of a chain is measured, with the kind of the prompts."""

POSITIONS = ("e1", "r1")
"""The positions of the prompt of a fact."""

N_PLACES, N_THROUGH_CHAINS, N_IN_SEQUENCE = 40, 60, 32
"""Number of edits of `Places`, `ThroughChains` and `Sequences`."""


class Places(KnowledgeEditing):
    """Instrument that makes rank-one edits at every block and position of the prompt of a fact.

    The facts have the role I: training chains use them at both hops.
    """

    name = "edit_places"
    definition = (
        "Rank-one edits (rome) of the W_out of each block, with the key of the fact at e1 or r1. "
        "The last block at e1 is left out, because nothing reads its output. The facts have the "
        "role I. share, counted: as in knowledge_editing. efficacy, read: as in edits. Control: "
        "random rank-one changes of equal norm."
    )
    outputs: ClassVar = {
        "share": ("place", "editor", "score", "example"),
        "counted": ("place", "editor", "score", "example"),
        "efficacy": ("place", "editor", "example"),
        "known": ("example",),
        "read": ("place", "use", "example"),
        "has_use": ("place", "use", "example"),
    }
    given: ClassVar = {"share": "counted", "efficacy": "known", "read": "has_use"}
    roles: ClassVar[Sequence[str]] = ("I",)
    nulls: ClassVar = {"random rank-one change": {"editor": RANDOM}}

    def __init__(self, **options: Any) -> None:
        """Choose the number of edits."""
        super().__init__((ROME,), **{"edits": N_PLACES, **options})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the names of the places, such as "0 r1"."""
        names = tuple(f"{layer} {pos}" for layer, pos in places(model))
        return {
            "place": names,
            "editor": (RANDOM, ROME),
            "score": tuple(SCORES),
            "use": tuple(USES),
        }

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make and score the edits at every place."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        prompts, found = FactPrompts(**inputs["facts"]), []
        for layer, pos in places(model):
            cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
            rome = rome_edits(
                model, params, prompts, inputs["moment"], layer, self.search, POSITIONS.index(pos)
            ).change
            keys = jax.random.split(key, len(rome.keys))
            both = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), jax.vmap(random_change)(keys, rome), rome
            )
            scored = score_changes(
                model, params, cases, rest, layer, both, jnp.array([True, False])
            )
            succeeded = scored.counted[1, :, 0] & (scored.share[1, :, 0] == 1)
            read = mean_by_use(cases, read_strength(model, params, cases, rome, layer), succeeded)
            found.append((scored.share.mT, scored.counted.mT, *read))
        share, counted, strength, has_use = (jnp.stack(part) for part in zip(*found, strict=True))
        return {
            "share": share,
            "counted": counted,
            "efficacy": share[:, :, 0] == 1,
            "known": cases.counted[:, 0],
            "read": strength,
            "has_use": has_use,
        }


class ThroughChains(Places):
    """Instrument that edits the key with which one chain reads a fact at the second hop."""

    name = "edit_through_chains"
    definition = (
        "Rank-one edits of the W_out of the last block, with the key at the last position of one "
        "chain (e0, r0, r1) that uses the fact at the second hop. v* minimizes -log p(b') of this "
        "chain, with a KL divergence of (e0, r0, r) for other relations r. taught: whether the "
        "chain has the new answer, of chains that are answered before the edit. share: scores of "
        "edits of which the taught chain has the new answer; efficacy is that of the fact, and "
        "the second hop is that of other chains. efficacy: as in share, with the interval of "
        "yes-or-no outcomes. read: read strength of the key of the chain, at other chains that use "
        "the fact at the second hop, at the fact, and at other facts, of prompts that count and of "
        "edits of which the taught chain has the new answer."
    )
    outputs: ClassVar = {
        "taught": ("example",),
        "taught_counted": ("example",),
        "share": ("score", "example"),
        "counted": ("score", "example"),
        "efficacy": ("example",),
        "efficacy_counted": ("example",),
        "read": ("reader", "example"),
        "has_reader": ("reader", "example"),
    }
    given: ClassVar = {
        "taught": "taught_counted",
        "share": "counted",
        "efficacy": "efficacy_counted",
        "read": "has_reader",
    }
    nulls: ClassVar = {}

    def __init__(self, **options: Any) -> None:
        """Choose the number of edits."""
        super().__init__(**{"edits": N_THROUGH_CHAINS, **options})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the names of the scores, and of the prompts at which the key can be read."""
        return {"score": tuple(SCORES), "reader": tuple(READERS)}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits and one chain for each edit."""
        made = super().examples(model, dataset)
        made.inputs["chain"], made.inputs["taught"] = chain_prompts(dataset, made.inputs)
        return made

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make and score the edits."""
        inputs, layer = jax.tree.map(jnp.asarray, inputs), model.spec.depth - 1
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
        is_taught = jnp.arange(cases.kind.shape[1])[None] == inputs["taught"][:, None]
        known = (cases.counted & is_taught).any(1)
        cases = cases._replace(
            counted=cases.counted & ~is_taught, kind=jnp.where(is_taught, -1, cases.kind)
        )
        prompts = FactPrompts(**inputs["chain"])
        rome = rome_edits(model, params, prompts, inputs["moment"], layer, self.search).change
        one = jax.tree.map(lambda leaf: leaf[None], rome)
        scored = score_changes(model, params, cases, rest, layer, one, jnp.array([True]))
        succeeded = succeeds(model, params, prompts, rome, layer)
        counts = ((known & succeeded)[:, None] & scored.counted[0]).T
        strength = read_strength(model, params, cases, rome, layer)
        read, has_reader = mean_by_use(cases, strength, known & succeeded, READERS)
        share = scored.share[0].T
        return {
            "taught": succeeded,
            "taught_counted": known,
            "share": share,
            "counted": counts,
            "efficacy": share[0] == 1,
            "efficacy_counted": counts[0],
            "read": read,
            "has_reader": has_reader,
        }


class Sequences(Places):
    """Instrument that edits facts back, and edits facts one after another in one model."""

    name = "edit_sequences"
    definition = (
        "Rank-one edits (rome) of the W_out of the first block at r1, in random order, of facts "
        "with the role I. back: scores of models in which a fact is edited, and then edited back "
        "to its old tail, if the first edit succeeds; the right answers are those before any "
        "edit. left: Frobenius norm of both changes together, as a share of the norm of the first "
        "change. in_sequence: scores of the edits made so far, after some edits of one model; "
        "prompts that use the fact of another edit do not count. back_efficacy, "
        "in_sequence_efficacy: efficacy, with the interval of yes-or-no outcomes. locality: "
        "whether each other prompt has its right answer after some edits, whether they succeed or "
        "not; prompts that are related to any edit do not count. bridge: tail of the first fact "
        "of each other prompt. size: norm of the change after some edits, as a share of the norm "
        "of W_out."
    )
    outputs: ClassVar = {
        "back": ("score", "example"),
        "back_counted": ("score", "example"),
        "back_efficacy": ("example",),
        "left": ("example",),
        "succeeded": ("example",),
        "in_sequence": ("count", "score", "example"),
        "in_sequence_counted": ("count", "score", "example"),
        "in_sequence_efficacy": ("count", "example"),
        "made": ("count", "example"),
        "locality": ("count", "other"),
        "locality_counted": ("other",),
        "bridge": ("other",),
        "size": ("count",),
    }
    given: ClassVar = {
        "back": "back_counted",
        "back_efficacy": "succeeded",
        "left": "succeeded",
        "in_sequence": "in_sequence_counted",
        "in_sequence_efficacy": "made",
    }
    nulls: ClassVar = {}

    def __init__(self, **options: Any) -> None:
        """Choose the number of edits."""
        super().__init__(**{"edits": N_IN_SEQUENCE, **options})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the names of the scores."""
        return {"score": tuple(SCORES)}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits, in random order, and find the bridges of the other prompts."""
        made = super().examples(model, dataset)
        edits = choose_edits(dataset, self.edits, self.seed, self.roles)
        order = np.random.default_rng(self.seed).permutation(len(edits.fact))
        edits = FactEdits(edits.fact[order], edits.new[order], edits.groups, edits.group[order])
        inputs, world = self.inputs(dataset, edits), world_of(dataset)
        tokens = inputs["others"]["tokens"]
        inputs["bridge"] = world.tail[tokens[:, 0], tokens[:, 1] - world.n_entities]
        coords = {"count": counts_up_to(len(order)), "other": range(len(tokens))}
        return dataclasses.replace(made, inputs=inputs, clusters=edits.fact, coords=coords)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Edit facts back, and edit them one after another."""
        inputs, layer = jax.tree.map(jnp.asarray, inputs), self.layer
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
        prompts, search = FactPrompts(**inputs["facts"]), self.search
        made = rome_edits(model, params, prompts, inputs["moment"], layer, search)
        rome, unit = made.change, made.unit
        back = edit_back(model, params, prompts, cases.before[:, 0], layer, rome, unit, search)
        left = jax.vmap(LowRankChange.norm)(back) / jax.vmap(LowRankChange.norm)(rome)
        one = jax.tree.map(lambda leaf: leaf[None], back)
        restored = cases._replace(after=cases.before)
        scored = score_changes(model, params, restored, rest, layer, one, jnp.array([False]))
        chain = edit_in_sequence(model, params, prompts, layer, rome, unit, search)
        counts = jnp.array(counts_up_to(len(rome.keys)))

        def at(count: Array) -> tuple[ScoredEdits, Kept]:
            edited = write_change(model, params, layer, first_edits(chain, count))
            kept, shared = kept_together(model, edited, rest), inputs["case"]["shared"]
            return score_together(model, params, edited, cases, kept, layer, shared), kept

        after_some, kept = jax.lax.map(at, counts)
        known = cases.counted[:, 0]
        succeeded = known & succeeds(model, params, prompts, rome, layer)
        made_so_far = jnp.arange(len(known))[None] < counts[:, None]
        # One model has one locality, which is an output of its own.
        of_edits = jnp.arange(len(SCORES)) != list(SCORES).index("locality")
        there = after_some.counted & made_so_far[..., None] & of_edits[None, None]
        return {
            "back": scored.share[0].T,
            "back_counted": (scored.counted[0] & succeeded[:, None]).T,
            "back_efficacy": scored.share[0, :, 0] == 1,
            "left": left,
            "succeeded": succeeded,
            "in_sequence": after_some.share.mT,
            "in_sequence_counted": there.mT,
            "in_sequence_efficacy": after_some.share[..., 0] == 1,
            "made": made_so_far & known[None],
            "locality": kept.right,
            "locality_counted": kept.counted[0],
            "bridge": inputs["bridge"],
            "size": after_some.size[:, 0],
        }


def succeeds(
    model: Transformer, params: Params, prompts: FactPrompts, changes: LowRankChange, layer: int
) -> Bool[Array, " edit"]:
    """Return whether the first prompt of each edit has the new answer after the edit."""

    def one(item: tuple[Array, Array, LowRankChange]) -> Array:
        tokens, new, change = item
        edits = change_edits(model, layer, change)
        logits = forward_at(model, params, tokens[None], edits=edits)[0][:, 0]
        return answers_with(logits, new[None])[0]

    found: Array = jax.lax.map(one, (prompts.tokens[:, 0], prompts.new, changes))
    return found


def with_locality(result: xr.Dataset) -> xr.Dataset:
    """Return a result of `Sequences` with the mean of its locality and the interval by bridge.

    Args:
      result: the result of one checkpoint.

    Returns:
      The result, in which `locality`, `locality_low`, `locality_high` and `locality_n` have the
      dimension `count` only.
    """
    right = result["locality"].transpose("count", "other").values.astype(bool)
    counted = result["locality_counted"].values.astype(bool)
    found = ClusterIntervals(result["bridge"].values).interval_given(right, counted[None])
    parts = {"": found.mean, "_low": found.low, "_high": found.high, "_n": found.n_clusters}
    variables = {
        f"locality{end}": ("count", np.broadcast_to(part, len(right)))
        for end, part in parts.items()
    }
    rest = result.drop_dims("other")
    return rest.assign(variables)


def chain_prompts(
    dataset: Dataset, inputs: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return one chain for each edit that uses the fact at the second hop, with other chains.

    The other chains of an edit begin with the same fact, and end with other relations. With a chain
    of thought, the prompts contain the bridge.

    Args:
      dataset: the dataset.
      inputs: the inputs of edits.

    Returns:
      The fields of `FactPrompts`, and the index of the chain among the consequences. If there is no
      chain, the index is -1, and the prompts have no meaning.
    """
    world, case = world_of(dataset), inputs["case"]
    second = case["kind"] == KINDS.index("second hop")
    taught = np.where(second.any(1), second.argmax(1), -1)
    parts = []
    for tokens, fact in zip(
        case["tokens"][np.arange(len(taught)), taught], inputs["facts"]["tokens"], strict=True
    ):
        head, relation = fact[0]
        others = np.flatnonzero(world.tail[head] >= 0) + world.n_entities
        part = np.tile(tokens, (len(others), 1))
        part[:, 2] = [relation, *others[others != relation]]
        part[:, 3:] = head
        parts.append(part)
    width = max(map(len, parts))
    there = np.array([np.arange(width) < len(part) for part in parts])
    padded = np.stack([np.pad(part, ((0, width - len(part)), (0, 0)), "edge") for part in parts])
    return {"tokens": padded, "there": there, "new": inputs["facts"]["new"]}, taught


def places(model: Transformer) -> list[tuple[int, str]]:
    """Return the block and the position of every edit whose output is read by the answer."""
    last = model.spec.depth - 1
    return [*((layer, pos) for layer in range(last) for pos in POSITIONS), (last, "r1")]


def counts_up_to(count: int) -> tuple[int, ...]:
    """Return the powers of 2 up to a number, and the number."""
    return tuple(sorted({2**power for power in range(20) if 2**power < count} | {count}))
