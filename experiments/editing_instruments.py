"""The instruments of `editing.py`: edits with their traces, places of edits, and several edits.

`Edits` and `Methods` are the built-in instrument with traces of rank-one edits. `Places` edits at
every block and position. `ThroughChains` edits the key that a chain reads at its second hop.
`Sequences` edits facts back, and edits facts one after another.
"""

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
    FactEdits,
    choose_edits,
    training_chains,
)
from implicit_reasoning.analysis.editing.edited_models import (
    ScoredEdits,
    prepare,
    score_changes,
    score_together,
)
from implicit_reasoning.analysis.editing.knowledge_editing import (
    DEFAULT,
    EDITORS,
    NULLS,
    ORACLE,
    RANDOM,
    ROME,
    KnowledgeEditing,
)
from implicit_reasoning.analysis.editing.rank_one import (
    exact_keys,
    memory,
    random_change,
    rank_one_changes,
    search_values,
    second_moment,
)
from implicit_reasoning.analysis.editing.scores import SCORES, Case
from implicit_reasoning.analysis.editing.sequences import edit_back, edit_in_sequence, first_edits
from implicit_reasoning.analysis.editing.traces import decoded_tails, read_strength, tail_codes
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import (
    LowRankChange,
    change_edits,
    changed_depths,
    write_change,
)
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

USES = {"first hop": "first hop", "second hop": "second hop", "other facts": "same relation"}
"""Where the read strength is measured, with the kind of the prompts."""

READERS = {"other chains": "second hop", "the fact": "fact", "other facts": "same relation"}
"""Where the read strength of a key of a chain is measured, with the kind of the prompts."""

TAILS = ("new", "old", "old, no edit")
"""The tails that can be decoded at r1; the last one is decoded without an edit."""

HOPS = ("first", "second")
N_PLACES, N_THROUGH_CHAINS, N_IN_SEQUENCE = 40, 60, 32
"""Number of edits of `Places`, `ThroughChains` and `Sequences`."""


class Edits(KnowledgeEditing):
    """Instrument `knowledge_editing` with traces, and with the scores of every rank-one edit."""

    name = "edits"
    definition = (
        KnowledgeEditing.definition + " Of the edits of rome: read: read strength of the edited "
        "key, mean over the prompts of an edit; other facts are the control. decoded: whether a "
        "tail is decoded at r1 after each block, of edits that took. by_edit: the scores of every "
        "edit, nan if no prompt counts. says_new: whether the new tail is decoded, for every edit. "
        "chains: number of training chains that use the fact. role: the role of the fact."
    )
    outputs: ClassVar = {
        **KnowledgeEditing.outputs,
        "read": ("use", "example"),
        "has_use": ("use", "example"),
        "decoded": ("tail", "layer", "example"),
        "took": ("example",),
        "by_edit": ("score", "edit"),
        "says_new": ("layer", "edit"),
        "chains": ("hop", "edit"),
        "role": ("edit",),
    }
    given: ClassVar = {**KnowledgeEditing.given, "read": "has_use", "decoded": "took"}

    def __init__(self, editors: Sequence[str] = DEFAULT, **options: Any) -> None:
        """Choose the editors; see `KnowledgeEditing`."""
        super().__init__(editors, **options)

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
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], self.layer)
        made = self.changes(model, params, inputs, key)
        found = self.score(model, params, inputs, made, cases, rest)
        chosen = [found[name] for name in (*NULLS, *self.editors)]
        share, counted, size = (jnp.stack(part) for part in zip(*chosen, strict=True))
        rome = found[ROME]
        took = rome.counted[:, 0] & (rome.share[:, 0] == 1)
        strength, has_use = mean_by_use(
            cases, read_strength(model, params, cases, made.rome, self.layer)
        )
        decoded = self.decode(model, params, inputs, cases, made.rome)
        return {
            "share": share.mT,
            "counted": counted.mT,
            "change": size,
            "read": strength,
            "has_use": has_use,
            "decoded": decoded.astype(jnp.float32),
            "took": took,
            "by_edit": jnp.where(rome.counted, rome.share, jnp.nan).T,
            "says_new": jnp.where(took, decoded[0], jnp.nan),
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


class Places(KnowledgeEditing):
    """Instrument that makes rank-one edits at every block and position of the prompt of a fact."""

    name = "edit_places"
    definition = (
        "Rank-one edits (rome) of the W_out of each block, with the key of the fact at e1 or r1. "
        "The last block at e1 is left out, because nothing reads its output. Each edit is an "
        "example of one group. share, counted: as in knowledge_editing. read: read strength of "
        "the edited key, as in edits. Control: random rank-one changes of equal norm."
    )
    outputs: ClassVar = {
        "share": ("place", "editor", "score", "example"),
        "counted": ("place", "editor", "score", "example"),
        "read": ("place", "use", "example"),
        "has_use": ("use", "example"),
    }
    given: ClassVar = {"share": "counted", "read": "has_use"}
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

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits, in one group."""
        return in_one_group(super().examples(model, dataset))

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make and score the edits at every place."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        found = []
        for layer, pos in places(model):
            cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
            rome, _, _ = self.rome(model, params, inputs, layer, -1 if pos == "r1" else 0)
            keys = jax.random.split(key, len(rome.keys))
            both = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), jax.vmap(random_change)(keys, rome), rome
            )
            scored = score_changes(
                model, params, cases, rest, layer, both, jnp.array([True, False])
            )
            strength, has_use = mean_by_use(cases, read_strength(model, params, cases, rome, layer))
            found.append((scored.share.mT, scored.counted.mT, strength))
        share, counted, strength = (jnp.stack(part) for part in zip(*found, strict=True))
        return {"share": share, "counted": counted, "read": strength, "has_use": has_use}

    def rome(
        self, model: Transformer, params: Params, inputs: Any, layer: int, pos: int
    ) -> tuple[LowRankChange, LowRankChange, Array]:
        """Return the rank-one changes of all edits, their directions, and the unit of values."""
        prompts = FactPrompts(**inputs["facts"])
        moment, unit = second_moment(model, params, **inputs["moment"], layer=layer)
        keys = exact_keys(model, params, prompts, layer, pos)
        none = jnp.zeros((len(keys), model.spec.d_model))
        ways = rank_one_changes(keys, memory(moment).solve(keys), none)
        added = search_values(model, params, prompts, layer, ways, unit, self.search)
        return ways._replace(values=added[:, None]), ways, unit


class ThroughChains(Places):
    """Instrument that edits the key with which one chain reads a fact at the second hop."""

    name = "edit_through_chains"
    definition = (
        "Rank-one edits of the W_out of the last block, with the key at the last position of one "
        "chain (e0, r0, r1) that uses the fact at the second hop. v* minimizes -log p(b') of this "
        "chain, with a KL divergence of (e0, r0, r) for other relations r. taught: whether the "
        "chain has the new answer, of chains that are answered before the edit. share: scores of "
        "edits of which the taught chain has the new answer; efficacy is that of the fact, and "
        "the second hop is that of other chains. read: read strength of the key of the chain, at "
        "other chains that use the fact at the second hop, at the fact, and at other facts."
    )
    outputs: ClassVar = {
        "taught": ("example",),
        "taught_counted": ("example",),
        "share": ("score", "example"),
        "counted": ("score", "example"),
        "read": ("reader", "example"),
        "has_reader": ("reader", "example"),
    }
    given: ClassVar = {"taught": "taught_counted", "share": "counted", "read": "has_reader"}
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
        inputs["facts"] = inputs["chain"]
        rome, _, _ = self.rome(model, params, inputs, layer, -1)
        one = jax.tree.map(lambda leaf: leaf[None], rome)
        scored = score_changes(model, params, cases, rest, layer, one, jnp.array([True]))
        prompts = FactPrompts(**inputs["chain"])

        def takes(item: tuple[Array, Array, LowRankChange]) -> Array:
            tokens, new, change = item
            edits = change_edits(model, layer, change)
            logits = forward_at(model, params, tokens[None], edits=edits)[0][:, 0]
            return answers_with(logits, new[None])[0]

        took = jax.lax.map(takes, (prompts.tokens[:, 0], prompts.new, rome))
        counts = (known & took)[:, None] & scored.counted[0]
        strength = read_strength(model, params, cases, rome, layer)
        read, has_reader = mean_by_use(cases, strength, READERS)
        return {
            "taught": took,
            "taught_counted": known,
            "share": scored.share[0].T,
            "counted": counts.T,
            "read": read,
            "has_reader": has_reader & known[None],
        }


class Sequences(Places):
    """Instrument that edits facts back, and edits facts one after another in one model."""

    name = "edit_sequences"
    definition = (
        "Rank-one edits (rome) of the W_out of the first block at r1, in random order, one group. "
        "back: scores of models in which a fact is edited, and then edited back to its old tail; "
        "the right answers are those before any edit. left: Frobenius norm of both changes "
        "together, as a share of the norm of the first change. in_sequence: scores of the edits "
        "made so far, after some edits of one model; prompts that use the fact of another edit do "
        "not count. size: norm of the change after some edits, as a share of the norm of W_out."
    )
    outputs: ClassVar = {
        "back": ("score", "example"),
        "back_counted": ("score", "example"),
        "left": ("example",),
        "in_sequence": ("count", "score", "example"),
        "in_sequence_counted": ("count", "score", "example"),
        "size": ("count",),
    }
    given: ClassVar = {"back": "back_counted", "in_sequence": "in_sequence_counted"}
    nulls: ClassVar = {}

    def __init__(self, **options: Any) -> None:
        """Choose the number of edits."""
        super().__init__(**{"edits": N_IN_SEQUENCE, **options})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the names of the scores."""
        return {"score": tuple(SCORES)}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits, in random order and in one group."""
        made = super().examples(model, dataset)
        edits = choose_edits(dataset, self.edits, self.seed)
        order = np.random.default_rng(self.seed).permutation(len(edits.fact))
        edits = FactEdits(edits.fact[order], edits.new[order], edits.groups, edits.group[order])
        inputs = self.inputs(dataset, edits)
        counts = {"count": counts_up_to(len(order))}
        return dataclasses.replace(made, inputs=inputs, clusters=edits.fact, coords=counts)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Edit facts back, and edit them one after another."""
        inputs, layer = jax.tree.map(jnp.asarray, inputs), self.layer
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
        prompts, search = FactPrompts(**inputs["facts"]), self.search
        rome, ways, unit = self.rome(model, params, inputs, layer, -1)
        back = edit_back(model, params, prompts, cases.before[:, 0], layer, rome, unit, search)
        left = jax.vmap(LowRankChange.norm)(back) / jax.vmap(LowRankChange.norm)(rome)
        one = jax.tree.map(lambda leaf: leaf[None], back)
        restored = cases._replace(after=cases.before)
        scored = score_changes(model, params, restored, rest, layer, one, jnp.array([False]))
        chain = edit_in_sequence(model, params, prompts, layer, ways, unit, search)

        def at(count: Array) -> ScoredEdits:
            edited = write_change(model, params, layer, first_edits(chain, count))
            shared = inputs["case"]["shared"]
            found = score_together(model, params, edited, cases, rest, layer, shared)
            made = jnp.arange(len(found.counted)) < count
            return found._replace(counted=found.counted & made[:, None])

        after_some = jax.lax.map(at, jnp.array(counts_up_to(len(rome.keys))))
        return {
            "back": scored.share[0].T,
            "back_counted": scored.counted[0].T,
            "left": left,
            "in_sequence": after_some.share.mT,
            "in_sequence_counted": after_some.counted.mT,
            "size": after_some.size[:, 0],
        }


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


def mean_by_use(cases: Case, values: Array, uses: Mapping[str, str] = USES) -> tuple[Array, Array]:
    """Return the mean over the prompts of each use, [use, edit], and whether there are any."""
    masks = [cases.kind == KINDS.index(kind) for kind in uses.values()]
    counts = jnp.stack([mask.sum(1) for mask in masks])
    sums = jnp.stack([jnp.where(mask, values, 0).sum(1) for mask in masks])
    return sums / jnp.maximum(counts, 1), counts > 0


def places(model: Transformer) -> list[tuple[int, str]]:
    """Return the block and the position of every edit whose output is read by the answer."""
    last = model.spec.depth - 1
    return [*((layer, pos) for layer in range(last) for pos in ("e1", "r1")), (last, "r1")]


def after(model: Transformer, layer: int) -> tuple[int, ...]:
    """Return the numbers of blocks after which a tail is decoded, from the edited block on."""
    return tuple(range(changed_depths(model, layer)[0] + 1, model.spec.depth + 1))


def counts_up_to(count: int) -> tuple[int, ...]:
    """Return the powers of 2 up to a number, and the number."""
    return tuple(sorted({2**power for power in range(20) if 2**power < count} | {count}))


def in_one_group(examples: Examples) -> Examples:
    """Return examples in one group."""
    group = np.zeros(len(examples.group), int)
    return dataclasses.replace(examples, groups=("all",), group=group)
