"""Edit facts in a model, and measure which of their consequences follow.

After a fact is edited, do chains that use it at the first hop follow, and chains that use it at the
second hop? A model that has two stores of facts, one for each hop, follows at one hop only.

At the first hop, the chain and the prompt of the fact have the same states up to r1. An edit that
overwrites the state there, without any change of a store, therefore has first-hop answers too. The
editors `state` and `resid_mid` overwrite the state, after and before the MLP. Where their first-hop
scores equal that of `rome`, the first hop is no evidence about stores, and only the second hop is.
They also bound the second hop of a weight edit with the same vector, because they write it wherever
a prompt uses the fact.

Sources: Meng et al. 2022 (ROME); Zhong et al. 2023 (MQuAKE); Cohen et al. 2023 (RippleEdits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis.claims import (
    MAX_UPPER_BOUND,
    MIN_CLUSTERS,
    MIN_LOWER_BOUND,
    Claim,
)
from implicit_reasoning.analysis.editing.batched import edit_together
from implicit_reasoning.analysis.editing.edit_cases import (
    EDITED_ROLES,
    KINDS,
    MOST,
    POSITIONS,
    FactEdits,
    choose_edits,
    consequences,
    has_thought,
    other_prompts,
)
from implicit_reasoning.analysis.editing.edited_models import (
    Rest,
    ScoredEdits,
    kept_together,
    prepare,
    score_changes,
    score_parameters,
    score_together,
    score_unchanged,
)
from implicit_reasoning.analysis.editing.fine_tuning import Lesson, Tuning, fine_tune
from implicit_reasoning.analysis.editing.rank_one import random_change, rome_edits
from implicit_reasoning.analysis.editing.scores import SCORES, Case
from implicit_reasoning.analysis.editing.state_edits import score_states, search_states
from implicit_reasoning.analysis.editing.value_search import FactPrompts, ValueSearch
from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.surgery import LowRankChange, changed_depths
from implicit_reasoning.worlds import Dataset, prefix_keys
from implicit_reasoning.worlds.dataset import world_of

NO_EDIT, RANDOM, ROME, STATE, RESID_MID = "none", "random", "rome", "state", "resid_mid"
MEMIT, W_OUT, WEIGHTS, ORACLE = "memit", "tuned W_out", "tuned", "tuned with chains"
EDITORS = (ROME, STATE, RESID_MID, MEMIT, W_OUT, WEIGHTS, ORACLE)
DEFAULT = (ROME, STATE, RESID_MID)
NULLS = (NO_EDIT, RANDOM)
_CHAINS = 2048  # maximum number of training chains whose keys are in the second moment


class KnowledgeEditing(Instrument):
    """Instrument that edits facts and scores all consequences against the edited world.

    Attributes:
      roles: the roles of the facts that are edited. A subclass can edit facts of fewer roles.
    """

    name = "knowledge_editing"
    definition = (
        "A fact (e1, r1) -> b gets a new tail b'. The editors change a model so that it answers "
        "b'. rome: rank-one change of W_out of one block; W k* becomes v*, where k* is the key of "
        "the fact at r1, and v* minimizes -log p(b') with a KL divergence of other facts of e1. "
        "state: v* - W k* is added to the output of the MLP wherever a prompt uses the fact, and "
        "no weight is changed. resid_mid: as state, with another vector, before the MLP. memit: "
        "least squares for all edits in one model, over one or more blocks. tuned W_out, tuned: "
        "W_out of one block, or all weights, are fine-tuned on the fact until p(b') is above .95. "
        "tuned with chains: also on half of the chains that use the fact; only the other half is "
        "scored. share: mean over edits of the share of prompts for which a score holds: "
        + "; ".join(f"{name}: {text}" for name, text in SCORES.items())
        + ". A prompt counts if it is answered correctly before the edit. All scores except "
        "efficacy are those of edits that succeed. Controls, of which all edits count: none (no "
        "edit); random (a random rank-one change with the norm of that of rome). change: Frobenius "
        "norm of the change of W_out, as a share of the norm of W_out; 0 if W_out is 0."
    )
    outputs = {
        "share": ("editor", "score", "example"),
        "counted": ("editor", "score", "example"),
        "change": ("editor", "example"),
    }
    given = {"share": "counted"}
    nulls = {"no edit": {"editor": NO_EDIT}, "random rank-one change": {"editor": RANDOM}}
    default = False
    roles: ClassVar[Sequence[str]] = EDITED_ROLES

    def __init__(
        self,
        editors: Sequence[str] = DEFAULT,
        *,
        layer: int = 0,
        layers: Sequence[int] | None = None,
        edits: int = 100,
        others: int = 1000,
        search: ValueSearch = ValueSearch(),  # noqa: B008 - it is frozen
        tuning: Tuning = Tuning(),  # noqa: B008
        seed: int = 0,
    ):
        """Choose the editors, the block and the number of edits.

        Args:
          editors: names from `EDITORS`. The null controls are added.
          layer: the unrolled depth of the block whose MLP is edited.
          layers: the unrolled depths of the blocks that `memit` edits, in ascending order. The last
            one must be `layer`, because the same search finds the values. The default is `layer`
            alone.
          edits: maximum number of edits, over all roles of facts.
          others: number of prompts for locality.
          search: the settings of the search for v*.
          tuning: the settings of fine-tuning.
          seed: the seed of the choice of edits.

        Raises:
          InputError: an editor does not exist, a number is below 1, or `layers` does not ascend to
            `layer`.
        """
        unknown = [name for name in editors if name not in EDITORS]
        if unknown:
            raise InputError(f"no such editor: {unknown[0]!r}; choose from {', '.join(EDITORS)}")
        if min(edits, others) < 1:
            raise InputError(f"edits and others must be at least 1, got {edits} and {others}")
        self.editors, self.layer = tuple(dict.fromkeys(editors)), layer
        self.layers = (layer,) if layers is None else tuple(layers)
        if list(self.layers) != sorted({*self.layers, layer}) or self.layers[-1] != layer:
            raise InputError(f"layers must ascend to layer = {layer}, got {self.layers}")
        self.edits, self.others, self.seed = edits, others, seed
        self.search, self.tuning = search, tuning

    def options(self) -> dict[str, Any]:
        """Return all options of the instrument."""
        return {
            "editors": list(self.editors),
            "layer": self.layer,
            "layers": list(self.layers),
            "edits": self.edits,
            "others": self.others,
            "search": dict(vars(self.search)),
            "tuning": dict(vars(self.tuning)),
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
        edits = choose_edits(dataset, self.edits, self.seed, self.roles)
        if ORACLE in self.editors and has_thought(dataset):
            raise NotApplicable(
                f"the editor {ORACLE!r} teaches answers of one entity, but answers of this task "
                "begin with the bridge (see task.chain_of_thought); choose other editors"
            )
        inputs = self.inputs(dataset, edits)
        return Examples(inputs, groups=edits.groups, group=edits.group, clusters=edits.fact)

    def inputs(self, dataset: Dataset, edits: FactEdits) -> dict[str, Any]:
        """Return the prompts that edits need, which are the inputs of `measure`.

        Args:
          dataset: a dataset of a chain task.
          edits: the edits.
        """
        return {
            "case": consequences(dataset, edits, self.seed)._asdict(),
            "others": other_prompts(dataset, edits, self.others, self.seed)._asdict(),
            "facts": fact_prompts(dataset, edits)._asdict(),
            "moment": moment_prompts(dataset, self.seed),
        }

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Make every edit with every editor, and score it."""
        return self.measure_edits(model, params, jax.tree.map(jnp.asarray, inputs), key).scores

    def measure_edits(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> MeasuredEdits:
        """Make every edit with every editor, and score it.

        Args:
          model: the model.
          params: the parameters of one model.
          inputs: the inputs of `examples`.
          key: the random key of the random changes.
        """
        cases, rest = prepare(model, params, inputs["case"], inputs["others"], self.layer)
        made = self.changes(model, params, inputs, key)
        found = self.score(model, params, inputs, made, cases, rest)
        chosen = [found[name] for name in (*NULLS, *self.editors)]
        share, counted, size = (jnp.stack(part) for part in zip(*chosen, strict=True))
        scores = {"share": share.mT, "counted": counted.mT, "change": size}
        return MeasuredEdits(cases, made, found, scores)

    def score(
        self,
        model: Transformer,
        params: Params,
        inputs: Any,
        made: MadeEdits,
        cases: Case,
        rest: Rest,
    ) -> dict[str, ScoredEdits]:
        """Score the edits of every editor, and the null controls.

        Args:
          model: the model.
          params: the parameters of one model.
          inputs: the inputs of `examples`.
          made: the changes of all edits, from `changes`.
          cases: the consequences of all edits, from `prepare`.
          rest: the other prompts, from `prepare`.
        """
        layer = self.layer
        changed = {RANDOM: made.random} | ({ROME: made.rome} if ROME in self.editors else {})
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *changed.values())
        is_null = jnp.array([name in NULLS for name in changed])
        scored = score_changes(model, params, cases, rest, layer, stacked, is_null)
        found = {name: ScoredEdits(*(leaf[n] for leaf in scored)) for n, name in enumerate(changed)}
        found[NO_EDIT] = score_unchanged(model, params, cases, rest)
        for name, site, added in (
            (STATE, "hook_mlp_out", made.added),
            (RESID_MID, "hook_resid_mid", made.before_mlp),
        ):
            if name in self.editors:
                found[name] = score_states(model, params, cases, rest, layer, site, added)
        if MEMIT in self.editors:
            prompts = FactPrompts(**inputs["facts"])
            edited = edit_together(
                model, params, prompts, made.added, inputs["moment"], self.layers
            )
            shared = inputs["case"]["shared"]
            kept = kept_together(model, edited, rest)
            found[MEMIT] = score_together(model, params, edited, cases, kept, layer, shared)
        return found | {name: self.tune(model, params, cases, rest, name) for name in self._tuned}

    @property
    def _tuned(self) -> tuple[str, ...]:
        """The editors that fine-tune."""
        return tuple(name for name in self.editors if name in (W_OUT, WEIGHTS, ORACLE))

    def tune(
        self, model: Transformer, params: Params, cases: Case, rest: Rest, editor: str
    ) -> ScoredEdits:
        """Fine-tune the model on each edit, and score it.

        Args:
          model: the model.
          params: the parameters of one model.
          cases: the consequences of all edits.
          rest: the other prompts.
          editor: the name of an editor that fine-tunes.
        """
        chains = (cases.kind == KINDS.index("first hop")) | (
            cases.kind == KINDS.index("second hop")
        )
        is_even = jnp.arange(cases.kind.shape[1]) % 2 == 0
        taught = chains & is_even[None] & (editor == ORACLE)
        # The first prompt is the fact; chains follow it.
        length = 1 + 2 * MOST if editor == ORACLE else 1
        layer = self.layer if editor == W_OUT else None
        is_fact = cases.kind == KINDS.index("fact")

        def make(edit: Array) -> Params:
            columns = cases.tokens, cases.position, cases.after, taught | is_fact
            lesson = Lesson(*(column[edit, :length] for column in columns))
            return fine_tune(model, params, lesson, self.tuning, layer)

        return score_parameters(model, params, cases, rest, self.layer, make, taught)

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim that facts are stored once or twice, by the consequences of rank-one edits.

        Both claims need that nearly all edits succeed, that nearly all first-hop chains follow, and
        that nearly all other prompts keep their answers. The random change must have no such
        consequences. "stored_once" needs that nearly all second-hop chains follow, too.
        "stored_twice" needs that nearly none of them follow, and that nearly all keep the old
        answer. The edits are those of the first group of facts.
        """
        if ROME not in self.editors:
            return set()
        group = result.isel(group=0)

        def ends(editor: str, score: str) -> tuple[float, float]:
            """Return the ends of an interval; 0 and 1 if too few edits count."""
            of = group.sel(editor=editor, score=score)
            if of["share_n"] < MIN_CLUSTERS:
                return 0.0, 1.0
            return float(of["share_low"]), float(of["share_high"])

        def nearly_all(score: str) -> bool:
            return ends(ROME, score)[0] >= MIN_LOWER_BOUND

        def nearly_none(score: str, editor: str = ROME) -> bool:
            return ends(editor, score)[1] <= MAX_UPPER_BOUND

        hops = ("first hop", "second hop")
        if not all(map(nearly_all, ("efficacy", "first hop", "locality"))):
            return set()
        if not all(nearly_none(hop, RANDOM) for hop in hops):
            return set()
        if nearly_all("second hop"):
            return {Claim("stored_once", "e2")}
        if nearly_none("second hop") and nearly_all("stale second hop"):
            return {Claim("stored_twice", "e2")}
        return set()

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
        made = rome_edits(model, params, prompts, inputs["moment"], layer, self.search)
        before_mlp = search_states(
            model, params, prompts, layer, "hook_resid_mid", made.unit, self.search
        )
        rome = made.change
        random = jax.vmap(random_change)(jax.random.split(key, len(made.keys)), rome)
        return MadeEdits(made.keys, made.added, before_mlp, rome, random)


class MeasuredEdits(NamedTuple):
    """All edits of one model, with their scores.

    Attributes:
      cases: the consequences of the edits.
      made: the changes.
      by_editor: the scores of each editor and null control.
      scores: the outputs of the instrument.
    """

    cases: Case
    made: MadeEdits
    by_editor: dict[str, ScoredEdits]
    scores: dict[str, Array]


class MadeEdits(NamedTuple):
    """The changes of all edits of one model.

    Attributes:
      keys: the key k* of each edit.
      added: v* - W k* of each edit.
      before_mlp: the vector that is added before the MLP by the editor `resid_mid`.
      rome: the rank-one change of each edit.
      random: a random change of equal norm for each edit.
    """

    keys: Float[Array, "edit d_mlp"]
    added: Float[Array, "edit d_model"]
    before_mlp: Float[Array, "edit d_model"]
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
    width = len(POSITIONS) + has_thought(dataset)
    alone = np.column_stack([facts.head, world.n_entities + facts.relation])
    alone = np.pad(alone, ((0, 0), (0, width - 2)))
    trained = np.flatnonzero(truth["fact2"][: dataset.n_train] >= 0)
    rows = np.random.default_rng(seed).permutation(trained)[:_CHAINS]
    tokens = np.concatenate([alone, dataset.tokens[rows, :width]]).astype(np.int32)
    weight = first_occurrences(prefix_keys(tokens, dataset.n_vocab).T).T.astype(np.float32)
    weight[: len(alone), 2:] = 0  # padding
    return {"tokens": tokens, "weight": weight}
