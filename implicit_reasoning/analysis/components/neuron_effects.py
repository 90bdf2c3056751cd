"""Measure how much single MLP neurons contribute to answers, exactly and by an estimate.

The exact effect is that of mean ablation: the activation of one neuron is replaced by its mean over
other prompts. A mean over all prompts includes the prompt's own fact. If all other logits are
equal, this small contribution is enough for the right answer. The mean therefore excludes prompts
that share a fact. The estimate is the log probability increase of Yu and Ananiadou, which needs no
further forward pass and only sees what a neuron writes directly into the logits at the last
position.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.components.losses import cross_entropy, log_odds
from implicit_reasoning.analysis.states import neuron_sites
from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, mask
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset

_TIE = 1e-3  # difference of logits that counts as none, above rounding errors
_NEURONS_AT_ONCE = 16  # per chunk; with 288 prompts, the states of a chunk fit into a CPU cache


class NeuronRun(NamedTuple):
    """A forward pass on prompts, with all activations of neurons.

    Attributes:
      logits: the logits at the last position.
      states: the residual stream after each block.
      between: at the last position, the residual stream between the attention and the MLP of each
        block.
      acts: the activations of the neurons of each block.
      mean: for each prompt, the mean activations over the prompts without a common fact.
    """

    logits: Float[Array, "prompt d_vocab"]
    states: Float[Array, "block prompt pos d_model"]
    between: Float[Array, "block prompt d_model"]
    acts: Float[Array, "block prompt pos neuron"]
    mean: Float[Array, "block prompt pos neuron"]


class Effects(NamedTuple):
    """The effects of ablating each neuron on each prompt.

    Attributes:
      drop: log odds of the answer without ablation, minus those with ablation, in nats.
      wrong: whether the model with ablation gives another answer, or none clearly.
    """

    drop: Float[Array, "block neuron prompt"]
    wrong: Bool[Array, "block neuron prompt"]


def common_facts(dataset: Dataset, rows: Int[np.ndarray, " row"]) -> Bool[np.ndarray, "row row"]:
    """Return for each pair of rows whether they have a fact in common, at any hops."""
    facts = np.stack([dataset.truth[f"fact{hop + 1}"][rows] for hop in range(dataset.hops)])
    return np.any(facts[:, None, :, None] == facts[None, :, None, :], axis=(0, 1))


def run_neurons(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    common: Bool[Array, "prompt prompt"],
) -> NeuronRun:
    """Run the model on prompts, and keep the activations of all neurons.

    Args:
      model: the model; static.
      params: the parameters of one checkpoint.
      tokens: the prompts.
      common: whether two prompts have a fact in common. Means are over the other prompts.
    """
    blocks = range(model.spec.depth)
    parts = ("hook_resid_post", "hook_resid_mid")
    names = [f"blocks.{block}.{part}" for block in blocks for part in parts]
    logits, found = model.forward(params, tokens, sites=(*names, *neuron_sites(model)))
    states, between = (
        jnp.stack([found[f"blocks.{block}.{part}"] for block in blocks]) for part in parts
    )
    acts = jnp.stack([found[site] for site in neuron_sites(model)])
    weight = (~common).astype(jnp.float32)
    weight /= jnp.maximum(weight.sum(1, keepdims=True), 1)
    mean = jnp.einsum("pq,bqin->bpin", weight, acts, precision="highest")
    return NeuronRun(logits[:, -1], states, between[:, :, -1], acts, mean)


def mean_ablation(
    model: Transformer,
    params: Params,
    run: NeuronRun,
    answer: Int[Array, " prompt"],
    *,
    only_last: bool = False,
) -> Effects:
    """Replace each neuron by its mean over other prompts, one at a time, and measure the effect.

    The later blocks are recomputed. Neurons that equal their means in all prompts are skipped.

    Args:
      model: the model; static.
      params: the parameters of one checkpoint.
      run: the result of `run_neurons` on the prompts.
      answer: the answer of each prompt.
      only_last: whether to ablate a neuron at the last position only. Otherwise a neuron is ablated
        at all positions together.
    """
    depth, n_pos = model.spec.depth, run.states.shape[2]
    by_block = []
    for block in range(depth):
        # The last block is read at the last position only.
        first = n_pos - 1 if only_last or block == depth - 1 else 0
        change = run.mean[block, :, first:] - run.acts[block, :, first:]
        resid = run.states[block] if block < depth - 1 else run.states[block][:, -1:]
        by_block.append(_ablate_in_block(model, params, block, resid, change, answer))
    after, wrong, live = (jnp.stack(part) for part in zip(*by_block, strict=True))
    drop = log_odds(run.logits, answer)[None, None] - after
    before = ~answers_clearly(run.logits, answer)[None, None]
    live = live[:, :, None]
    return Effects(jnp.where(live, drop, 0.0), jnp.where(live, wrong, before))


def _ablate_in_block(
    model: Transformer,
    params: Params,
    block: int,
    resid: Float[Array, "prompt pos d_model"],
    change: Float[Array, "prompt own_pos neuron"],
    answer: Int[Array, " prompt"],
) -> tuple[Float[Array, "neuron prompt"], Bool[Array, "neuron prompt"], Bool[Array, " neuron"]]:
    """Change the activation of each neuron of a block, one at a time.

    Args:
      model: the model; static.
      params: the parameters of one checkpoint.
      block: the number of the block; static.
      resid: the residual stream after the block.
      change: what is added to each activation, at the last positions of `resid`.
      answer: the answer of each prompt.

    Returns:
      The log odds of the answer, whether the model gives another answer, and whether each
      neuron changes. Neurons that do not change may be skipped, and have arbitrary values.
    """
    kept = resid.shape[1] - change.shape[1]

    def outcomes(neurons: dict[str, Array]) -> dict[str, Array]:
        written = neurons["change"][..., None] * neurons["W_out"][:, None, None]
        states = resid[None] + jnp.pad(written, [(0, 0), (0, 0), (kept, 0), (0, 0)])
        flat = states.reshape(-1, *resid.shape[1:])
        logits = logits_from_layer(model, params, flat, block + 1)
        logits = logits.reshape(*states.shape[:2], -1)
        return {
            "after": log_odds(logits, answer).T,
            "wrong": ~answers_clearly(logits, answer).T,
        }

    weights = params["blocks"][str(block % model.spec.n_layers)]["mlp"]["W_out"]
    neurons = {"change": jnp.moveaxis(change, -1, 0), "W_out": weights}
    live = (change != 0).any((0, 1))
    found = map_in_chunks(outcomes, neurons, live, at_once=_NEURONS_AT_ONCE)
    return found["after"].T, found["wrong"].T, live


def log_probability_increase(
    model: Transformer, params: Params, run: NeuronRun, answer: Int[Array, " prompt"]
) -> Float[Array, "block neuron prompt"]:
    """Return log p(a | S + m v) - log p(a | S) for each neuron, in nats.

    a is the answer. S is the residual stream at the last position after the attention of the block
    of the neuron. m is the activation of the neuron at the last position, and v are its output
    weights. p(a | S) is the probability by the readout, which is the final norm and the
    unembedding. The final norm has the scale that it has in the complete forward pass on the
    prompt, so the logits are an affine function of S.

    Source: Yu and Ananiadou 2024, "Neuron-level knowledge attribution in large language models",
    section 3 and the published code (which fixes the scale of the final norm).
    """
    network = model.bind(params)
    final = run.states[-1][:, -1]
    scale = jnp.ones((len(final), 1))
    if model.spec.normalization == "LN":
        centred = final - final.mean(-1, keepdims=True)
        scale = jnp.sqrt((centred**2).mean(-1, keepdims=True) + model.spec.eps)

    def readout(states: Float[Array, "row d_model"], scale: Float[Array, "row 1"]) -> Array:
        normalized = network.ln_final(states, HookContext(), scale=scale)
        return network.unembedding(normalized)

    def of_block(inputs: tuple[Array, Array, Array]) -> Array:
        between, acts, weights = inputs
        base = readout(between, scale)
        ones = jnp.ones((len(weights), 1))
        direction = readout(weights, ones) - readout(jnp.zeros_like(weights), ones)

        def of_prompt(prompt: tuple[Array, ...]) -> Array:
            base, acts, scale, answer = prompt
            logits = base[None] + (acts / scale)[:, None] * direction
            token = jnp.full(len(logits), answer)
            return cross_entropy(base[None], token[:1]) - cross_entropy(logits, token)

        found: Array = jax.lax.map(of_prompt, (base, acts, scale[:, 0], answer))
        return found.T

    weights = jnp.stack(
        [
            params["blocks"][str(block % model.spec.n_layers)]["mlp"]["W_out"]
            for block in range(model.spec.depth)
        ]
    )
    increase: Array = jax.lax.map(of_block, (run.between, run.acts[:, :, -1], weights))
    return increase


def answers_without(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    removed: Bool[Array, "prompt layer neuron"],
    mean: Float[Array, "block prompt pos neuron"],
) -> Float[Array, "prompt d_vocab"]:
    """Return the logits at the last position with sets of neurons replaced by their means.

    Args:
      model: the model; static.
      params: the parameters of one checkpoint.
      tokens: the prompts.
      removed: for each prompt, the neurons to replace at all positions. In a looped model, the
        neurons of a layer are replaced in every loop.
      mean: for each prompt, the activations that replace those of the removed neurons.
    """
    last, edits = model.spec.depth - 1, {}
    for block, site in enumerate(neuron_sites(model)):
        new = mean[block] if block < last else mean[block, :, -1:]
        where = removed[:, block % model.spec.n_layers, None]
        edits[site] = Edit(mask, (where, new))
    return forward_at(model, params, tokens, edits=edits)[0][:, 0]


def answers_clearly(
    logits: Float[Array, "*cell prompt d_vocab"], answer: Int[Array, " prompt"]
) -> Bool[Array, "*cell prompt"]:
    """Return whether the logit of the answer is higher than all others by more than `_TIE`.

    Without the neurons of an answer, all logits can be equal except for rounding errors, which
    would give the right answer in some cases.
    """
    index = jnp.broadcast_to(answer, logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, index, axis=-1)
    return (~(logits < own - _TIE)).sum(-1) == 1  # the answer itself is not lower
