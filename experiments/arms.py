"""The arms of all studies, and the runs that each study reads: the table behind `runs.py`.

An arm is a file of `configs/` with changes. A run of an arm has a world seed and an initialization
seed. `STUDIES` lists the arms and seeds of every study.

The sweeps of `phi_and_weight_decay.py` and `launchers.py` are not in the table, because no further
study reads their trials. These scripts train the sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EPYC, XEON = "a core of an AMD EPYC", "a core of an Intel Xeon"

Seeds = Sequence[tuple[int, int]]
"""World seed and initialization seed of each run."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in scale and seeds.

    Attributes:
      file: name of the file in `configs/`, without `.py`.
      took: minutes of training and the hardware, by scale. With several runs, `took` is the time of
        the fastest run, because slower runs shared their core with other work.
      suffix: suffix of the scale in the argument of `get_config`.
      changes: values by dotted name of the field.
      continues: arm whose last checkpoint is the start of the runs, with the same seeds; empty if
        the runs start from a random initialization.
    """

    file: str
    took: Mapping[str, tuple[float, str]]
    suffix: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    continues: str = ""


_RARELY = {"evaluation.every": 250}
"""Evaluations every 50 steps take a third of the time of a run of the ladder at `pocket`."""

SMOKE_WORLDS = {
    "ladder": {"task.n_entities": 24, "task.n_relations": 5, "task.facts_per_rung": 2},
    "cue_conflict": {
        "task.n_entities": 30,
        "task.n_relations": 8,
        "task.out_degree": 7,
        "task.facts_per_count": 1,
    },
}
"""Settings at scale `smoke` of tasks that need more entities than the other tasks."""

_LIKE_LADDER = {
    **_RARELY,
    "steps": 10_000,
    "optimizer.weight_decay": 0.3,
    "task.n_relations": 20,
    "task.phi": 5.0,
}
"""The world, the steps and the weight decay of `ladder.py:pocket`, for other tasks."""

_BY_DOUBLING = {**_RARELY, "checkpoints.per_doubling": 8, "evaluation.per_doubling": 8}
"""Checkpoints and evaluations that are dense on a log scale, for events before step 250."""

_TAUGHT = {**_LIKE_LADDER, "steps": 2_000, "evaluation.every": 100, "checkpoints.every": 100}

ARMS = {
    "composition": Arm("composition", {"pocket": (4.8, EPYC), "desk": (39.8, EPYC)}),
    "shadow": Arm("shadow", {"pocket": (4.6, EPYC), "desk": (29.6, EPYC)}),
    "scrambled": Arm("scrambled", {"pocket": (4.6, EPYC), "desk": (36.0, XEON)}),
    "tied": Arm("composition", {"pocket": (8.8, EPYC)}, changes={"model.tied": True}),
    "comparison": Arm("comparison", {"pocket": (9.0, EPYC)}),
    "complex": Arm("complex", {"pocket": (7.7, EPYC)}),
    "held_out_id_triples": Arm("held_out_id_triples", {"pocket": (4.7, EPYC)}),
    "in_context": Arm("in_context", {"pocket": (1.1, EPYC)}),
    "in_context_by_doubling": Arm("in_context", {}, changes=_BY_DOUBLING),
    # The saved runs are from before the configuration at `pocket` had a larger eps.
    "modular_addition": Arm(
        "modular_addition", {"pocket": (1.9, EPYC)}, changes={"optimizer.eps": 1e-8}
    ),
    "modular_addition_larger_eps": Arm("modular_addition", {}),
    "ood_ratio": Arm("ood_ratio", {"pocket": (9.3, EPYC)}),
    "ood_ratio_50": Arm("ood_ratio", {"pocket": (5.0, EPYC)}, suffix="_50"),
    "ood_ratio_70": Arm("ood_ratio", {"pocket": (4.9, EPYC)}, suffix="_70"),
    "relations_first": Arm("relations_first", {"pocket": (4.9, EPYC)}),
    "relations_first_deep": Arm("relations_first", {}, changes={"model.n_layers": 4}),
    "second_hop_restricted": Arm("second_hop_restricted", {"pocket": (5.3, EPYC)}),
    "three_hops": Arm("three_hops", {"pocket": (9.4, EPYC)}),
    "two_token_entities": Arm("two_token_entities", {"pocket": (7.3, EPYC)}),
    "without_id_triples": Arm("without_id_triples", {"pocket": (4.6, EPYC), "desk": (39.4, EPYC)}),
    "ladder": Arm("ladder", {"pocket": (43.7, EPYC)}, changes=_RARELY),
    "ladder_early": Arm("ladder", {}, changes={**_RARELY, "loss.early_supervision.weight": 6.0}),
    "ladder_early_1": Arm("ladder", {}, changes={**_RARELY, "loss.early_supervision.weight": 1.0}),
    "ladder_chain_of_thought": Arm(
        "ladder", {}, changes={**_RARELY, "steps": 3_000, "task.chain_of_thought": True}
    ),
    "ladder_looped": Arm("ladder", {}, changes={**_RARELY, "model.n_loops": 2}),
    "ladder_taught": Arm("composition", {}, changes=_TAUGHT, continues="ladder"),
    "ladder_identity": Arm("ladder", {}, changes={**_RARELY, "task.identity": "both"}),
    "cue_conflict_long": Arm("cue_conflict", {}, changes={**_RARELY, "steps": 10_000}),
    "like_ladder_without_id_triples": Arm("without_id_triples", {}, changes=_LIKE_LADDER),
    "greater_than": Arm("greater_than", {}),
    "indirect_object": Arm("indirect_object", {}),
    "like_ladder_scrambled": Arm("scrambled", {}, changes=_LIKE_LADDER),
}


def crossed(worlds: int, inits: int) -> Seeds:
    """Return all combinations of worlds and initializations. Initializations vary slowest."""
    return [(world, init) for init in range(inits) for world in range(worlds)]


def paired(count: int) -> Seeds:
    """Return pairs of world seed s and initialization seed s."""
    return [(seed, seed) for seed in range(count)]


@dataclass(frozen=True)
class Need:
    """Runs that a study reads at a scale: all combinations of some arms and some seeds."""

    scale: str
    arms: Sequence[str]
    seeds: Seeds


_CONTROLLED = ("composition", "shadow", "scrambled")
_REASONING = (
    "ladder",
    "ladder_early",
    "ladder_chain_of_thought",
    "ladder_looped",
    "cue_conflict_long",
)
_COMPONENTS = ("in_context_by_doubling", "modular_addition_larger_eps")
_CIRCUITS = ("greater_than", "indirect_object")
_GRAPHS = ("relations_first_deep",)
_CURVES = ("ladder_identity", "like_ladder_without_id_triples", "like_ladder_scrambled")
_WORLDS = tuple(
    name
    for name in sorted(ARMS)
    if name
    not in (
        *("tied", "ladder_taught", "ladder_early_1"),
        *(*_REASONING, *_CURVES, *_COMPONENTS, *_CIRCUITS, *_GRAPHS),
    )
)

STUDIES: Mapping[str, Sequence[Need]] = {
    "grokking": (
        Need("pocket", ("composition",), paired(3)),
        Need("desk", ("composition",), paired(1)),
    ),
    "worlds": (
        Need("pocket", _WORLDS, paired(3)),
        Need("desk", ("composition", "without_id_triples", "shadow"), paired(1)),
    ),
    "composition_phases": (
        Need("pocket", (*_CONTROLLED, "tied"), crossed(4, 2)),
        Need("desk", _CONTROLLED, crossed(1, 1)),
    ),
    "feature_birth": (Need("pocket", _CONTROLLED, crossed(3, 1)),),
    "attribution_graphs": (
        Need("desk", ("composition", *_GRAPHS), paired(1)),
        Need("pocket", ("composition", *_GRAPHS), paired(1)),
    ),
    "transcoders_vs_saes": (Need("desk", ("composition",), paired(1)),),
    "reasoning_or_shortcut": (
        Need("pocket", _REASONING, crossed(4, 2)),
        Need("pocket", _CURVES, paired(3)),
        Need("pocket", ("ladder_early_1",), paired(1)),
        Need("pocket", ("ladder_taught",), crossed(4, 2)),
    ),
    "circuit_formation": (
        Need("pocket", ("composition", "ladder", "ladder_early", "scrambled"), crossed(4, 2)),
        Need("pocket", ("without_id_triples", "shadow", "in_context"), paired(3)),
        Need("pocket", ("greater_than", "indirect_object"), paired(3)),
        Need("pocket", ("ladder_taught",), crossed(4, 2)),
    ),
    "components": (
        Need(
            "pocket",
            ("composition", "ladder", "ladder_early", "in_context_by_doubling"),
            crossed(4, 2),
        ),
        Need("pocket", ("shadow", "scrambled", "modular_addition_larger_eps"), paired(3)),
    ),
    "editing": (
        Need("pocket", ("composition", "ladder", "ladder_looped"), crossed(4, 2)),
        Need("pocket", ("ladder_early", "ladder_chain_of_thought"), paired(3)),
    ),
}
