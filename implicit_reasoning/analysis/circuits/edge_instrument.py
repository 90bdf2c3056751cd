"""The base class of instruments that measure edges on prompt pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Array, Bool

from implicit_reasoning.analysis.circuits.cost import score_costs
from implicit_reasoning.analysis.instrument import Examples, NotApplicable
from implicit_reasoning.analysis.patching.metrics import Metric, PairBatch
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import PairInstrument, limit_pairs
from implicit_reasoning.analysis.patching.pairs import PairsFunction
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.runtime.progress import say
from implicit_reasoning.worlds import Dataset

MUCH = 1e14
"""FLOPs of exact scores above which an instrument says what they cost: minutes on a few cores."""


class EdgeInstrument(PairInstrument):
    """Base class of instruments whose results have the dimensions `edge` and `pos`.

    Attributes:
      max_pairs: the maximum number of pairs of each group.
      groups: the names of the groups of pairs to measure; empty for all groups.
    """

    max_pairs: ClassVar[int]
    default = False

    def __init__(
        self,
        pairs: str | PairsFunction = "bridge",
        metrics: Sequence[str | Metric] = ("logit_difference",),
        groups: Sequence[str] = (),
    ):
        """Find the function that makes the pairs, and the metrics.

        Args:
          pairs: a key of `pairs.PAIRS`, an import path, or a function.
          metrics: keys of `metrics.METRICS`, import paths, or functions.
          groups: names of the groups of pairs to measure; empty for all groups. The cost is
            proportional to the number of groups.

        Raises:
          InputError: a function is not found.
        """
        super().__init__(pairs, metrics)
        self.groups = tuple(groups)

    def options(self) -> dict[str, Any]:
        """Return the identity of the pairs function and of every metric, and the groups."""
        return super().options() | {"groups": list(self.groups)}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the prompt pairs, with the names of all edges as labels.

        If exact scores are expensive, a message on stderr says what they cost.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`.
          InputError: the pairs have no group with one of the chosen names.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        made = limit_pairs(super().examples(model, dataset), self.max_pairs, self.groups)
        graph = EdgeGraph(model.spec, made.inputs["clean"].shape[1])
        self._say_cost(graph, len(made.inputs["clean"]))
        edges = tuple(map(str, graph.edges))
        return dataclasses.replace(made, coords={**made.coords, "edge": edges})

    def _say_cost(self, graph: EdgeGraph, n_pairs: int) -> None:
        """Say what exact scores cost, if that is much."""
        costs = score_costs(graph, n_pairs)
        if costs["exact"] > MUCH:
            say(
                f"{self.name} patches {int(graph.alive.sum()):,} edges at positions for {n_pairs:,}"
                f" pairs, which needs about {costs['exact']:.1e} FLOPs at each checkpoint; EAP "
                f"(analysis.circuits.scores.eap) needs {costs['EAP']:.1e}"
            )

    def counts(self, batch: PairBatch) -> Bool[Array, " example"]:
        """Return which pairs count: those whose clean prompt is answered correctly.

        Override this method for tasks whose prompts have several right answers.
        """
        return answers_with(batch.clean_logits, batch.answer)
