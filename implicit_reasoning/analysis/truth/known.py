"""Models of known mechanism, as subjects that any instrument can be run on.

Planted ones (`model.planted`), fixed and of a random family; one that was never trained; and two
that were trained on worlds in which only one mechanism can do (`scrambled`, `shadow`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.analysis.claims import STATE_KINDS, Claim, Mechanism
from implicit_reasoning.analysis.subject import InMemory, Subject
from implicit_reasoning.config import load_config
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.planted import MECHANISMS, Knowledge
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training import train
from implicit_reasoning.training.directory import check_same
from implicit_reasoning.worlds import Dataset, build

SEEDS = (2000, 2001, 2002)
"""Of the random family. Seeds from 2000 on are for scoring: never look at one while you write."""

TRAINED = ("scrambled", "shadow")
"""Configurations of `configs/`, at scale `pocket`."""

# Facts enough for statistics, and a width that a CPU can sweep: 160 facts, 640 chains.
_WORLD = {
    "name": "composition",
    "n_entities": 40,
    "n_relations": 6,
    "out_degree": 4,
    "ood_fraction": 0.1,
    "phi": 2.0,
    "hops": 2,
    "holdout": 0.2,
    "probes": 1_000,
    "world_seed": 0,
    "mixed_chains": True,
    "order": "e r r",
    "names": 0,
    "end_token": False,
}


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model, and what is true of its last checkpoint."""

    name: str
    subject: Subject
    mechanism: Mechanism


def known_models(
    cache: Path, seeds: Sequence[int] = SEEDS, configs: Mapping[str, ConfigDict] | None = None
) -> list[KnownModel]:
    """All of them.

    Args:
      cache: where trained ones are kept; what is not there is trained first (minutes each).
      seeds: of the random family; each has a world of its own, and one model a mechanism.
      configs: of the trained ones, by name (`TRAINED`); by default those that come with
        the package, at scale `pocket`.

    Raises:
      InputError: the cache holds runs of other configurations.
    """
    found = planted_models()
    for seed in seeds:
        found += planted_models(seed)
    if configs is None:
        configs = {name: load_config(f"{name}:pocket") for name in TRAINED}
    trained = [trained_model(name, config, cache) for name, config in configs.items()]
    return [*found, untrained_model(), *trained]


def planted_models(seed: int | None = None) -> list[KnownModel]:
    """One model of every planted mechanism; with a seed, one of the random family.

    `prefix_memoriser` knows the training chains only: the others tell what it does.
    """
    dataset = small_world(world_seed=seed or 0)
    return [
        planted_model(
            name, dataset, ("train_ii",) if name == "prefix_memoriser" else dataset.splits, seed
        )
        for name in MECHANISMS
    ]


def planted_model(
    name: str, dataset: Dataset, splits: Sequence[str], seed: int | None = None
) -> KnownModel:
    """A planted mechanism in a world, that knows all its facts, and the chains of `splits`."""
    planted = MECHANISMS[name](knowledge(dataset, splits), seed)
    true, possible = (
        frozenset(Claim(*claim) for claim in claims) for claims in (planted.true, planted.open)
    )
    subject = InMemory(planted.model, dataset, [planted.params])
    return KnownModel(planted.name, subject, Mechanism(true, possible))


def small_world(**changes: Any) -> Dataset:
    """A world that a CPU sweeps in seconds; `changes` are fields of `config.task`."""
    return build(SimpleNamespace(**_WORLD | changes))


def knowledge(dataset: Dataset, splits: Sequence[str]) -> Knowledge:
    """All facts of a dataset's world, and its chains of some splits."""
    world, truth = dataset.world, dataset.truth
    assert world is not None  # `build` made it of facts
    chosen = np.isin(dataset.split, [dataset.splits.index(split) for split in splits])
    rows = np.flatnonzero(chosen & (truth["fact2"] >= 0))
    return Knowledge(
        facts=np.stack([world.facts.head, world.facts.relation, world.facts.tail]),
        chains=np.stack([truth[name][rows] for name in ("e1", "r1", "e2", "r2", "e3")], axis=1),
        n_entities=world.n_entities,
        n_relations=world.n_relations,
    )


def untrained_model() -> KnownModel:
    """A model at its initialisation, in the world of the fixed planted ones.

    It answers nothing, so nothing is computed through e2, and e2 is nowhere. Tokens can be read
    where they stand. Open is all else about them: a random network mixes earlier tokens into later
    states, linearly, and passes on what it is given.
    """
    dataset = small_world()
    spec = Spec(
        d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx, n_layers=2, d_model=128, n_heads=4, d_mlp=512
    )
    model = Transformer(spec)
    everywhere = range(spec.depth + 1)
    true = _claims(["decodable"], [(name, ln, name) for name in _TOKENS for ln in everywhere])
    tokens = _possible(spec.depth, ())
    possible = (
        _claims(["decodable", "unused"], tokens)
        | _claims(["carried", "used"], _live(tokens, spec.depth))
    ) - true
    subject = InMemory(model, dataset, [jax.jit(model.init)(jax.random.key(0))])
    return KnownModel("untrained", subject, Mechanism(true, possible, STATE_KINDS))


def trained_model(name: str, config: ConfigDict, cache: Path) -> KnownModel:
    """A trained model from the cache; it is trained now if it is not there, or not finished.

    Raises:
      InputError: the cache holds a run of another configuration.
    """
    workdir = cache / name
    run = Run(workdir) if Layout(workdir).config.exists() else None
    if run is not None:
        check_same(run.files, config)
    if run is None or run.steps[-1:] != (config.steps,):
        run = train(config, workdir)
    mechanism = {"scrambled": scrambled_mechanism, "shadow": shadow_mechanism}[name]
    return KnownModel(name, run, mechanism(run.model.spec.depth))


def scrambled_mechanism(depth: int) -> Mechanism:
    """What must be true of a model that learnt `scrambled`: atomic facts, and random answers.

    e2 is the target of the atomic prompt, so it is in the last state at r1; nothing reads that
    state any more. Answers do not follow from e2, so they are not computed from it, although a
    memoriser may happen to use it as one of its keys. Where else e2 is, is open.
    """
    cells = _possible(depth, ("e2", "e3", "answer"))
    answers_flow = {cell for cell in cells if cell[0] not in ("e2", "e3")}
    taught = [("e2", depth, "r1")]
    true = _inputs_matter(depth) | _claims(["decodable", "unused"], taught)
    possible = (
        _claims(["decodable", "unused"], cells)
        | _claims(["carried"], _live(cells, depth))
        | _claims(["used"], _live(answers_flow, depth))
    )
    return Mechanism(true | {Claim("memorised", "e2")}, possible - true, STATE_KINDS)


def shadow_mechanism(depth: int) -> Mechanism:
    """What must be true of a model that learnt `shadow`: facts of one table, chains of another.

    The decoy is the target of the atomic prompt, in the last state at r1, and no answer follows
    from it. Whether e2, the bridge of the chains' own table, is computed or memorised is open.
    """
    cells = _possible(depth, ("e2", "decoy", "answer"))
    taught = [("decoy", depth, "r1")]
    others = {cell for cell in cells if cell[0] != "decoy"}
    true = _inputs_matter(depth) | _claims(["decodable", "unused"], taught)
    possible = (
        _claims(["decodable", "unused"], cells)
        | _claims(["carried", "used"], _live(others, depth))
        | {Claim("composes", "e2"), Claim("memorised", "e2"), Claim("memorised", "decoy")}
    )
    return Mechanism(true, possible - true, STATE_KINDS)


Cell = tuple[str, int, str]

_TOKENS = ("e1", "r1", "r2")
_KNOWN_FROM = {"e2": "r1", "decoy": "r1", "e3": "r2", "answer": "r2"}


def _possible(depth: int, computed: Sequence[str]) -> set[Cell]:
    """Where a causal model can have a variable: not before it is determined by what was read.

    Tokens from the embeddings on at their own position, and one block later at those that follow;
    what is `computed` from them after one block, at the earliest.
    """
    cells = set()
    for name in (*_TOKENS, *computed):
        start = _TOKENS.index(_KNOWN_FROM.get(name, name))
        for place in range(start, len(_TOKENS)):
            at_home = name in _TOKENS and place == start
            first = 0 if at_home else 1
            cells |= {(name, layer, _TOKENS[place]) for layer in range(first, depth + 1)}
    return cells


def _live(cells: set[Cell], depth: int) -> set[Cell]:
    """Those that a later state at r2 can read: at other positions, all but the last layer's."""
    return {cell for cell in cells if cell[1] < depth or cell[2] == "r2"}


def _inputs_matter(depth: int) -> frozenset[Claim]:
    """Of a model that answers chains: tokens come in at the bottom, and the answer is at the top.

    Only at r2 is it certain what the states between carry: r2 itself.
    """
    embedded = [(name, 0, name) for name in _TOKENS]
    last = [(name, depth, "r2") for name in (*_TOKENS, "answer")]
    middle = [("r2", layer, "r2") for layer in range(depth + 1)]
    return _claims(["decodable", "used"], [*embedded, ("answer", depth, "r2")]) | _claims(
        ["carried"], [*embedded, *last, *middle]
    )


def _claims(kinds: Sequence[str], cells: Iterable[Cell]) -> frozenset[Claim]:
    return frozenset(Claim(kind, *cell) for kind in kinds for cell in cells)
