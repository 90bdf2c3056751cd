"""Make models whose mechanism is known, as test cases for instruments.

There are three types of models:

- The weights of a planted model are constructed to implement a mechanism (see `model.planted`).
  Planted models are either fixed or drawn from a random family.
- An untrained model has no mechanism.
- Two models are trained on the worlds `scrambled` and `shadow`. In these worlds, chain answers do
  not follow from the facts that are taught as single facts.
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
from implicit_reasoning.model.planted.circuit import Circuit
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.training import train
from implicit_reasoning.training.directory import check_same
from implicit_reasoning.worlds import Dataset, build

SEEDS = (2000, 2001, 2002)
"""Seeds of the random family of planted models for scoring.

Seeds from 2000 on are reserved for scoring. Do not use them while you develop an instrument.
"""

TRAINED = ("scrambled", "shadow")
"""Names of the trained models. Their configurations are in `configs/`, at scale `pocket`."""

# With 160 facts and 640 chains, the world is large enough for statistics and small enough for CPUs.
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

# Scored models need more than the world above has: at least 20 bridges to which `O` facts lead, for
# claims about what single facts do, and training chains that determine most held-out chains, for
# models that go by chains. This world has 200 facts and 1,000 chains. 27 to 30 bridges of its
# composed chains come from `O` facts.
_SCORED = {"out_degree": 5, "phi": 2.5, "ood_fraction": 0.25}

_TRAINED_CHAINS = ("prefix_memoriser", "cluster_composer")
"""The planted models that know the training chains only, and not those of other splits."""


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model whose mechanism is known.

    Attributes:
      name: the name of the model.
      subject: the model, its checkpoints and its dataset.
      mechanism: the claims that are true or open for the last checkpoint.
      routes: the circuits of a planted model, one for each way to compute the answers of chains;
        empty for other models.
    """

    name: str
    subject: Subject
    mechanism: Mechanism
    routes: tuple[Circuit, ...] = ()


def known_models(
    cache: Path, seeds: Sequence[int] = SEEDS, configs: Mapping[str, ConfigDict] | None = None
) -> list[KnownModel]:
    """Return all models with known mechanisms.

    Args:
      cache: the folder with the runs of the trained models. A missing model is trained, which takes
        minutes.
      seeds: the seeds of the random family of planted models. For each seed, one model is made for
        each mechanism.
      configs: the configurations of the trained models, by name. The default is the configurations
        `scrambled` and `shadow` of the package at scale `pocket`.

    Raises:
      InputError: the cache contains a run with a different configuration.
    """
    found = planted_models()
    for seed in seeds:
        found += planted_models(seed)
    if configs is None:
        configs = {name: load_config(f"{name}:pocket") for name in TRAINED}
    trained = [trained_model(name, config, cache) for name, config in configs.items()]
    return [*found, untrained_model(), *trained]


def planted_models(seed: int | None = None) -> list[KnownModel]:
    """Return one planted model for each mechanism in `MECHANISMS`.

    Most models answer the chains of all splits. The model `prefix_memoriser` answers training
    chains only. Wrong answers to held-out chains distinguish this model from models that compose
    facts. The codes of the model `cluster_composer` come from training chains, and it does not
    answer chains that begin with an `O` fact.

    Args:
      seed: the seed of the random family; None means the fixed models.
    """
    dataset = scored_world(seed or 0)
    return [
        planted_model(
            name, dataset, ("train_ii",) if name in _TRAINED_CHAINS else dataset.splits, seed
        )
        for name in MECHANISMS
    ]


def scored_world(world_seed: int) -> Dataset:
    """Build the dataset of the planted models and the untrained model that `score` uses."""
    return small_world(**_SCORED, world_seed=world_seed)


def planted_model(
    name: str, dataset: Dataset, splits: Sequence[str], seed: int | None = None
) -> KnownModel:
    """Return the model of a planted mechanism.

    Args:
      name: the name of the mechanism, a key of `MECHANISMS`.
      dataset: the dataset. The model knows all facts of the world of the dataset.
      splits: the splits whose chains the model answers correctly.
      seed: the seed of the random family; None means the fixed model.
    """
    planted = MECHANISMS[name](knowledge(dataset, splits), seed)
    true, possible = (
        frozenset(Claim(*claim) for claim in claims) for claims in (planted.true, planted.open)
    )
    subject = InMemory(planted.model, dataset, [planted.params])
    return KnownModel(planted.name, subject, Mechanism(true, possible), planted.routes)


def small_world(**changes: Any) -> Dataset:
    """Build a small dataset, with 160 facts and 640 chains.

    Args:
      changes: new values for fields of `config.task`.
    """
    return build(SimpleNamespace(**_WORLD | changes))


def knowledge(dataset: Dataset, splits: Sequence[str]) -> Knowledge:
    """Return all facts of the world of a dataset, and the chains in the given splits."""
    world, truth = dataset.world, dataset.truth
    assert world is not None  # A dataset of chains has a world.
    chosen = np.isin(dataset.split, [dataset.splits.index(split) for split in splits])
    rows = np.flatnonzero(chosen & (truth["fact2"] >= 0))
    return Knowledge(
        facts=np.stack([world.facts.head, world.facts.relation, world.facts.tail]),
        chains=np.stack([truth[name][rows] for name in ("e1", "r1", "e2", "r2", "e3")], axis=1),
        n_entities=world.n_entities,
        n_relations=world.n_relations,
    )


def untrained_model() -> KnownModel:
    """Return a model at its initialization.

    The model does not know any fact, so all claims about e2 are false. The claims that a token is
    decodable at its own position are true. All other claims about tokens are open, because states
    at later positions can contain information about earlier tokens even in a random network.
    """
    dataset = scored_world(0)
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
    """Return a trained model from the cache.

    If the run is missing or unfinished, the model is trained first.

    Args:
      name: the name of the model, "scrambled" or "shadow".
      config: the configuration of the run.
      cache: the folder with the runs of the trained models.

    Raises:
      InputError: the cache contains a run with a different configuration.
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
    """Return the true and open claims about a model that is trained on the world `scrambled`.

    In this world, the answers to chains are random. The entity e2 is the training target of the
    prompt (e1, r1), so e2 is decodable at (last layer, r1). The model does not use e2 there,
    because no later computation reads this state. Chain answers do not follow from e2, so the model
    does not compose facts. Nevertheless, the model may use e2 to look up memorized chain answers.
    At all other states, it is open whether e2 is decodable.

    Args:
      depth: the number of blocks of the model.
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
    """Return the true and open claims about a model that is trained on the world `shadow`.

    In this world, single facts and chains use two different tables of facts. The training target of
    the prompt (e1, r1) is called the decoy. The decoy is therefore decodable at (last layer, r1).
    In the table of the chains, the tail of (e1, r1) is e2. Chain answers follow from e2, and not
    from the decoy. No single fact says e2, so nothing is grounded. It is open whether the model
    computes chain answers through a code of e2 or memorizes chain answers.

    Args:
      depth: the number of blocks of the model.
    """
    cells = _possible(depth, ("e2", "decoy", "answer"))
    taught = [("decoy", depth, "r1")]
    others = {cell for cell in cells if cell[0] != "decoy"}
    true = _inputs_matter(depth) | _claims(["decodable", "unused"], taught)
    possible = (
        _claims(["decodable", "unused"], cells)
        | _claims(["carried", "used"], _live(others, depth))
        | {Claim("factors", "e2"), Claim("memorised", "e2"), Claim("memorised", "decoy")}
    )
    return Mechanism(true, possible - true, STATE_KINDS)


Cell = tuple[str, int, str]

_TOKENS = ("e1", "r1", "r2")
_KNOWN_FROM = {"e2": "r1", "decoy": "r1", "e3": "r2", "answer": "r2"}


def _possible(depth: int, computed: Sequence[str]) -> set[Cell]:
    """Return the cells (variable, layer, position) that can represent their variable.

    A token can be represented at its own position from layer 0 on, and at later positions from
    layer 1 on. A computed variable can be represented from layer 1 on, at the first position whose
    prefix determines the variable and at all later positions.

    Args:
      depth: the number of blocks.
      computed: the variables that are computed from the tokens; keys of `_KNOWN_FROM`.
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
    """Return the cells whose state can affect the answer, which is read at position r2.

    These are all cells at position r2, and the cells at earlier positions below layer `depth`.
    """
    return {cell for cell in cells if cell[1] < depth or cell[2] == "r2"}


def _inputs_matter(depth: int) -> frozenset[Claim]:
    """Return the claims that are true of every model that answers chains.

    Each embedding represents its token, and the state at position r2 after the last layer
    represents the answer. For the layers between, only one thing is certain: the states at position
    r2 carry r2.
    """
    embedded = [(name, 0, name) for name in _TOKENS]
    last = [(name, depth, "r2") for name in (*_TOKENS, "answer")]
    middle = [("r2", layer, "r2") for layer in range(depth + 1)]
    return _claims(["decodable", "used"], [*embedded, ("answer", depth, "r2")]) | _claims(
        ["carried"], [*embedded, *last, *middle]
    )


def _claims(kinds: Sequence[str], cells: Iterable[Cell]) -> frozenset[Claim]:
    return frozenset(Claim(kind, *cell) for kind in kinds for cell in cells)
