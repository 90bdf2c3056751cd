"""Causal scrubbing at every checkpoint: replace parts of a run, and measure the answers.

Parts of a run are replaced by those of another prompt, the replacement prompt, that the hypothesis
calls equivalent. The built-in hypothesis is that of two hops: at the position of r1, the state
stands for the bridge e2, and nothing else of e1 and r1 matters.

The instrument makes no claims. The whole state at a position is replaced, so a model that looks up
answers from (e1, r1) and r2 also passes, if it knows the answer to the chain of the replacement
prompt's prefix and r2. Scrubbing shows through which states the answer is computed. It does not
show whether prefixes with one bridge share a code; `mean_swap` and `cross_query_patching` do.

Source: Chan et al. 2022, "Causal scrubbing". The paper measures the share of the loss that is
recovered. This instrument also measures the share of answers that are kept. Its null has
replacement prompts with another value of the variable.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.circuits.hypotheses import (
    Drawn,
    HypothesisFunction,
    draw,
    two_hop,
)
from implicit_reasoning.analysis.circuits.scrubbing import replacements, scrubbed_logits
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, has_min_clusters
from implicit_reasoning.analysis.drawing import curves, some_groups
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.functions import find_function
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import mean_by_group
from implicit_reasoning.analysis.states import chain_splits, choose_rows
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

HYPOTHESES: dict[str, HypothesisFunction] = {"two_hop": two_hop}
"""The built-in hypotheses by name."""

CONTROLS = ("hypothesis", "another value")
_MAX_PROMPTS = 96  # of each split
_AT_ONCE = 32
_SEED = 0
_MIN_GAP = 1e-4  # nats; nothing is recovered if the mean losses of the two runs differ by less


class CausalScrubbing(Instrument):
    """Instrument that replaces parts of a run by those of equivalent prompts."""

    name = "causal_scrubbing"
    definition = (
        "The terms of all senders up to a layer are replaced; later blocks compute from them. "
        "Terms that the hypothesis names come from another prompt with the same value of their "
        "variable, and all other terms come from a random prompt. two_hop: at r1, the terms stand "
        "for the bridge; at r2, they stand for r2; nothing else matters. The replacement of the "
        "bridge has another prefix, and its prefix and r2 are not a training chain. kept: share "
        "of answers that are still correct. recovered: (loss of a random prompt - loss) / (loss "
        "of a random prompt - loss of the clean run); the denominator is its mean over the "
        "prompts of the group that count. Prompts count if they are answered correctly and have "
        "replacements that satisfy the hypothesis. Groups in which the denominator is below 1e-4 "
        "nats do not count. Null 'another value': the replacements of the tested variables have "
        "another value."
    )
    outputs = {
        "kept": ("control", "layer", "example"),
        "recovered": ("control", "layer", "example"),
        "measured": ("control", "example"),
        "correct": ("example",),
    }
    given = {"kept": "measured", "recovered": "measured"}
    nulls = {"another value": {"control": "another value"}}
    default = False

    def __init__(self, hypothesis: str | HypothesisFunction = "two_hop"):
        """Find the function that makes the hypothesis.

        Args:
          hypothesis: a key of `HYPOTHESES`, an import path, or a function of the dataset and the
            edge graph.

        Raises:
          InputError: the function is not found.
        """
        self.hypothesis = find_function(hypothesis, HYPOTHESES, "hypothesis")

    def options(self) -> dict[str, Any]:
        """Return the identity of the function that makes the hypothesis."""
        return {"hypothesis": self.hypothesis.identity()}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose chains of every split, and draw replacements for the parts of the hypothesis.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`, or the task is not a chain task.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        splits = chain_splits(dataset)
        graph = EdgeGraph(model.spec, len(dataset.positions))
        hypothesis = self.hypothesis.call(dataset, graph)
        rows, group = choose_rows(dataset, splits, _MAX_PROMPTS)
        targets, random = queries.queries_of_rows(dataset, rows), np.random.default_rng(_SEED)
        drawn, known = zip(
            *(draw(dataset, hypothesis, targets, random, another_value=d) for d in (False, True)),
            strict=True,
        )
        inputs = {
            "answer": targets.answer,
            # The first axis of all inputs is that of the examples, and the second is the control.
            "drawn": jax.tree.map(lambda *prompts: np.stack(prompts, axis=1), *drawn),
            "known": np.stack(known, axis=1),
            "member": group[:, None] == np.arange(len(splits)),
        }
        return Examples(
            inputs, splits, group, clusters_of(dataset, rows), coords={"control": CONTROLS}
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Scrub the runs of all prompts that are answered correctly, at every layer."""
        examples = {name: inputs[name] for name in ("drawn", "answer")}

        def plain(example: Any) -> dict[str, Array]:
            prompts, right = example["drawn"], example["answer"]
            clean, random = (
                model.forward(params, tokens[:, 0])[0][:, -1]
                for tokens in (prompts.tokens, prompts.rest)
            )
            return {
                "correct": answers_with(clean, right),
                "clean": _loss(clean, right),
                "random": _loss(random, right),
            }

        def scrubbed(example: Any) -> dict[str, Array]:
            logits = _scrub_at_layers(model, params, example["drawn"])
            return {
                "kept": answers_with(logits, example["answer"]),
                "loss": _loss(logits, example["answer"]),
            }

        base = map_in_chunks(plain, examples, at_once=_AT_ONCE)
        counted = base["correct"][None] & jnp.asarray(inputs["known"]).T
        found = map_in_chunks(scrubbed, examples, counted.any(0), at_once=_AT_ONCE)
        gaps = jnp.stack([base["random"] - base["clean"]] * len(CONTROLS))
        gap = mean_by_group(gaps, counted, inputs["member"])
        gain = base["random"][None, None] - found["loss"]
        return {
            "kept": found["kept"],
            "recovered": gain / jnp.where(gap > _MIN_GAP, gap, 1)[:, None],
            "measured": counted & (gap > _MIN_GAP),
            "correct": base["correct"],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of answers that are kept, by layer, over training."""
        known = has_min_clusters(result, "kept")
        shown = result.assign(
            {name: result[name].where(known) for name in ("kept", "kept_low", "kept_high")}
        )
        panels = {group: {"group": group} for group in some_groups(result)}
        drawing = curves(
            shown,
            "kept",
            panels,
            select={"control": CONTROLS[0]},
            nulls={"null: another value": ({"control": CONTROLS[1]}, "black")},
            label="share of answers that are kept",
        )
        caption = (
            f"The hypothesis is {self.hypothesis.name}. The terms of all senders up to a layer are "
            "replaced by those of prompts that the hypothesis calls equivalent, for queries that "
            "are answered correctly. A curve is the share of answers that stay correct, with its "
            "95% interval. If the hypothesis is right at a layer, the share is 1. The dashed line "
            "is the null, with replacements that have another value of the variable: the highest "
            f"of all layers. Curves are missing where fewer than {MIN_CLUSTERS} clusters count."
        )
        title = "Do answers stay correct if equivalent prompts replace parts of the run?"
        return [Figure("causal_scrubbing", title, caption, drawing)]


def _scrub_at_layers(
    model: Transformer, params: Params, drawn: Drawn
) -> Float[Array, "control layer example d_vocab"]:
    """Return the logits of runs in which all terms up to each layer are replaced.

    Args:
      model: the model.
      params: the parameters of one model.
      drawn: the prompts, [example, control, pos].
    """
    graph = EdgeGraph(model.spec, drawn.tokens.shape[-1])
    cuts = 1 + (model.spec.n_heads + 1) * jnp.arange(model.spec.depth + 1)

    def of_control(own: Drawn) -> Array:
        terms = replacements(model, params, graph, own)
        run = functools.partial(scrubbed_logits, model, params, graph, own, terms)
        found: Array = jax.lax.map(run, cuts)
        return found

    by_control = jax.tree.map(lambda prompts: jnp.moveaxis(prompts, 1, 0), drawn)
    found: Array = jax.lax.map(of_control, by_control)
    return found


def _loss(logits: Array, answer: Array) -> Array:
    """Return the loss of the answer in nats; the first axes of the logits may be more."""
    answer = jnp.broadcast_to(answer, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), answer)
