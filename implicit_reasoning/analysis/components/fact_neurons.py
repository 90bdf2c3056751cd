"""Count the neurons that carry a fact, and compare the neurons of its first and its last hop.

A fact is used in chains that begin with it (first hop) and in chains that end with it (last hop).
For each fact and hop, the neurons are sorted by the exact effect of their mean ablation on one half
of these chains. The strongest neurons are then ablated together, and the answers to the other half
of the chains are tested. The overlap of the neurons for the two hops shows whether both hops look
up the fact in one store.

Neurons that matter for all chains would be in both sets. The overlap is therefore compared with the
overlap of the sets of two different facts, and neurons are also sorted by how much their effect
exceeds their mean effect over facts.

Sources: Dai et al. 2022, "Knowledge neurons in pretrained transformers" (ablating the neurons of a
fact). The comparison of the two hops was designed for this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.claims import (
    MAX_UPPER_BOUND,
    MIN_LOWER_BOUND,
    Claim,
    has_min_clusters,
)
from implicit_reasoning.analysis.components.fact_chains import HOPS, choose_facts
from implicit_reasoning.analysis.components.neuron_effects import (
    Effects,
    answers_clearly,
    answers_without,
    common_facts,
    log_probability_increase,
    mean_ablation,
    run_neurons,
)
from implicit_reasoning.analysis.components.neuron_figures import broken_answers, overlap_of_hops
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.states import neuron_sites, prompts
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.units import Neuron
from implicit_reasoning.worlds import Dataset

ORDERS = ("effect", "effect above the mean of facts")
WAYS = ("fact", "chain")
_SETS = ("own", "of another fact", "random")
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MAX_FACTS = 36  # with which a lower end of .9 is possible

_HOP = ("hop", "example")
_OVERLAP = ("overlap", "null_overlap")


class FactNeurons(Instrument):
    """Instrument that counts the neurons of a fact, for its first and its last hop."""

    name = "fact_neurons"
    definition = (
        "For at most 36 facts, two chains in each half for each hop: chains that begin with the "
        "fact (first hop) and chains that end with it (last hop), training chains first. Only "
        "chains that are answered correctly count. An answer is right if its logit is higher "
        "than all others by more than .001, so a tie except for rounding errors is wrong. The "
        "effect of a neuron is the mean drop of the log odds log p / (1 - p) of the answer on "
        "the first half if the neuron is replaced by its mean over the chains without a common "
        "fact, at all positions. In a looped model, the effects of a neuron in all loops are "
        "added up, and it is ablated in every loop. order: neurons are sorted by this effect, or "
        "by the effect minus its mean over facts. broken: share of wrong answers on the second "
        "half if the first `count` neurons are ablated together. set: the neurons of the fact, "
        "those of another fact (null), or random neurons (null). needed: the smallest count at "
        "which all answers of the second half are wrong. found: whether there is such a count. "
        "overlap_by_count: share of the first `count` neurons for the first hop that are among "
        "the first `count` neurons for the last hop. overlap: the same for the needed neurons of "
        "each hop, as a share of the smaller set, over facts for which both are found. null_...: "
        "the mean over the last hops of all other facts. chance_overlap: the expectation for "
        "random sets of these sizes. alone: share of wrong answers if one neuron is ablated. "
        "way: the neuron with the highest effect on the first half of the fact's chains, or for "
        "each chain the neuron with the highest log probability increase (see "
        "neuron_importance). alone_elsewhere: the same on the chains of other facts (null). "
        "alone_unit: block and neuron. alone_wrong: whether all answers are wrong; -1 if no "
        "answer counts."
    )
    outputs = {
        "broken": ("order", "set", "hop", "count", "example"),
        "needed": ("order", *_HOP),
        "found": ("order", *_HOP),
        "usable": _HOP,
        "both_usable": ("example",),
        "both_found": ("order", "example"),
        "overlap_by_count": ("order", "count", "example"),
        "null_overlap_by_count": ("order", "count", "example"),
        "overlap": ("order", "example"),
        "null_overlap": ("order", "example"),
        "chance_overlap": ("order", "example"),
        "alone": ("way", *_HOP),
        "alone_elsewhere": ("way", *_HOP),
        "alone_unit": ("way", "hop", "fact", "chain", "part"),
        "alone_wrong": ("way", "hop", "fact", "chain"),
    }
    given = {
        "broken": "usable",
        "found": "usable",
        "alone": "usable",
        "alone_elsewhere": "usable",
        "needed": "found",
        **dict.fromkeys(("overlap_by_count", "null_overlap_by_count"), "both_usable"),
        **dict.fromkeys((*_OVERLAP, "chance_overlap"), "both_found"),
    }
    nulls = {
        "neurons of another fact": {"set": _SETS[1]},
        "random neurons": {"set": _SETS[2]},
        "overlap with another fact": "null_overlap",
        "overlap of random sets": "chance_overlap",
        "chains of other facts": "alone_elsewhere",
    }
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose facts and their chains. A fact is one example.

        In confidence intervals, facts whose chains have the same bridge form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, no fact has two chains for each hop, or the
            model has another block than `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        chosen = choose_facts(dataset, _MAX_FACTS)
        random = np.random.default_rng(0)
        shift = random.integers(1, max(len(chosen.facts), 2))
        inputs = {
            "tokens": prompts(dataset, chosen.rows.reshape(-1)),
            "answer": dataset.truth["answer"][chosen.rows.reshape(-1)],
            "there": chosen.there,
            "common": common_facts(dataset, chosen.rows.reshape(-1)),
            "other": (np.arange(len(chosen.facts)) + shift) % len(chosen.facts),
        }
        group = np.zeros(len(chosen.facts), np.int64)
        return Examples(
            inputs,
            ("facts",),
            group,
            chosen.bridges,
            cluster_dim="hop",
            coords={"fact": chosen.facts.tolist(), "chain": range(chosen.rows.shape[-1])},
        )

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions except `fact` and `chain`."""
        return super().coords(model, dataset) | {
            "order": ORDERS,
            "set": _SETS,
            "hop": HOPS,
            "count": _counts(model),
            "way": WAYS,
            "part": ("block", "neuron"),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of neurons."""
        return neuron_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Ablate every neuron alone, and the strongest neurons of each fact together."""
        tokens, answer = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["answer"])
        there, other = jnp.asarray(inputs["there"]), jnp.asarray(inputs["other"])
        run = run_neurons(model, params, tokens, jnp.asarray(inputs["common"]))
        effects = mean_ablation(model, params, run, answer)
        right = answers_clearly(run.logits, answer).reshape(there.shape) & there
        usable = right.any(-1).all(-1)  # a chain in each half
        increase = log_probability_increase(model, params, run, answer)
        alone = _alone(effects, increase, right, model.spec.depth)

        effect = _by_weights(model, effects.drop).reshape(-1, *there.shape)[:, :, :, 0]
        effect = _mean(effect, right[None, :, :, 0])
        of_facts = (effect * usable[None]).sum(1) / jnp.maximum(usable.sum(0), 1)[None]
        ranked = jnp.stack([_ranks(effect), _ranks(effect - of_facts[:, None])])
        live = jnp.any(_by_weights(model, jnp.abs(effects.drop)) > 0, 1)
        random = jax.random.uniform(key, effect.shape) + live[:, None, None]

        mean = jnp.moveaxis(run.mean, 1, 0)
        test = [_second_half(values, there.shape) for values in (tokens, answer, mean)]
        sets = jnp.concatenate([ranked, ranked[:, :, other], _ranks(random)[None]])
        found = jax.lax.map(lambda ranks: _broken(model, params, test, right[:, :, 1], ranks), sets)
        own, of_other, at_random = jnp.split(found, [len(ORDERS), 2 * len(ORDERS)])
        at_random = jnp.broadcast_to(at_random, own.shape)
        broken = jnp.stack([own, of_other, at_random], 1)  # [order, set, count, fact, hop]
        counts = jnp.array(_counts(model))
        all_wrong = own == 1
        found = all_wrong.any(1) & usable[None]
        needed = counts[all_wrong.argmax(1)]  # [order, fact, hop]
        return {
            "broken": broken.transpose(0, 1, 4, 2, 3),
            "needed": needed.swapaxes(1, 2).astype(jnp.float32),
            "found": found.swapaxes(1, 2),
            "usable": usable.T,
            "both_usable": usable.all(1),
            "both_found": found.all(2),
            **_overlaps(ranked, needed, found, usable, counts, live.sum()),
            **alone,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw answers by the number of ablated neurons, and the overlap of the two hops."""
        return [broken_answers(result), overlap_of_hops(result)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "part" for neurons without which the answers are wrong.

        A claim needs two steps. Neurons are chosen in one of two ways, without the chains on which
        they are tested or without ablating them there. First, over all facts, most of these chains
        must be answered wrongly if the chosen neuron alone is ablated, and few chains of other
        facts. Second, all tested chains of the neuron itself must be answered wrongly. A neuron
        that another neuron or another route replaces makes no claim.
        """
        enough = has_min_clusters(result, "alone")
        reliable = (
            enough
            & (result.alone_low >= MIN_LOWER_BOUND)
            & (result.alone_elsewhere_high <= MAX_UPPER_BOUND)
        ).any("group")
        there = (result.alone_wrong == 1) & reliable
        chosen = result.alone_unit.transpose(*there.dims, "part").values[there.values]
        units = {(int(block), int(neuron)) for block, neuron in chosen}
        return {Claim("part", "answer", Neuron(*unit)) for unit in units}


def _counts(model: Transformer) -> tuple[int, ...]:
    """Return the sizes of the sets of neurons, at most half of all neurons."""
    most = max(1, model.spec.n_layers * model.spec.d_mlp // 2)
    return tuple(count for count in _COUNTS if count <= most)


def _by_weights(
    model: Transformer, values: Float[Array, "block neuron prompt"]
) -> Float[Array, "unit prompt"]:
    """Add up the values of neurons that have the same weights, in all loops of a looped model."""
    n_prompts = values.shape[-1]
    by_loop = values.reshape(model.spec.n_loops, -1, n_prompts)
    return by_loop.sum(0)


def _mean(
    values: Float[Array, "unit fact hop chain"], counted: Bool[Array, "1 fact hop chain"]
) -> Float[Array, "unit fact hop"]:
    """Return the mean over the chains that count; 0 if none counts."""
    return (values * counted).sum(-1) / jnp.maximum(counted.sum(-1), 1)


def _ranks(values: Float[Array, "unit fact hop"]) -> Int[Array, "unit fact hop"]:
    """Return the place of each unit in descending order of the values; the highest has 0."""
    return jnp.argsort(jnp.argsort(-values, axis=0), axis=0)


def _second_half(values: Array, shape: tuple[int, ...]) -> Array:
    """Return the values of the prompts on which sets of neurons are tested."""
    by_half = values.reshape(*shape, *values.shape[1:])[:, :, 1]
    return by_half.reshape(-1, *values.shape[1:])


def _broken(
    model: Transformer,
    params: Params,
    test: Sequence[Array],
    right: Bool[Array, "fact hop chain"],
    ranks: Int[Array, "unit fact hop"],
) -> Float[Array, "count fact hop"]:
    """Return the share of wrong answers without the first neurons, for each number of neurons.

    Args:
      model: the model; static.
      params: the parameters of one checkpoint.
      test: tokens, answers, and means of neurons [prompt, block, pos, neuron] of the tested chains.
      right: whether each tested chain is answered correctly without ablation.
      ranks: the place of each neuron in the order of a fact and hop.
    """
    tokens, answer, mean = test
    mean = jnp.moveaxis(mean, 0, 1)
    layers = model.spec.n_layers, model.spec.d_mlp

    def of_count(count: Int[Array, ""]) -> Float[Array, "fact hop"]:
        removed = jnp.moveaxis(ranks < count, 0, -1)[:, :, None]
        removed = jnp.broadcast_to(removed, (*right.shape, removed.shape[-1]))
        removed = removed.reshape(-1, *layers)
        logits = answers_without(model, params, tokens, removed, mean)
        wrong = ~answers_clearly(logits, answer).reshape(right.shape) & right
        return wrong.sum(-1) / jnp.maximum(right.sum(-1), 1)

    found: Array = jax.lax.map(of_count, jnp.array(_counts(model)))
    return found


def _overlaps(
    ranks: Int[Array, "order unit fact hop"],
    needed: Int[Array, "order fact hop"],
    found: Bool[Array, "order fact hop"],
    usable: Bool[Array, "fact hop"],
    counts: Int[Array, " count"],
    n_live: Int[Array, ""],
) -> dict[str, Array]:
    """Compare the neurons for the first hop with those for the last hop of the same fact.

    The null control compares with the last hops of all other facts.
    """

    def shares(sizes: Int[Array, "order fact hop"], there: Array) -> tuple[Array, Array]:
        """Return the overlap of the first neurons of each fact, and its null control."""
        member = (ranks < sizes[:, None]).astype(jnp.float32)
        both = jnp.einsum("ouf,oug->ofg", member[..., 0], member[..., 1])
        smaller = jnp.minimum(sizes[:, :, None, 0], sizes[:, None, :, 1])
        share = both / smaller
        own = jnp.diagonal(share, axis1=1, axis2=2)
        others = there[:, None, :] & ~jnp.eye(share.shape[1], dtype=bool)[None]
        null = (share * others).sum(-1) / jnp.maximum(others.sum(-1), 1)
        return own, null

    own, null = shares(needed, found[..., 1])
    both_usable = jnp.broadcast_to(usable[None, :, 1], found.shape[:2])
    by_count = [shares(jnp.full(needed.shape, count), both_usable) for count in counts]
    return {
        "overlap": own,
        "null_overlap": null,
        "chance_overlap": needed.max(-1) / n_live,
        "overlap_by_count": jnp.stack([one for one, _ in by_count], 1),
        "null_overlap_by_count": jnp.stack([one for _, one in by_count], 1),
    }


def _alone(
    effects: Effects,
    increase: Float[Array, "block neuron prompt"],
    right: Bool[Array, "fact hop half chain"],
    depth: int,
) -> dict[str, Array]:
    """Choose single neurons, and return whether answers are wrong without them.

    Args:
      effects: the effects of ablating each neuron.
      increase: the log probability increase of each neuron.
      right: whether each chain is answered correctly without ablation.
      depth: the number of blocks.
    """
    drop, wrong, increase = (part.reshape(-1, *right.shape) for part in (*effects, increase))
    n_facts, _, _, n_chains = right.shape
    test = right[:, :, 1]
    by_fact = _mean(drop[:, :, :, 0], right[None, :, :, 0]).argmax(0)
    chosen = jnp.stack(
        [
            jnp.repeat(by_fact[..., None], n_chains, -1),  # one neuron for all chains
            increase[:, :, :, 1].argmax(0),
        ]
    )  # [way, fact, hop, chain]
    own = jnp.take_along_axis(wrong[:, :, :, 1], chosen, 0) & test[None]
    share = own.sum(-1) / jnp.maximum(test.sum(-1), 1)[None]

    other = ~jnp.eye(n_facts, dtype=bool)[:, :, None, None, None] & right[None]

    def elsewhere(units: Int[Array, "fact hop chain"]) -> Float[Array, "fact hop"]:
        by_unit = wrong[units].astype(jnp.float32)  # [fact, hop, chain, fact, hop, half, chain]
        there = other[:, None, None]
        found = (by_unit * there).sum((-4, -3, -2, -1)) / jnp.maximum(
            there.sum((-4, -3, -2, -1)), 1
        )
        return (found * test).sum(-1) / jnp.maximum(test.sum(-1), 1)

    all_wrong = jnp.stack([jnp.repeat((share[0] == 1)[..., None], n_chains, -1), own[1]])
    n_neurons = len(wrong) // depth
    units = jnp.stack([chosen // n_neurons, chosen % n_neurons], -1)
    return {
        "alone": jnp.swapaxes(share, 1, 2),
        "alone_elsewhere": jnp.swapaxes(jnp.stack([elsewhere(one) for one in chosen]), 1, 2),
        "alone_unit": jnp.swapaxes(units, 1, 2),
        "alone_wrong": jnp.swapaxes(jnp.where(test[None], all_wrong, -1), 1, 2),
    }
