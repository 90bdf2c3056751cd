"""What a head does to single tokens, from its weights: copying, and the successor.

A head that attends to a position adds `x W_V W_O` to the residual stream. Here x is the embedding
of a token, or the mean state of a value of a variable. The output is compared with all embeddings,
or is unembedded.

Sources: Elhage et al. 2021 (copying heads); Gould et al. 2023 (successor heads).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.states import another_of_group
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.model.blocks import GPT2Block
from implicit_reasoning.worlds import Dataset

SPACES = ("embedding", "unembedding")
"""Where the output of a head is compared with tokens: nearest embedding, or highest logit."""

_CYCLIC = ("value", "a")
"""Truth columns of tasks in which the first token follows the last: successor, modular_addition."""

_ORDERED = ("start", *_CYCLIC)
"""Truth columns of tasks whose answers are ordered; `start` is that of greater_than."""


def head_outputs(
    model: Transformer, params: Params, states: Float[Array, "block row d_model"]
) -> Float[Array, "block head row d_model"]:
    """Return `norm(x) W_V W_O` of every head, without biases.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      states: the states x at the input of each block.
    """
    network, outputs = model.bind(params), []
    for number in range(model.spec.depth):
        block = network.block(number)
        assert isinstance(block, GPT2Block)  # the instrument has checked it
        attn = params["blocks"][str(number % model.spec.n_layers)]["attn"]
        read = block.ln1(states[number], HookContext()).astype(jnp.float32)
        values = jnp.einsum("rd,hde->hre", read, attn["W_V"], precision="highest")
        outputs.append(jnp.einsum("hre,hed->hrd", values, attn["W_O"], precision="highest"))
    return jnp.stack(outputs)


def is_copied(
    model: Transformer,
    params: Params,
    outputs: Float[Array, "*cell row d_model"],
    tokens: Int[Array, " row"],
    candidates: Bool[Array, " d_vocab"],
) -> Bool[Array, "space *cell row"]:
    """Return whether each output is most similar to its token, in each of `SPACES`.

    The similarity is the cosine with the embedding, or the logit after the final norm. A tie is
    wrong.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      outputs: outputs of heads.
      tokens: the token of each row; -1 counts as wrong.
      candidates: the tokens with which an output is compared.
    """
    embedding = params["embed"]["W_E"]
    unit = embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)
    length = jnp.linalg.norm(outputs, axis=-1, keepdims=True)
    direction = jnp.where(length > 0, outputs / length, 0.0)
    cosine = jnp.matmul(direction, unit.T, precision="highest")
    logits = model.bind(params).readout(outputs, HookContext())
    there = jnp.broadcast_to(candidates, cosine.shape)
    scores = (jnp.where(there, values, -jnp.inf) for values in (cosine, logits))
    return jnp.stack([answers_with(values, tokens) for values in scores])


class Means(NamedTuple):
    """Values of a variable, for the mean states of its values.

    Attributes:
      name: the name of the variable.
      place: int [row], the position whose state is averaged.
      token: int [row], the token of the value.
    """

    name: str
    place: Int[np.ndarray, " row"]
    token: Int[np.ndarray, " row"]


def mean_states(
    states: Float[Array, "block row d_model"], token: Int[Array, " row"], d_vocab: int
) -> tuple[Float[Array, "block d_vocab d_model"], Bool[Array, " d_vocab"]]:
    """Return the mean state of the rows of each token, and whether the token has a row."""
    of_token = (jnp.arange(d_vocab)[:, None] == token[None]).astype(states.dtype)
    count = of_token.sum(1)
    sums = jnp.einsum("vr,brd->bvd", of_token, states, precision="highest")
    return sums / jnp.maximum(count, 1)[None, :, None], count > 0


def successors(dataset: Dataset) -> Int[np.ndarray, " d_vocab"]:
    """Return the next token of each token; -1 for tokens without a next token.

    A task has ordered tokens if its truth has a column of ordered values (`value`, `start` or `a`).
    The ordered tokens are those that occur as answers. Their names end with a number, and the next
    token has the next number and the same name otherwise. The orders of the tasks `successor` and
    `modular_addition` are cyclic: the token with the number 0 follows the last one. The last year
    of `greater_than` has no next token.

    Args:
      dataset: the dataset of any task.
    """
    found = np.full(dataset.n_vocab, -1, np.int32)
    if not any(name in dataset.truth for name in _ORDERED):
        return found
    answers = np.unique(dataset.truth["answer"])
    parts = [re.fullmatch(r"(.*?)(\d+)>?", name) for name in dataset.vocab]
    every = {(m[1], int(m[2])): token for token, m in enumerate(parts) if m}
    numbered = {name: token for name, token in every.items() if token in answers}
    is_cyclic = any(name in dataset.truth for name in _CYCLIC)
    for (stem, number), token in numbered.items():
        is_last = (stem, number + 1) not in every
        following = (stem, 0 if is_cyclic and is_last else number + 1)
        found[token] = numbered.get(following, -1)
    return found


def says_successor(
    model: Transformer,
    params: Params,
    following: Int[Array, " d_vocab"],
    candidates: Bool[Array, " d_vocab"],
) -> Bool[Array, "block head d_vocab"]:
    """Return whether unembed(OV(MLP0(E_t))) is highest at the successor of the token t.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      following: the successor of each token; -1 counts as wrong.
      candidates: the tokens with which the output is compared.
    """
    first = model.bind(params).block(0)
    assert isinstance(first, GPT2Block)  # the instrument has checked it
    embedding = params["embed"]["W_E"][None]
    written = first.mlp(first.ln2(embedding, HookContext()), HookContext())
    states = jnp.broadcast_to(written.astype(jnp.float32), (model.spec.depth, *written.shape[1:]))
    outputs = head_outputs(model, params, states)
    logits = model.bind(params).readout(outputs, HookContext())
    there = jnp.broadcast_to(candidates, logits.shape)
    return answers_with(jnp.where(there, logits, -jnp.inf), following)


def share(values: Bool[Array, "*cell row"], there: Bool[Array, " row"]) -> Float[Array, "*cell"]:
    """Return the share of true values among the rows of `there`; nan if there are none."""
    counted = values & jnp.broadcast_to(there, values.shape)
    return jnp.where(there.any(), counted.sum(-1) / jnp.maximum(there.sum(), 1), jnp.nan)


def derangement(there: Bool[np.ndarray, " token"], seed: int) -> Int[np.ndarray, " token"]:
    """Return a random permutation that moves every token of `there` to another one of `there`.

    With fewer than two such tokens, nothing is moved.
    """
    alone = np.arange(len(there))
    return another_of_group(np.where(there, -1, alone), np.random.default_rng(seed))


__all__ = [
    "SPACES",
    "Means",
    "derangement",
    "head_outputs",
    "is_copied",
    "mean_states",
    "says_successor",
    "share",
    "successors",
]
