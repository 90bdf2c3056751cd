"""Compare the importance of neurons by log probability increase with exact mean ablation.

The log probability increase of Yu and Ananiadou needs one forward pass for all neurons. It only
sees what a neuron writes directly into the logits at the last position. Mean ablation recomputes
the later blocks for each neuron. This instrument measures both for every neuron, and how well their
orders agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis.components.agreement import spearman
from implicit_reasoning.analysis.components.neuron_effects import (
    common_facts,
    log_probability_increase,
    mean_ablation,
    run_neurons,
)
from implicit_reasoning.analysis.components.neuron_figures import (
    agreement,
    importance_and_effect,
)
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.states import (
    another_of_group,
    chain_splits,
    choose_rows,
    neuron_sites,
    prompts,
)
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

PLACES = ("all positions", "last position")
_SPLITS = 2  # the first training split and the first test split with chains
_MAX_ROWS = 64  # per split
_TOP = 10


class NeuronImportance(Instrument):
    """Instrument that compares the log probability increase of neurons with mean ablation."""

    name = "neuron_importance"
    definition = (
        "64 chains of the first training split and of the first test split; means are over "
        "chains that are answered correctly. effect: log odds log p / (1 - p) of the answer, "
        "minus those with the activation of one neuron replaced by its mean over chains without "
        "a common fact, in nats. place: at all positions together, or at the last position only. "
        "importance: log p(a | S + m v) - log p(a | S), where a is the answer, S the residual "
        "stream at the last position between attention and MLP of the neuron's block, m v what "
        "the neuron adds to it, and p the readout with the scale of the final norm fixed (Yu and "
        "Ananiadou 2024). rank_correlation: Spearman correlation of importance and effect over "
        "the neurons of a block, for each chain. top_share: share of the 10 neurons with the "
        "largest effect that are among the 10 with the largest importance. null_...: the same "
        "with the importance for another chain. mean_rank_correlation: Spearman correlation of "
        "the means over correct chains of a split."
    )
    outputs = {
        "effect": ("place", "block", "neuron", "example"),
        "importance": ("block", "neuron", "example"),
        "rank_correlation": ("place", "block", "example"),
        "null_rank_correlation": ("place", "block", "example"),
        "top_share": ("place", "block", "example"),
        "null_top_share": ("place", "block", "example"),
        "mean_rank_correlation": ("split", "place", "block"),
        "correct": ("example",),
    }
    given = dict.fromkeys(
        (
            "effect",
            "importance",
            "rank_correlation",
            "null_rank_correlation",
            "top_share",
            "null_top_share",
        ),
        "correct",
    )
    nulls = {
        "importance for another chain": "null_rank_correlation",
        "importance for another chain, strongest neurons": "null_top_share",
    }
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose chains of a training split and of a test split.

        In confidence intervals, rows with the same bridge (e2) form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, or the model has another block than `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        splits = chain_splits(dataset)[:_SPLITS]
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        other = another_of_group(group, np.random.default_rng(0))
        inputs = {
            "tokens": prompts(dataset, rows),
            "answer": dataset.truth["answer"][rows],
            "other": other,
            "common": common_facts(dataset, rows),
            "member": group[None] == np.arange(len(splits))[:, None],
        }
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords={"split": splits})

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `split`."""
        return super().coords(model, dataset) | {
            "place": PLACES,
            "block": range(model.spec.depth),
            "neuron": range(model.spec.d_mlp),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of neurons."""
        return neuron_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the importance and the exact effect of each neuron on each chain."""
        tokens, answer = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["answer"])
        run = run_neurons(model, params, tokens, jnp.asarray(inputs["common"]))
        correct = answers_with(run.logits, answer)
        importance = log_probability_increase(model, params, run, answer)
        effect = jnp.stack(
            [
                mean_ablation(model, params, run, answer, only_last=only_last).drop
                for only_last in (False, True)
            ]
        )
        another = importance[:, :, jnp.asarray(inputs["other"])]
        weight = (jnp.asarray(inputs["member"]) & correct[None]).astype(jnp.float32)
        weight /= jnp.maximum(weight.sum(1, keepdims=True), 1)
        means = [
            jnp.einsum("...e,se->s...", part, weight, precision="highest")
            for part in (effect, importance)
        ]

        def by_chain(importance: Float[Array, "block neuron example"]) -> Array:
            return spearman(jnp.swapaxes(effect, -1, -2), jnp.swapaxes(importance, -1, -2)[None])

        return {
            "effect": effect,
            "importance": importance,
            "rank_correlation": by_chain(importance),
            "null_rank_correlation": by_chain(another),
            "top_share": _top_share(effect, importance[None]),
            "null_top_share": _top_share(effect, another[None]),
            "mean_rank_correlation": spearman(means[0], means[1][:, None]),
            "correct": correct,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw importance against effect at the last step, and their agreement over training."""
        return [importance_and_effect(result), agreement(result)]


def _top_share(
    effect: Float[Array, "place block neuron example"],
    importance: Float[Array, "_ block neuron example"],
) -> Float[Array, "place block example"]:
    """Return the share of neurons with the largest effect that have the largest importance."""
    count = min(_TOP, effect.shape[2])
    first, second = (_is_first(part, count) for part in (effect, importance))
    return (first & second).sum(2) / count


def _is_first(values: Float[Array, "place block neuron example"], count: int) -> Array:
    """Return whether each neuron is one of the `count` neurons with the highest values."""
    ranks = jnp.argsort(jnp.argsort(-values, axis=2), axis=2)
    return ranks < count
