"""The planted models: two ways to answer, both at once, and two that carry a code in vain.

Each answers the facts and the chains that it is given, without exception. A seed moves the same
mechanism to random blocks, heads and directions; without one it stands where the docstring says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.model.planted.draft import Draft
from implicit_reasoning.model.planted.truth import Claims, Truth
from implicit_reasoning.model.transformer import Params, Transformer

DEPTH = 4
LAST = DEPTH - 1


class Knowledge(NamedTuple):
    """What a model is to know; entity e is token e, relation r is token `n_entities + r`.

    Attributes:
      facts: `head, relation, tail`, a column each.
      chains: `e1, r1, e2, r2, e3`, a row each: those that may be looked up. Who composes knows
        all that follow from the facts.
      n_entities, n_relations: how many there are.
    """

    facts: Int[np.ndarray, "three fact"]
    chains: Int[np.ndarray, "chain five"]
    n_entities: int
    n_relations: int

    @property
    def n_possible(self) -> int:
        """How many chains follow from the facts."""
        head, _, tail = self.facts
        return int(np.bincount(head, minlength=self.n_entities)[tail].sum())


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose mechanism is known.

    Attributes:
      name: of the mechanism, with its seed.
      model, params: as from training.
      true: claims that hold: `(kind, variable, layer, pos)`, see `Truth`.
      open: claims that one may differ on; all others are false.
    """

    name: str
    model: Transformer
    params: Params
    true: Claims
    open: Claims


def composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Computes e2 at r1, moves it to r2, and looks (e2, r2) up among the same facts there.

    The code of e2 is the one that is unembedded, as the atomic prompt (e1, r1) demands. Blocks 0
    (bridge) and 2 (answer).
    """
    plan = _Plan(knowledge, seed)
    plan.two_hops(_Hops.draw(plan.rng), bridge=plan.draft.output)
    return plan.planted("composer", composes=True)


def hidden_composer(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """The same, but the bridge's code is not the one that is unembedded.

    What answers the atomic prompt is derived from it in the last block: a lens sees e2 there only.
    """
    plan = _Plan(knowledge, seed)
    bridge = plan.draft.space(knowledge.n_entities)
    plan.two_hops(_Hops.draw(plan.rng), bridge=bridge)
    plan.draft.table(LAST, "r1", [bridge], [plan.draft.output])
    plan.truth.mark("code", "e2", "r1", DEPTH)
    return plan.planted("hidden_composer", composes=True)


def memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Moves e1 and r1 to r2 and looks the three up, a neuron a chain.

    Its bridge at r1 is written by the last block, for the atomic prompt only, when no later block
    can read it. Blocks 0 (moves) and 1 (answer).
    """
    plan = _Plan(knowledge, seed)
    plan.look_up(_LookUp.draw(plan.rng), certain=True)
    plan.bridge(LAST, LAST, plan.draft.output[knowledge.facts[2]])
    return plan.planted("memoriser", composes=False)


def parallel(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Composes and looks up; either would do alone, and where they differ the composition wins.

    Removing the bridge changes no answer; *replacing* it does: it is used all the same.
    """
    plan = _Plan(knowledge, seed)
    plan.two_hops(_Hops.draw(plan.rng), bridge=plan.draft.output, strength=2.0)
    plan.look_up(_LookUp.draw(plan.rng), certain=False)
    return plan.planted("parallel", composes=None)


def idle_copy(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """A composer that also copies the bridge to r2 a block too early, where nothing reads it.

    e2 is decodable at two places, and used at the one. Block 1 (copy), else as `composer`.
    """
    plan = _Plan(knowledge, seed)
    hops = _Hops.draw(plan.rng)
    # Read within one block, so that the idle code is the only one of e2 at r2 before the answer.
    hops = hops._replace(answer=hops.read)
    idle = hops.table + 1 if plan.rng is None else int(plan.rng.integers(hops.table + 1, DEPTH))
    plan.two_hops(hops, bridge=plan.draft.output)
    copied = plan.draft.space(knowledge.n_entities)
    plan.draft.move(idle, "r1", "r2", plan.draft.output, copied)
    plan.truth.mark("code", "e2", "r2", idle + 1)
    return plan.planted("idle_copy", composes=True)


def prefix_memoriser(knowledge: Knowledge, seed: int | None = None) -> Planted:
    """Numbers the prefix (e1, r1) at r1, and looks (that number, r2) up at r2.

    The code of e2 stands beside that of the prefix, at the same layers and of the same norm, and
    is not used. Moving the whole state to another chain moves the prefix too: the answer follows
    as if the bridge were used, if that chain is known. Give it some of the chains only, and the
    others tell. Blocks 0 (bridge and prefix) and 2 (answer).
    """
    plan = _Plan(knowledge, seed)
    plan.prefixes(_Hops.draw(plan.rng))
    return plan.planted("prefix_memoriser", composes=False)


MECHANISMS: dict[str, Callable[[Knowledge, int | None], Planted]] = {
    mechanism.__name__: mechanism
    for mechanism in (composer, hidden_composer, memoriser, parallel, idle_copy, prefix_memoriser)
}


class _Hops(NamedTuple):
    """Blocks of a route with two look-ups: e1 to r1, look up, on to r2, look up."""

    copy: int
    table: int
    read: int
    answer: int

    @classmethod
    def draw(cls, rng: np.random.Generator | None) -> _Hops:
        if rng is None:
            return cls(0, 0, 2, 2)
        table = int(rng.integers(LAST))
        read = int(rng.integers(table + 1, DEPTH))
        return cls(int(rng.integers(table + 1)), table, read, int(rng.integers(read, DEPTH)))


class _LookUp(NamedTuple):
    """Blocks of a route with one look-up: e1 to r2, r1 to r2, look up."""

    entity: int
    relation: int
    answer: int

    @classmethod
    def draw(cls, rng: np.random.Generator | None) -> _LookUp:
        if rng is None:
            return cls(0, 0, 1)
        answer = int(rng.integers(DEPTH))
        entity, relation = rng.integers(answer + 1, size=2)
        return cls(int(entity), int(relation), answer)


class _Plan:
    """A draft and its truth, grown together: each part of a mechanism says what it makes true."""

    def __init__(self, knowledge: Knowledge, seed: int | None):
        self.known = knowledge
        self.seed = seed
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.draft = Draft(knowledge.n_entities, knowledge.n_relations, DEPTH)
        self.truth = Truth(DEPTH)

    def planted(self, name: str, composes: bool | None) -> Planted:
        """The model; `composes` is None where it both composes and looks up."""
        true, possible = self.truth.claims()
        through = ("composes", "e2", -1, "")
        looked_up = ("memorised", "e2", -1, "")
        true |= {looked_up} if composes is False else {through}
        possible |= {looked_up} if composes is None else frozenset()
        model, params = self.draft.build(self.rng)
        name = name if self.seed is None else f"{name}_{self.seed}"
        return Planted(name, model, params, true, possible)

    def bridge(self, copy: int, table: int, *codes: Int[np.ndarray, "fact"]) -> None:
        """Copy e1 to r1 and look the fact up there: each of `codes` has a dimension for a fact."""
        head, relation, _ = self.known.facts
        copied = self.draft.space(self.known.n_entities)
        self.draft.move(copy, "e1", "r1", self.draft.entity, copied)
        self.draft.table(table, "r1", [copied[head], self.draft.relation[relation]], codes)
        self.truth.mark("code", "e1", "r1", copy + 1)
        self.truth.mark("code", "e2", "r1", table + 1)

    def two_hops(
        self, hops: _Hops, bridge: Int[np.ndarray, "entity"], strength: float = 1.0
    ) -> None:
        """The route of a composer."""
        draft, (head, relation, tail) = self.draft, self.known.facts
        self.bridge(hops.copy, hops.table, bridge[tail])
        arrived = draft.space(self.known.n_entities)
        draft.move(hops.read, "r1", "r2", bridge, arrived)
        keys = [arrived[head], draft.relation[relation]]
        draft.table(hops.answer, "r2", keys, [draft.output[tail]], strength)

        mark = self.truth.mark
        self._first_hop_is_used(hops)
        mark("code", "e2", "r2", hops.read + 1)
        mark("used", "e2", "r1", hops.table + 1, hops.read)
        mark("used", "e2", "r2", hops.read + 1, hops.answer)
        mark("carried", "e2", "r1", hops.table + 1, hops.read)
        mark("carried", "e2", "r2", hops.read + 1)
        self._answered(hops.answer)

    def look_up(self, blocks: _LookUp, *, certain: bool) -> None:
        """The route of a memoriser; not `certain` where another route outweighs it."""
        draft, (e1, r1, _, r2, e3) = self.draft, self.known.chains.T
        entity, relation = draft.space(self.known.n_entities), draft.space(self.known.n_relations)
        draft.move(blocks.entity, "e1", "r2", draft.entity, entity)
        draft.move(blocks.relation, "r1", "r2", draft.relation, relation)
        keys = [entity[e1], relation[r1], draft.relation[r2]]
        draft.table(blocks.answer, "r2", keys, [draft.output[e3]])

        mark = self.truth.mark
        for variable, block in (("e1", blocks.entity), ("r1", blocks.relation)):
            mark("code", variable, "r2", block + 1)
            mark("used" if certain else "maybe used", variable, variable, 0, block)
            mark("used" if certain else "maybe used", variable, "r2", block + 1, blocks.answer)
            mark("carried" if certain else "maybe carried", variable, variable, 0, block)
            mark("carried" if certain else "maybe carried", variable, "r2", block + 1)
        if certain:
            self._answered(blocks.answer)
        else:
            mark("maybe used", "r2", "r2", 0, blocks.answer)
            mark("code", "answer", "r2", blocks.answer + 1)
            mark("maybe used", "answer", "r2", blocks.answer + 1)

    def prefixes(self, hops: _Hops) -> None:
        """The route through a number for each prefix, with a bridge beside it."""
        draft, facts, mark = self.draft, self.known.facts, self.truth.mark
        e1, r1, _, r2, e3 = self.known.chains.T
        prefix, arrived = (draft.space(facts.shape[1]) for _ in range(2))
        self.bridge(hops.copy, hops.table, prefix, draft.output[facts[2]])
        draft.move(hops.read, "r1", "r2", prefix, arrived)
        number = np.zeros((self.known.n_entities, self.known.n_relations), np.int64)
        number[facts[0], facts[1]] = np.arange(facts.shape[1])
        keys = [arrived[number[e1, r1]], draft.relation[r2]]
        draft.table(hops.answer, "r2", keys, [draft.output[e3]])

        self._first_hop_is_used(hops)
        for variable in ("e1", "r1"):  # a prefix's number says both, if not linearly
            mark("maybe used", variable, "r1", hops.table + 1, hops.read)
            mark("maybe used", variable, "r2", hops.read + 1)
        if len(self.known.chains) < self.known.n_possible:
            mark("not carried", "e2", "r1", 0)
        self._answered(hops.answer)

    def _first_hop_is_used(self, hops: _Hops) -> None:
        mark = self.truth.mark
        mark("used", "e1", "e1", 0, hops.copy)
        mark("used", "e1", "r1", hops.copy + 1, hops.table)
        mark("used", "r1", "r1", 0, hops.table)
        mark("carried", "e1", "e1", 0, hops.copy)
        mark("carried", "e1", "r1", hops.copy + 1, hops.read)
        mark("carried", "r1", "r1", 0, hops.read)
        for variable in ("e1", "r1"):
            mark("carried", variable, "r2", hops.read + 1)

    def _answered(self, block: int) -> None:
        mark = self.truth.mark
        mark("used", "r2", "r2", 0, block)
        mark("code", "answer", "r2", block + 1)
        mark("used", "answer", "r2", block + 1)
        mark("carried", "answer", "r2", block + 1)
