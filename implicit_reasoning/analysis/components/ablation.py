"""Ablate components, one at a time and cumulatively, and measure the answers.

The output of a component is replaced by zero, by its mean over training chains, or by its value in
the forward pass on another example (resampling). A mean has no information about the prompt, and a
resampled value has information about another prompt. Zero is usually not a value that the component
ever has, so zero ablation also removes a constant that later layers may need. A component is
ablated at one position or at all positions together. All later computations run on the new value.

A control resamples from an example with the same answer. If a component writes only the answer,
this control changes nothing.

If two components do the same, ablating either of them changes no answer. Heads are therefore also
ablated cumulatively, at all positions. Heads are sorted by the effect of their single ablation on
half of the clusters, and the sorted heads are ablated in the examples of the other half.

Sources: Wang et al. 2023, *Interpretability in the wild* (mean ablation); Chan et al. 2022, *Causal
scrubbing* (resampling); Zhang and Nanda 2024 (metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.claims import Claim, has_min_clusters
from implicit_reasoning.analysis.components.ablation_figures import (
    KINDS,
    ORDERS,
    OUTCOMES,
    components_figure,
    cumulative_figure,
)
from implicit_reasoning.analysis.components.ablation_runs import (
    ALL_POSITIONS,
    ablate_components,
    ablate_heads,
    component_names,
    make_donors,
    mean_run,
    run,
)
from implicit_reasoning.analysis.components.losses import cross_entropy
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import (
    answers_with,
    divergence,
    margin,
    outcomes_of,
)
from implicit_reasoning.analysis.states import (
    another_of_group,
    chain_splits,
    choose_rows,
    prompts,
)
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.model.units import Head
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

GRADED = ("logit_difference", "log_probability", "divergence")

MIN_CHANGED = 0.05
"""Minimum of the lower interval end of changed answers for the claim that a head is used."""

_MAX_ROWS = 100  # maximum number of rows per split
_MAX_MEAN = 1024  # maximum number of training chains for the means
_DRAWS = 3  # number of other examples per example
_SEED = 0

_CELLS = ("kind", "block", "part", "pos", "example")
_CUMULATIVE = ("kind", "order", "n_ablated", "example")


class Ablation(Instrument):
    """Instrument that ablates every component, alone, and heads cumulatively."""

    name = "ablation"
    definition = (
        "The output of one component is replaced, at one position or at all. kind: zero; the "
        "mean at this position over training chains; resample, the output in the run on another "
        f"example of the group (mean outcome of {_DRAWS} examples); same answer, the output in "
        "the run on a training chain that has the same answer and another bridge. part: "
        "attention, MLP, one head, block (attention and MLP), or state (the residual stream after "
        "the block). fraction: share of answers that are unchanged, that of the other example, or "
        "another, over examples that are answered correctly without ablation. accuracy: share of "
        "right answers of all examples. logit_difference: logit of the right answer minus the "
        "highest other logit. log_probability: that of the right answer. divergence: KL(not "
        "ablated || ablated), in nats. The last three are over all examples. cumulative: share of "
        "unchanged answers with several heads ablated at all positions. Heads are sorted by the "
        "mean decrease of their logit_difference on half of the clusters, and ablated in the "
        "others; a random order for each example is the null. Here, resample uses the first of the "
        f"{_DRAWS} other examples only."
    )
    outputs = {
        "fraction": ("outcome", *_CELLS),
        "accuracy": _CELLS,
        **dict.fromkeys(GRADED, _CELLS),
        "cumulative": _CUMULATIVE,
        "cumulative_divergence": _CUMULATIVE,
        "counts": ("kind", "example"),
        "possible": ("kind", "example"),
        "clean_logit_difference": ("example",),
        "clean_log_probability": ("example",),
        "correct": ("example",),
    }
    given = {
        "fraction": "counts",
        "cumulative": "counts",
        **dict.fromkeys(("accuracy", *GRADED, "cumulative_divergence"), "possible"),
    }
    nulls = {
        "resampled from an example with the same answer": {"kind": KINDS[3]},
        "heads in random order": {"order": ORDERS[2]},
    }
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts have the full length, and other prompts.

        In confidence intervals, rows with the same bridge (e2) form a cluster. The orders of heads
        are computed on a random half of the clusters for the other half.

        Raises:
          NotApplicable: answers have several tokens, or the model has no attention heads.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        splits, random = splits_of_full_prompts(dataset), np.random.default_rng(_SEED)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        train = np.flatnonzero(dataset.truth["position"][: dataset.n_train] == _last(dataset))
        others = np.stack([another_of_group(group, random) for _ in range(_DRAWS)])
        same = _same_answers(dataset, rows, train, random)
        donors = np.concatenate([rows[others], np.where(same >= 0, same, rows)[None]])
        answer = dataset.truth["answer"]
        clusters = clusters_of(dataset, rows)
        distinct, index = np.unique(clusters, return_inverse=True)
        inputs = {
            "tokens": prompts(dataset, rows),
            "answer": answer[rows],
            # The example axis comes first, because examples are evaluated in chunks.
            "donors": prompts(dataset, donors.T.ravel()).reshape(len(rows), len(donors), -1),
            "donor_answers": np.where(answer[donors] == answer[rows], -1, answer[donors]).T,
            "same": same >= 0,
            "half": (random.permutation(len(distinct)) % 2)[index],
            "mean_tokens": prompts(dataset, random.permutation(train)[:_MAX_MEAN]),
        }
        return Examples(inputs, splits, group, clusters)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions. The last label of `pos` means all positions."""
        return {
            "outcome": OUTCOMES,
            "kind": KINDS,
            "block": range(model.spec.depth),
            "part": component_names(model),
            "pos": (*dataset.positions, ALL_POSITIONS),
            "order": ORDERS,
            "n_ablated": range(model.spec.depth * model.spec.n_heads + 1),
        }

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return cache_sites(model, inside=True)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes of all ablations.

        The order of the heads in the cumulative ablation depends on the effects of single
        ablations, so these are computed first.
        """
        mean = mean_run(model, params, inputs["mean_tokens"])
        shared = {"mean_tokens", "half"}
        examples = {name: value for name, value in inputs.items() if name not in shared}
        found = map_in_chunks(lambda e: _single(model, params, mean, e), examples)
        correct = found.pop("correct")
        possible = jnp.stack([jnp.ones_like(correct)] * 3 + [jnp.asarray(inputs["same"])])
        counts = possible & correct[None]
        found["accuracy"] = found["fraction"][0]
        heads = [n for n, part in enumerate(component_names(model)) if part.startswith("head ")]
        # [kind, block, head, example], at all positions
        after = found["logit_difference"][:, :, heads[0] : heads[-1] + 1, -1]
        effects = found["clean_logit_difference"][None, None, None] - after
        ranks = _ranks(effects, counts, jnp.asarray(inputs["half"]), key)
        cumulative = map_in_chunks(
            lambda e: _cumulative(model, params, mean, e), examples | {"ranks": ranks}
        )
        return {
            **found,
            **cumulative,
            "counts": counts,
            "possible": possible,
            "correct": correct,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the share of changed answers by component, and with cumulatively ablated heads."""
        return [components_figure(result), cumulative_figure(result)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim that a head is part of the computation of answers if its ablation changes answers.

        In one group, the lower end of the share of changed answers must be at least `MIN_CHANGED`
        for both mean and resample ablation at all positions. Zero ablation is not sufficient,
        because it also removes a constant. If a share is low, nothing is claimed: another component
        may do the same.
        """
        at = {"outcome": OUTCOMES[0], "pos": ALL_POSITIONS, "kind": list(KINDS[1:3])}
        changed = 1 - result["fraction_high"].sel(at) >= MIN_CHANGED
        enough = has_min_clusters(result, "fraction").sel(at)
        needed = (changed & enough).all("kind").any("group")
        return {
            Claim("part", "answer", Head(int(block), int(part.removeprefix("head "))))
            for part in map(str, result["part"].values)
            if part.startswith("head ")
            for block in result["block"].values
            if needed.sel(part=part, block=block)
        }


def splits_of_full_prompts(dataset: Dataset) -> tuple[str, ...]:
    """Return the non-empty splits whose rows have an answer of one token at the last position.

    For a task of chains, these are the splits of full chains.

    Raises:
      NotApplicable: there is no such split.
    """
    if "r2" in dataset.truth:
        return chain_splits(dataset)
    position, last = dataset.truth["position"], _last(dataset)
    found = tuple(
        name
        for name in dataset.splits
        if len(rows := dataset.rows(name)) and (position[rows] == last).all()
    )
    if "answer2" in dataset.truth or not found:
        raise NotApplicable("this instrument needs answers of one token at the last position")
    return found


def _last(dataset: Dataset) -> int:
    return len(dataset.positions) - 1


def _same_answers(
    dataset: Dataset, rows: np.ndarray, pool: np.ndarray, random: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Return a random row of the pool with the same answer and another cluster, for each row.

    Rows of another cluster are for example chains with another bridge. The result is -1 if there is
    no such row.
    """
    pool = random.permutation(pool)
    answer = dataset.truth["answer"]
    pool = pool[np.argsort(answer[pool], kind="stable")]
    answers, cluster = answer[pool], clusters_of(dataset, pool)
    ends = np.stack([np.searchsorted(answers, answer[rows], side) for side in ("left", "right")], 1)
    found = np.full(len(rows), -1)
    for number, own in enumerate(clusters_of(dataset, rows)):
        here = slice(*ends[number])
        fits = pool[here][cluster[here] != own]
        if len(fits):
            found[number] = fits[random.integers(len(fits))]
    return found


def _single(
    model: Transformer, params: Params, mean: Any, example: dict[str, Array]
) -> dict[str, Array]:
    """Compute the outcomes of ablating single components, for a chunk of examples."""
    answer = example["answer"]
    clean, base = run(model, params, example["tokens"])
    donors = make_donors(model, params, base, mean, jnp.swapaxes(example["donors"], 0, 1))
    none = jnp.full_like(answer, -1)  # zeros and means come from no example
    donor_answers = jnp.stack([none, none, *example["donor_answers"].T])

    def outcomes(donor: tuple[Any, Array]) -> dict[str, Array]:
        logits = ablate_components(model, params, base, donor[0])
        return {
            "fraction": outcomes_of(logits, answer, donor[1]).astype(jnp.float32),
            "logit_difference": margin(logits, answer),
            "log_probability": -cross_entropy(logits, answer),
            "divergence": divergence(logits, clean),
        }

    found = {k: _by_kind(v) for k, v in jax.lax.map(outcomes, (donors, donor_answers)).items()}
    return {
        **found,
        "fraction": jnp.swapaxes(found["fraction"], 0, 1),
        "clean_logit_difference": margin(clean, answer),
        "clean_log_probability": -cross_entropy(clean, answer),
        "correct": answers_with(clean, answer),
    }


def _by_kind(of_donors: Float[Array, "donor ..."]) -> Float[Array, "kind ..."]:
    """Average the draws of resampling. Donors are zero, mean, the draws, and the same answer."""
    first, last = of_donors[:2], of_donors[-1:]
    return jnp.concatenate([first, of_donors[2:-1].mean(0, keepdims=True), last])


def _ranks(
    effects: Float[Array, "kind block head example"],
    counts: Bool[Array, "kind example"],
    half: Int[Array, " example"],
    key: Key[Array, ""],
) -> Int[Array, "example kind order block head"]:
    """Return when each head is ablated: rank 0 is first.

    An effect is a mean over the examples of the other half of the clusters. Orders are: largest
    effect first, smallest effect first, and a random order for each example.
    """
    kinds, blocks, heads, _ = effects.shape
    flat = effects.reshape(kinds, blocks * heads, -1)

    def of_half(number: int) -> Array:
        counted = (counts & (half != number)[None])[:, None].astype(flat.dtype)
        mean = (flat * counted).sum(-1) / jnp.maximum(counted.sum(-1), 1)
        weakest = jnp.argsort(jnp.argsort(mean, axis=-1), axis=-1)
        return jnp.stack([blocks * heads - 1 - weakest, weakest], axis=1)  # [kind, order, head]

    of_halves = jnp.stack([of_half(0), of_half(1)])[half]  # [example, kind, order, head]
    keys = jax.random.split(key, len(half))
    draws = jax.vmap(lambda one: jax.random.permutation(one, blocks * heads))(keys)
    draws = jnp.broadcast_to(draws[:, None, None], (len(half), kinds, 1, blocks * heads))
    both = jnp.concatenate([of_halves, draws], axis=2)
    return both.reshape(*both.shape[:3], blocks, heads)


def _cumulative(
    model: Transformer, params: Params, mean: Any, example: dict[str, Array]
) -> dict[str, Array]:
    """Compute the outcomes of ablating the first 0, 1, ... heads of each order."""
    clean, base = run(model, params, example["tokens"])
    # Only the first draw is used, to save time. The last prompt is that with the same answer.
    tokens = jnp.swapaxes(example["donors"], 0, 1)[jnp.array([0, -1])]
    donors = make_donors(model, params, base, mean, tokens)
    counts = jnp.arange(model.spec.depth * model.spec.n_heads + 1)

    def of_kind(case: tuple[Any, Array]) -> dict[str, Array]:
        donor, ranks = case

        def of_count(ranks: Array, count: Array) -> dict[str, Array]:
            ablated = ranks < count
            logits = ablate_heads(model, params, example["tokens"], donor, ablated)
            return {
                "cumulative": answers_with(logits, example["answer"]),
                "cumulative_divergence": divergence(logits, clean),
            }

        return jax.lax.map(
            lambda order: jax.lax.map(lambda count: of_count(order, count), counts), ranks
        )

    ranks = example["ranks"].transpose(1, 2, 0, 3, 4)  # [kind, order, example, block, head]
    found: dict[str, Array] = jax.lax.map(of_kind, (donors, ranks))
    return found
