"""Edit facts in a model, and measure which of their consequences follow.

After a fact is edited, do chains that use it at the first hop follow, and chains that use it at the
second hop? A model that has two stores of facts, one for each hop, follows at one hop only.

At the first hop, the chain and the prompt of the fact have the same states up to r1. An edit that
overwrites the state there, without any change of a store, therefore has first-hop answers too. The
editor `state` overwrites the state. Where its first-hop score equals that of `rome`, the first hop
is no evidence about stores, and only the second hop is. `state` is also an upper bound of the
second hop, because it writes the value wherever a prompt uses the edited fact.

Sources: Meng et al. 2022 (ROME); Zhong et al. 2023 (MQuAKE); Cohen et al. 2023 (RippleEdits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis.editing.edit_cases import (
    FactEdits,
    choose_edits,
    consequences,
    other_prompts,
)
from implicit_reasoning.analysis.editing.edited_models import (
    prepare,
    score_changes,
    score_states,
)
from implicit_reasoning.analysis.editing.rank_one import (
    FactPrompts,
    ValueSearch,
    exact_keys,
    memory,
    random_change,
    rank_one_changes,
    search_values,
    second_moment,
)
from implicit_reasoning.analysis.editing.scores import SCORES
from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.surgery import LowRankChange, changed_depths
from implicit_reasoning.worlds import Dataset, prefix_keys
from implicit_reasoning.worlds.dataset import world_of

NO_EDIT, RANDOM, ROME, STATE = "none", "random", "rome", "state"
EDITORS = (ROME, STATE)
NULLS = (NO_EDIT, RANDOM)
_CHAINS = 2048  # maximum number of training chains whose keys are in the second moment


class KnowledgeEditing(Instrument):
    """Instrument that edits facts and scores all consequences against the edited world."""

    name = "knowledge_editing"
    definition = (
        "A fact (e1, r1) -> b gets a new tail b'. The editors change a model so that it answers "
        "b'. rome: rank-one change of W_out of one block; W k* becomes v*, where k* is the key of "
        "the fact at r1, and v* minimizes -log p(b') with a KL divergence of other facts of e1. "
        "state: v* - W k* is added to the output of the MLP wherever a prompt uses the fact, and "
        "no weight is changed. share: mean over edits of the share of prompts for which a score "
        "holds: "
        + "; ".join(f"{name}: {text}" for name, text in SCORES.items())
        + ". A prompt counts if it is answered correctly before the edit. All scores except "
        "efficacy are those of edits that took. Controls, of which all edits count: none (no "
        "edit); random (a random rank-one change with the norm of that of rome). change: Frobenius "
        "norm of the change of W_out, as a share of the norm of W_out."
    )
    outputs = {
        "share": ("editor", "score", "example"),
        "counted": ("editor", "score", "example"),
        "change": ("editor", "example"),
    }
    given = {"share": "counted"}
    nulls = {"no edit": {"editor": NO_EDIT}, "random rank-one change": {"editor": RANDOM}}
    default = False

    def __init__(
        self,
        editors: Sequence[str] = EDITORS,
        *,
        layer: int = 0,
        edits: int = 100,
        others: int = 1000,
        search: ValueSearch = ValueSearch(),  # noqa: B008 - it is frozen
        seed: int = 0,
    ):
        """Choose the editors, the block and the number of edits.

        Args:
          editors: names from `EDITORS`. The null controls are added.
          layer: the unrolled depth of the block whose MLP is edited.
          edits: maximum number of edits, over all roles of facts.
          others: number of prompts for locality.
          search: the settings of the search for v*.
          seed: the seed of the choice of edits.

        Raises:
          InputError: an editor does not exist, or a number is below 1.
        """
        unknown = [name for name in editors if name not in EDITORS]
        if unknown:
            raise InputError(f"no such editor: {unknown[0]!r}; choose from {', '.join(EDITORS)}")
        if min(edits, others) < 1:
            raise InputError(f"edits and others must be at least 1, got {edits} and {others}")
        self.editors, self.layer = tuple(dict.fromkeys(editors)), layer
        self.edits, self.others, self.search, self.seed = edits, others, search, seed

    def options(self) -> dict[str, Any]:
        """Return all options of the instrument."""
        return {
            "editors": list(self.editors),
            "layer": self.layer,
            "edits": self.edits,
            "others": self.others,
            "search": dict(vars(self.search)),
            "seed": self.seed,
        }

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the names of editors and scores."""
        return {"editor": (*NULLS, *self.editors), "score": tuple(SCORES)}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of keys and values."""
        block = f"blocks.{self.layer}."
        return f"{block}mlp.hook_post", f"{block}hook_mlp_out"

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the edits. An edit is an example, and its group is the role of the fact.

        Raises:
          NotApplicable: no fact can be edited, or the blocks of the model are not those of GPT-2.
          InputError: the model has no such block.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        changed_depths(model, self.layer)
        edits = choose_edits(dataset, self.edits, self.seed)
        inputs = {
            "case": consequences(dataset, edits, self.seed)._asdict(),
            "others": other_prompts(dataset, edits, self.others, self.seed)._asdict(),
            "facts": fact_prompts(dataset, edits)._asdict(),
            "moment": moment_prompts(dataset, self.seed),
        }
        return Examples(inputs, groups=edits.groups, group=edits.group, clusters=edits.fact)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make every edit with every editor, and score it."""
        inputs, layer = jax.tree.map(jnp.asarray, inputs), self.layer
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], layer)
        made = self.changes(model, params, inputs, key)
        changed = {
            NO_EDIT: jax.tree.map(jnp.zeros_like, made.rome),
            RANDOM: made.random,
            ROME: made.rome,
        }
        names = [name for name in changed if name in (*NULLS, *self.editors)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(changed[n] for n in names))
        is_null = jnp.array([name in NULLS for name in names])
        scored = score_changes(model, params, cases, rest, layer, stacked, is_null)
        found = {name: tuple(leaf[n] for leaf in scored) for n, name in enumerate(names)}
        if STATE in self.editors:
            found[STATE] = score_states(model, params, cases, rest, layer, made.added)
        chosen = [found[name] for name in (*NULLS, *self.editors)]
        share, counted, size = (jnp.stack(part) for part in zip(*chosen, strict=True))
        return {"share": share.mT, "counted": counted.mT, "change": size}

    def changes(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> MadeEdits:
        """Compute the rank-one changes of all edits of one model, and random changes like them.

        Args:
          model: the model.
          params: the parameters of one model.
          inputs: the inputs of `examples`.
          key: the random key of the random changes.
        """
        prompts, layer = FactPrompts(**inputs["facts"]), self.layer
        moment, unit = second_moment(model, params, **inputs["moment"], layer=layer)
        keys = exact_keys(model, params, prompts, layer)
        solved = memory(moment).solve(keys)
        directions = rank_one_changes(keys, solved, jnp.zeros((len(keys), model.spec.d_model)))
        added = search_values(model, params, prompts, layer, directions, unit, self.search)
        rome = directions._replace(values=added[:, None])
        random = jax.vmap(random_change)(jax.random.split(key, len(keys)), rome)
        return MadeEdits(keys, added, rome, random)


class MadeEdits(NamedTuple):
    """The changes of all edits of one model.

    Attributes:
      keys: the key k* of each edit.
      added: v* - W k* of each edit.
      rome: the rank-one change of each edit.
      random: a random change of equal norm for each edit.
    """

    keys: Float[Array, "edit d_mlp"]
    added: Float[Array, "edit d_model"]
    rome: LowRankChange
    random: LowRankChange


def fact_prompts(dataset: Dataset, edits: FactEdits) -> FactPrompts:
    """Return the prompts of the edited facts and of all other facts of their entities."""
    facts, first = world_of(dataset).facts, world_of(dataset).n_entities
    parts = []
    for fact in edits.fact:
        others = np.flatnonzero(facts.head == facts.head[fact])
        numbers = np.array([fact, *others[others != fact]])
        parts.append(np.column_stack([facts.head[numbers], first + facts.relation[numbers]]))
    width = max(map(len, parts))
    there = np.array([np.arange(width) < len(part) for part in parts])
    tokens = np.stack([np.pad(part, ((0, width - len(part)), (0, 0)), "edge") for part in parts])
    return FactPrompts(tokens.astype(np.int32), there, edits.new.astype(np.int32))


def moment_prompts(dataset: Dataset, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the prompts whose keys are in the second moment, with weight 1 for distinct prefixes.

    The prompts are all facts, and at most 2,048 training chains.

    Returns:
      `tokens` [prompt, pos] and `weight` [prompt, pos], the arguments of `second_moment`.
    """
    world, truth = world_of(dataset), dataset.truth
    facts = world.facts
    zero = np.zeros(world.n_facts, np.int32)
    alone = np.column_stack([facts.head, world.n_entities + facts.relation, zero])
    trained = np.flatnonzero(truth["fact2"][: dataset.n_train] >= 0)
    rows = np.random.default_rng(seed).permutation(trained)[:_CHAINS]
    tokens = np.concatenate([alone, dataset.tokens[rows, :3]]).astype(np.int32)
    weight = first_occurrences(prefix_keys(tokens, dataset.n_vocab).T).T.astype(np.float32)
    weight[: len(alone), 2] = 0  # padding
    return {"tokens": tokens, "weight": weight}
