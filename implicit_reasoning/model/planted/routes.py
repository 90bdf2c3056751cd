"""Routes from a prompt to its answer, and the claims that each route makes true.

A route computes the answer by two look-ups through the bridge, or by one look-up of the chain.
The blocks of a route are arguments, so that they can be chosen at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.model.planted.circuit import (
    Circuit,
    component_claims,
    moved_variables,
    stored_facts,
    trace_circuit,
)
from implicit_reasoning.model.planted.draft import POSITIONS, Draft
from implicit_reasoning.model.planted.truth import CellMark, Claims, MechanismMarks
from implicit_reasoning.model.planted.weights import Form, build
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.model.units import Fact, Head, Neuron, WholeModel

DEPTH = 4
LAST = DEPTH - 1

ModelKind = Literal["factors", "grounded", "memorised", "stored_once", "stored_twice"]


class Knowledge(NamedTuple):
    """The facts and chains that a model knows.

    The token of entity e is e, and the token of relation r is `n_entities + r`.

    Attributes:
      facts: `head, relation, tail`, one column per fact.
      chains: `e1, r1, e2, r2, e3`, one row per chain that a memoriser looks up, or from which a
        cluster composer learns its codes. A composer answers all chains that follow from the facts.
      n_entities, n_relations: number of entities and relations.
    """

    facts: Int[np.ndarray, "three fact"]
    chains: Int[np.ndarray, "chain five"]
    n_entities: int
    n_relations: int

    @property
    def n_possible(self) -> int:
        """The number of chains that follow from the facts."""
        head, _, tail = self.facts
        return int(np.bincount(head, minlength=self.n_entities)[tail].sum())


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose mechanism is known.

    Attributes:
      name: the name of the mechanism, with its seed.
      model, params: the model and its parameters, in the form that trained models have.
      true: claims that hold, `(kind, variable, unit)`; see `MechanismMarks` and `component_claims`.
      open: claims that count neither as true nor as false. All other claims are false.
      routes: the circuits through which the answer of a chain is computed, one per route. If there
        are two circuits, either one alone gives the right answer for most chains.
      moves: the variable that each copying head copies, including heads that no answer depends on.
      stores: the fact, or the chain (e1, r1, r2), that each storing neuron stores.
    """

    name: str
    model: Transformer
    params: Params
    true: Claims
    open: Claims
    routes: tuple[Circuit, ...]
    moves: Mapping[Head, str]
    stores: Mapping[Neuron, Fact | tuple[int, int, int]]


class Hops(NamedTuple):
    """The blocks of a route with two look-ups.

    Attributes:
      copy: the block that copies e1 to r1.
      table: the block that looks up e2 at r1.
      read: the block that copies e2 to r2.
      answer: the block that looks up the answer at r2.
    """

    copy: int
    table: int
    read: int
    answer: int

    @classmethod
    def draw_loops(cls, rng: np.random.Generator | None, n_loops: int) -> Hops:
        """Choose blocks such that each hop has the same blocks, in the first and the last loop.

        Args:
          rng: random generator. If it is None, the first block copies and looks up.
          n_loops: how often the blocks are applied, at least 2.
        """
        layers = DEPTH // n_loops
        table = 0 if rng is None else int(rng.integers(layers))
        copy = 0 if rng is None else int(rng.integers(table + 1))
        return cls(copy, table, DEPTH - layers + copy, DEPTH - layers + table)

    @classmethod
    def draw(cls, rng: np.random.Generator | None, between: int = 0) -> Hops:
        """Choose the blocks, at random if there is a random generator.

        Args:
          rng: random generator. If it is None, `copy` and `table` are 0, `read` and `answer` are 2,
            and `between` is ignored.
          between: minimum number of blocks strictly between `table` and `read`.
        """
        if rng is None:
            return cls(0, 0, 2, 2)
        table = int(rng.integers(LAST - between))
        read = int(rng.integers(table + 1 + between, DEPTH))
        return cls(int(rng.integers(table + 1)), table, read, int(rng.integers(read, DEPTH)))


class LookUp(NamedTuple):
    """The blocks of a route with one look-up.

    Attributes:
      entity: the block that copies e1 to r2.
      relation: the block that copies r1 to r2.
      answer: the block that looks up the answer at r2.
    """

    entity: int
    relation: int
    answer: int

    @classmethod
    def draw(cls, rng: np.random.Generator | None) -> LookUp:
        """Choose blocks at random; if `rng` is None, return the fixed blocks 0, 0 and 1."""
        if rng is None:
            return cls(0, 0, 1)
        answer = int(rng.integers(DEPTH))
        entity, relation = rng.integers(answer + 1, size=2)
        return cls(int(entity), int(relation), answer)


class MechanismBuilder:
    """Builder of a planted model: each method adds to the draft and to the ground truth."""

    def __init__(self, name: str, knowledge: Knowledge, seed: int | None, n_loops: int = 1):
        self.known = knowledge
        self.name = name if seed is None else f"{name}_{seed}"
        # The name is part of the random seed, so that two mechanisms with the same `seed` do not
        # get the same blocks.
        self.rng = None if seed is None else np.random.default_rng([seed, *name.encode()])
        self.draft = Draft(knowledge.n_entities, knowledge.n_relations, DEPTH, n_loops)
        self.truth = MechanismMarks(DEPTH)
        self._answers: list[int] = []  # indices of the tables that write the answer of a chain
        # The only chain that activates a neuron that stores a fact, by (table, column).
        self._single_chains: dict[tuple[int, int], tuple[int, int, int]] = {}

    def planted(
        self, *kinds: ModelKind, maybe: Sequence[ModelKind] = (), form: Form | None = None
    ) -> Planted:
        """Return the finished model.

        Args:
          *kinds: the kinds of claims about e2 and the whole model that are true.
          maybe: the kinds of such claims that are open.
          form: the form of the weights; by default the simplest one.
        """
        true, possible = self.truth.claims()
        of_model, open_ = ({(kind, "e2", WholeModel()) for kind in some} for some in (kinds, maybe))
        e1, r1, _, r2, _ = map(int, self.known.chains[0])
        model, params = build(self.draft, self.rng, form or Form(), (e1, r1, r2))
        routes = tuple(trace_circuit(self.draft, table) for table in self._answers)
        moves, stores = moved_variables(self.draft), stored_facts(self.draft)
        edges = EdgeGraph(model.spec, len(POSITIONS)).edges
        certain, uncertain = component_claims(
            routes, moves, stores, edges, rescaled=model.spec.normalization == "LN"
        )
        uncertain |= {
            ("stores", f"chain {chain}", self.draft.neurons[table][column])
            for (table, column), chain in self._single_chains.items()
        }
        return Planted(
            self.name,
            model,
            params,
            true | certain | of_model,
            possible | uncertain | open_,
            routes,
            moves,
            stores,
        )

    def bridge(
        self,
        copy: int,
        table: int,
        *codes: Int[np.ndarray, " fact"],
        asked: Bool[np.ndarray, " fact"] | None = None,
    ) -> None:
        """Add a head that copies e1 to r1, and neurons that look up the fact (e1, r1) there.

        Args:
          copy: the block that copies e1.
          table: the block that looks up the fact.
          *codes: codes to write; each is an array with one dimension for each fact.
          asked: for each fact, whether it is the first fact of a chain; by default true for all.
        """
        head, relation, _ = self.known.facts
        copied = self.draft.space(self.known.n_entities)
        self.draft.move(copy, "e1", "r1", self.draft.entity, copied, "e1")
        keys = [copied[head], self.draft.relation[relation]]
        self.draft.table(table, "r1", keys, codes, stores=self._facts(), asked=asked)
        self.truth.mark("code", "e1", "r1", copy + 1)
        self.truth.mark("code", "e2", "r1", table + 1)

    def two_hops(
        self, hops: Hops, bridge: Int[np.ndarray, " entity"], strength: float = 1.0
    ) -> None:
        """Add the route of a composer.

        Args:
          hops: the blocks of the route.
          bridge: the dimensions of the code of e2 at r1, one for each entity.
          strength: the number that the route adds to the output dimension of the answer.
        """
        draft, (head, relation, tail) = self.draft, self.known.facts
        self.bridge(hops.copy, hops.table, bridge[tail], asked=np.isin(tail, head))
        arrived = draft.space(self.known.n_entities)
        draft.move(hops.read, "r1", "r2", bridge, arrived, "e2")
        keys, values = [arrived[head], draft.relation[relation]], [draft.output[tail]]
        asked = np.isin(head, tail)
        self._answer(hops.answer, keys, values, strength, stores=self._facts(), asked=asked)

        self._bridge_is_used(hops)

    def one_store(self, hops: Hops) -> None:
        """Add the route of a looped composer, in which both hops use the same neurons.

        In every loop, a head copies e1 to r1, another head copies e2 from r1 to r2, and the neurons
        look up a fact at each position. The fact (e1, r1) is found in the first loop, and the fact
        (e2, r2) in the last loop.

        Args:
          hops: the blocks of the route. The blocks of the second hop are those of the first hop, in
            the last loop.
        """
        draft, (head, relation, tail) = self.draft, self.known.facts
        found = draft.space(self.known.n_entities)
        draft.move(hops.copy, "e1", "r1", draft.entity, found, "e1", once=True)
        draft.move(hops.read, "r1", "r2", draft.output, found, "e2")
        keys, values = [found[head], draft.relation[relation]], [draft.output[tail]]
        first, second = np.isin(tail, head), np.isin(head, tail)
        store: dict[str, Any] = {"stores": self._facts(), "anywhere": True}
        draft.table(hops.table, "r1", keys, values, asked=first, **store)
        self._answer(hops.answer, keys, values, asked=second, same_as=0, **store)
        self.truth.mark("code", "e1", "r1", hops.copy + 1)
        self.truth.mark("code", "e2", "r1", hops.table + 1)
        self._bridge_is_used(hops)

    def clusters(self, hops: Hops) -> None:
        """Add the route of a cluster composer, and a code of e2 by which it answers single facts.

        The chains of the `Knowledge` are its training chains. A prefix that shares a last relation
        with another prefix of the same bridge gets the code of its bridge. Any other prefix of a
        chain gets a code of its own, and a prefix without a chain gets no code. The second hop
        looks up pairs of a code and r2, as far as a chain has them. It does not read the code of e2
        that the fact sets. A neuron that looks up the code of one prefix is active for one chain
        only. It is therefore open whether it stores the chain, or the second fact of the chain.

        Args:
          hops: the blocks of the route.
        """
        draft, (head, relation, tail) = self.draft, self.known.facts
        n_entities, n_facts = self.known.n_entities, len(head)
        e1, r1, e2, r2, e3 = self.known.chains.T
        number = np.zeros((n_entities, self.known.n_relations), np.int64)
        number[head, relation] = np.arange(n_facts)
        prefix = number[e1, r1]
        # A chain is shared if another chain has its bridge and its last relation.
        cell = e2 * self.known.n_relations + r2
        shared = np.zeros(n_facts, bool)
        shared[prefix[np.bincount(cell)[cell] > 1]] = True
        alone = np.setdiff1d(prefix, np.flatnonzero(shared))
        cluster = tail.copy()  # clusters are numbered after the entities for prefixes on their own
        cluster[alone] = n_entities + np.arange(len(alone))
        # Sizes are rounded up, so that the shapes of the model hardly depend on the chains.
        n_codes = n_entities * (1 + -(-len(alone) // n_entities))
        draft.min_neurons = 3 * n_facts + n_codes
        code, arrived = (draft.space(n_codes) for _ in range(2))

        self.bridge(hops.copy, hops.table, draft.output[tail], asked=np.zeros(n_facts, bool))
        first = np.unique(prefix)
        copied = draft.moves[-1].write
        keys = [copied[head[first]], draft.relation[relation[first]]]
        draft.table(hops.table, "r1", keys, [code[cluster[first]]], stores=self._facts()[first])
        draft.move(hops.read, "r1", "r2", code, arrived, "cluster")
        rows = np.unique(np.stack([cluster[prefix], r2, e2, e3]), axis=1)
        keys, values = [arrived[rows[0]], draft.relation[rows[1]]], [draft.output[rows[3]]]
        self._answer(hops.answer, keys, values, stores=rows[[2, 1]].T)
        for column in np.flatnonzero(rows[0] >= n_entities).tolist():
            of = alone[rows[0, column] - n_entities]
            chain = int(head[of]), int(relation[of]), int(rows[1, column])
            self._single_chains[self._answers[-1], column] = chain
        self._bridge_is_used(hops)

    def look_up(self, blocks: LookUp, *, certain: bool) -> None:
        """Add the route of a memoriser.

        Args:
          blocks: the blocks of the route.
          certain: False if another route outweighs this one. The claims about this route are then
            open.
        """
        draft, (e1, r1, _, r2, e3) = self.draft, self.known.chains.T
        entity, relation = draft.space(self.known.n_entities), draft.space(self.known.n_relations)
        draft.move(blocks.entity, "e1", "r2", draft.entity, entity, "e1")
        draft.move(blocks.relation, "r1", "r2", draft.relation, relation, "r1")
        keys = [entity[e1], relation[r1], draft.relation[r2]]
        self._answer(blocks.answer, keys, [draft.output[e3]], stores=self._chains())

        mark = self.truth.mark
        used: CellMark = "used" if certain else "maybe used"
        carried: CellMark = "carried" if certain else "maybe carried"
        for variable, block in (("e1", blocks.entity), ("r1", blocks.relation)):
            mark("code", variable, "r2", block + 1)
            mark(used, variable, variable, 0, block)
            mark(used, variable, "r2", block + 1, blocks.answer)
            mark(carried, variable, variable, 0, block)
            mark(carried, variable, "r2", block + 1)
        self._answered(blocks.answer, used, carried)

    def prefixes(self, hops: Hops) -> None:
        """Add the route through an index of the prefix (e1, r1), and an unused code of e2."""
        draft, facts, mark = self.draft, self.known.facts, self.truth.mark
        e1, r1, _, r2, e3 = self.known.chains.T
        prefix, arrived = (draft.space(facts.shape[1]) for _ in range(2))
        number = np.zeros((self.known.n_entities, self.known.n_relations), np.int64)
        number[facts[0], facts[1]] = np.arange(facts.shape[1])
        asked = np.isin(np.arange(facts.shape[1]), number[e1, r1])
        self.bridge(hops.copy, hops.table, prefix, draft.output[facts[2]], asked=asked)
        draft.move(hops.read, "r1", "r2", prefix, arrived, "prefix")
        keys = [arrived[number[e1, r1]], draft.relation[r2]]
        self._answer(hops.answer, keys, [draft.output[e3]], stores=self._chains())

        self._first_hop_is_used(hops)
        # The index of a prefix determines e1 and r1, but a linear probe cannot decode e1 and r1
        # from the index of an unseen prefix.
        for variable in ("e1", "r1"):
            mark("maybe used", variable, "r1", hops.table + 1, hops.read)
            mark("maybe used", variable, "r2", hops.read + 1)
        if len(self.known.chains) < self.known.n_possible:
            mark("not carried", "e2", "r1", 0)
        self._answered(hops.answer)

    def _bridge_is_used(self, hops: Hops) -> None:
        mark = self.truth.mark
        self._first_hop_is_used(hops)
        mark("code", "e2", "r2", hops.read + 1)
        mark("used", "e2", "r1", hops.table + 1, hops.read)
        mark("used", "e2", "r2", hops.read + 1, hops.answer)
        mark("carried", "e2", "r1", hops.table + 1, hops.read)
        mark("carried", "e2", "r2", hops.read + 1)
        self._answered(hops.answer)

    def _facts(self) -> Int[np.ndarray, "fact 2"]:
        return self.known.facts[:2].T

    def _chains(self) -> Int[np.ndarray, "chain 3"]:
        return self.known.chains[:, [0, 1, 3]]

    def _answer(self, block: int, *keys_and_values: Any, **about: Any) -> None:
        """Add a table at r2 that writes the answer; see `Draft.table`."""
        self._answers.append(len(self.draft.tables))
        self.draft.table(block, "r2", *keys_and_values, **about)

    def _first_hop_is_used(self, hops: Hops) -> None:
        mark = self.truth.mark
        mark("used", "e1", "e1", 0, hops.copy)
        mark("used", "e1", "r1", hops.copy + 1, hops.table)
        mark("used", "r1", "r1", 0, hops.table)
        mark("carried", "e1", "e1", 0, hops.copy)
        mark("carried", "e1", "r1", hops.copy + 1, hops.read)
        mark("carried", "r1", "r1", 0, hops.read)
        for variable in ("e1", "r1"):
            mark("carried", variable, "r2", hops.read + 1)

    def _answered(self, block: int, used: CellMark = "used", carried: CellMark = "carried") -> None:
        mark = self.truth.mark
        mark(used, "r2", "r2", 0, block)
        mark("code", "answer", "r2", block + 1)
        mark(used, "answer", "r2", block + 1)
        mark(carried, "answer", "r2", block + 1)
