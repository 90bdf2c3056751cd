"""The instruments of `editing.py` that edit one place: edits by all methods, with their traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from implicit_reasoning.analysis.editing.edit_cases import (
    KINDS,
    training_chains,
)
from implicit_reasoning.analysis.editing.knowledge_editing import (
    DEFAULT,
    EDITORS,
    ORACLE,
    ROME,
    KnowledgeEditing,
)
from implicit_reasoning.analysis.editing.scores import Case
from implicit_reasoning.analysis.editing.traces import decoded_tails, read_strength, tail_codes
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import (
    LowRankChange,
    changed_depths,
)
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

USES = {"first hop": "first hop", "second hop": "second hop", "other facts": "same relation"}
"""Where the read strength is measured, with the kind of the prompts."""

TAILS = ("new", "old", "old, no edit")
"""The tails that can be decoded at r1; the last one is decoded without an edit."""

HOPS = ("first", "second")
N_OTHERS = 300
"""Number of prompts for locality, which is the mean over the edits of a role."""


class Edits(KnowledgeEditing):
    """Instrument `knowledge_editing` with traces, and with the scores of every rank-one edit."""

    name = "edits"
    definition = (
        KnowledgeEditing.definition + " efficacy: as in share, with the interval of yes-or-no "
        "outcomes. Of the edits of rome that succeed: read: read strength of the edited key, mean "
        "over the prompts of an edit that count; other facts are the control. decoded: whether a "
        "tail is decoded at r1 after each block. by_edit: the scores of every edit, nan if no "
        "prompt counts. new_decoded: whether the new tail is decoded, by edit. chains: number of "
        "training chains that use the fact. role: the role of the fact."
    )
    outputs: ClassVar = {
        **KnowledgeEditing.outputs,
        "efficacy": ("editor", "example"),
        "known": ("example",),
        "read": ("use", "example"),
        "has_use": ("use", "example"),
        "decoded": ("tail", "layer", "example"),
        "succeeded": ("example",),
        "by_edit": ("score", "edit"),
        "new_decoded": ("layer", "edit"),
        "chains": ("hop", "edit"),
        "role": ("edit",),
    }
    given: ClassVar = {
        **KnowledgeEditing.given,
        "efficacy": "known",
        "read": "has_use",
        "decoded": "succeeded",
    }

    def __init__(self, editors: Sequence[str] = DEFAULT, **options: Any) -> None:
        """Choose the editors; see `KnowledgeEditing`."""
        super().__init__(editors, **{"others": N_OTHERS, **options})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions but that of edits."""
        own = {"use": tuple(USES), "tail": TAILS, "layer": after(model, self.layer), "hop": HOPS}
        return super().coords(model, dataset) | own

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits, with the prompts of all facts and the roles and chains of the edits."""
        made = super().examples(model, dataset)
        facts, first = world_of(dataset).facts, world_of(dataset).n_entities
        prompts = np.column_stack([facts.head, first + facts.relation]).astype(np.int32)
        edited = made.clusters
        made.inputs["all_facts"] = {"tokens": prompts, "tail": facts.tail}
        made.inputs["about"] = {
            "chains": training_chains(dataset)[edited].T.astype(np.int32),
            "role": facts.role[edited].astype(np.int32),
        }
        return dataclasses.replace(made, coords={"edit": range(len(edited))})

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make every edit with every editor, score it, and trace the rank-one edits."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        found = self.measure_edits(model, params, inputs, key)
        cases, change, rome = found.cases, found.made.rome, found.by_editor[ROME]
        succeeded = rome.counted[:, 0] & (rome.share[:, 0] == 1)
        read = read_strength(model, params, cases, change, self.layer)
        strength, has_use = mean_by_use(cases, read, succeeded)
        decoded = self.decode(model, params, inputs, cases, change)
        return {
            **found.scores,
            "efficacy": found.scores["share"][:, 0] == 1,
            "known": cases.counted[:, 0],
            "read": strength,
            "has_use": has_use,
            "decoded": decoded.astype(jnp.float32),
            "succeeded": succeeded,
            "by_edit": jnp.where(rome.counted, rome.share, jnp.nan).T,
            "new_decoded": jnp.where(succeeded, decoded[0], jnp.nan),
            **inputs["about"],
        }

    def decode(
        self, model: Transformer, params: Params, inputs: Any, cases: Case, rome: LowRankChange
    ) -> Array:
        """Return whether each of `TAILS` is decoded, [tail, layer, edit]."""
        facts, prompts = inputs["all_facts"], FactPrompts(**inputs["facts"])
        most = model.spec.d_vocab  # there are fewer entities than tokens
        codes = tail_codes(model, params, facts["tokens"], facts["tail"], most)
        tokens = jnp.asarray(prompts.tokens)[:, 0]
        none = rome._replace(values=jnp.zeros_like(rome.values))
        after_edit, before = (
            decoded_tails(model, params, tokens, change, self.layer, codes)
            for change in (rome, none)
        )
        old = cases.before[:, :1]
        said = jnp.stack([after_edit == prompts.new[:, None], after_edit == old, before == old])
        return jnp.swapaxes(said, 1, 2)[:, changed_depths(model, self.layer)[0] :]


class Methods(Edits):
    """Instrument `edits` with all editors."""

    name = "edit_methods"

    def __init__(self, **options: Any) -> None:
        """Choose all editors."""
        super().__init__(EDITORS, **options)


class MethodsWithThought(Edits):
    """Instrument `edits` with all editors that can be used with a chain of thought."""

    name = "edit_methods_with_thought"

    def __init__(self, **options: Any) -> None:
        """Choose all editors except for the one that teaches chains."""
        super().__init__([name for name in EDITORS if name != ORACLE], **options)


def mean_by_use(
    cases: Case, values: Array, succeeded: Array, uses: Mapping[str, str] = USES
) -> tuple[Array, Array]:
    """Return the mean over the prompts of each use, [use, edit], and whether there are any.

    As in all scores, only prompts count that are answered before the edit, of edits that succeed.
    """
    there = cases.counted & succeeded[:, None]
    masks = [there & (cases.kind == KINDS.index(kind)) for kind in uses.values()]
    counts = jnp.stack([mask.sum(1) for mask in masks])
    sums = jnp.stack([jnp.where(mask, values, 0).sum(1) for mask in masks])
    return sums / jnp.maximum(counts, 1), counts > 0


def after(model: Transformer, layer: int) -> tuple[int, ...]:
    """Return the numbers of blocks after which a tail is decoded, from the edited block on."""
    return tuple(range(changed_depths(model, layer)[0] + 1, model.spec.depth + 1))
