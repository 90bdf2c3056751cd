"""Rank-one editing (ROME): one stored value of an MLP is replaced, and other keys change least.

The key k* of a fact is the vector of neuron activations of a block at r1 of the prompt (e1, r1).
In a known world there is one prompt for each fact, so the key is exact. The new matrix maps k* to
the new value v*, and is otherwise as close as possible to the old matrix W, for keys with the
second moment C:

    W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)

The value v* is found by Adam. The loss is that of the changed model: -log p(b') at the prompt of
the fact, plus the KL divergence of the answers to the other facts of e1, plus a penalty on the
length of v* - W k*.

Source: Meng et al. 2022, "Locating and editing factual associations in GPT", section 3.1. There,
k* is a mean over prompts with random prefixes, and the KL divergence is that of "{subject} is a".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.editing.value_search import (
    FactPrompts,
    ValueSearch,
    search_vector,
    search_vectors,
)
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import (
    ChangePoint,
    LowRankChange,
    change_point,
    logits_after_change,
)
from implicit_reasoning.runtime.lapack import one_at_a_time

RIDGE = 1e-2
"""Number that is added to the diagonal of C, as a share of the mean of the diagonal."""


class Memory(NamedTuple):
    """The keys of a block: their second moment, in the form of an eigendecomposition.

    Attributes:
      sizes: the eigenvalues of the second moment C, with the ridge.
      directions: the eigenvectors, as columns.
    """

    sizes: Float[Array, " d_mlp"]
    directions: Float[Array, "d_mlp d_mlp"]

    def solve(self, keys: Float[Array, "edit d_mlp"]) -> Float[Array, "edit d_mlp"]:
        """Return C^-1 k for each key k."""
        inside = _product(keys, self.directions) / self.sizes[None]
        return _product(inside, self.directions.T)


def second_moment(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    weight: Float[Array, "prompt pos"],
    layer: int,
) -> tuple[Float[Array, "d_mlp d_mlp"], Float[Array, ""]]:
    """Compute the second moment of the keys of a block, with the ridge, and the unit of outputs.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: prompts.
      weight: the weight of each state; 1 for distinct prefixes, and 0 for their duplicates.
      layer: the unrolled depth of the block.

    Returns:
      `(C + ridge, unit)`, where `unit` is the root mean square of the outputs of the MLP.
    """
    sites = (f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out")
    found = model.forward(params, tokens, sites=sites)[1]
    acts, outputs = (found[site].reshape(-1, found[site].shape[-1]) for site in sites)
    share = (weight / weight.sum()).reshape(-1, 1)
    moment = _product((acts * share).T, acts)
    size = len(moment)
    ridge = RIDGE * jnp.trace(moment) / size
    unit = jnp.sqrt((share * outputs**2).sum() / outputs.shape[1])
    return moment + ridge * jnp.eye(size), unit


def memory(moment: Float[Array, "d_mlp d_mlp"]) -> Memory:
    """Decompose the second moment of keys. Call this function outside of loops over edits.

    Args:
      moment: the second moment with the ridge, from `second_moment`.
    """
    return Memory(*one_at_a_time(jnp.linalg.eigh, moment))


def exact_keys(
    model: Transformer, params: Params, prompts: FactPrompts, layer: int, pos: int = -1
) -> Float[Array, "edit d_mlp"]:
    """Return the key k* of each edited fact: the activations of the neurons at one position.

    Args:
      model: the model.
      params: the parameters of one model.
      prompts: the prompts of the facts.
      layer: the unrolled depth of the block.
      pos: the position in the prompt (e1, r1). The default is r1. All facts of an entity have the
        same key at e1, where the search alone protects the other facts.
    """
    site = f"blocks.{layer}.mlp.hook_post"
    return model.forward(params, prompts.tokens[:, 0], sites=(site,))[1][site][:, pos]


def rank_one_change(
    key: Float[Array, " d_mlp"],
    solved: Float[Array, " d_mlp"],
    change: Float[Array, " d_model"],
) -> LowRankChange:
    """Return the change of ROME, after which the output for the key is `W k* + change`.

    Args:
      key: the key k*. If it is 0, no change of W can change the output, and the result is 0.
      solved: C^-1 k*.
      change: v* - W k*.
    """
    length = (key * solved).sum()
    keys = jnp.where(length > 0, solved / jnp.where(length > 0, length, 1), 0)
    return LowRankChange(keys[None], change[None])


def rank_one_changes(
    keys: Float[Array, "edit d_mlp"],
    solved: Float[Array, "edit d_mlp"],
    changes: Float[Array, "edit d_model"],
) -> LowRankChange:
    """Return the changes of many edits, each for its own model; see `rank_one_change`."""
    found: LowRankChange = jax.vmap(rank_one_change)(keys, solved, changes)
    return found


def search_values(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    layer: int,
    directions: LowRankChange,
    unit: Float[Array, ""],
    search: ValueSearch,
    earlier: LowRankChange | None = None,
) -> Float[Array, "edit d_model"]:
    """Search for the values of all edits, each in its own changed model.

    Args:
      model: the model.
      params: the parameters of one model.
      prompts: the prompts.
      layer: the unrolled depth of the block.
      directions: changes from `rank_one_changes`; their values are ignored.
      unit: the root mean square of the outputs of the MLP.
      search: the settings.
      earlier: a change [edit, ...] of the same block that each model has before its edit.

    Returns:
      v* - W k* of each edit, where W has the earlier change.
    """
    none = jax.tree.map(lambda part: part[:, :0], directions)

    def prepare(own: FactPrompts, keys: Array, earlier: LowRankChange) -> _OneSearch:
        return _one_search(model, params, own, layer, keys, unit, earlier)

    def loss(one: _OneSearch, step: Array) -> tuple[Array, Array]:
        return _loss(model, params, layer, search, one, step)

    edits = prompts, directions.keys, none if earlier is None else earlier
    return unit * search_vectors(prepare, loss, edits, model.spec.d_model, search)


def search_value(
    model: Transformer,
    params: Params,
    own: FactPrompts,
    layer: int,
    keys: Float[Array, "1 d_mlp"],
    unit: Float[Array, ""],
    search: ValueSearch,
    earlier: LowRankChange,
) -> Float[Array, " d_model"]:
    """Search for the value of one edit; see `search_values`.

    Args:
      model: the model.
      params: the parameters of one model.
      own: the prompts of the edit, without the axis of edits.
      layer: the unrolled depth of the block.
      keys: the keys of the change of the edit.
      unit: the root mean square of the outputs of the MLP.
      search: the settings.
      earlier: a change of the same block before the edit; its rank can be 0.
    """
    one = _one_search(model, params, own, layer, keys, unit, earlier)

    def loss(step: Array) -> tuple[Array, Array]:
        return _loss(model, params, layer, search, one, step)

    return unit * search_vector(loss, model.spec.d_model, search)


class _OneSearch(NamedTuple):
    """What the search for the value of one edit needs.

    Attributes:
      start: the activations of the prompts, from `change_point`.
      before: the log probabilities of the answers before the edit.
      others: whether each prompt is that of another fact.
      new: the token of the new tail b'.
      keys: the keys of the change of the edit.
      unit: the root mean square of the outputs of the MLP.
      earlier: the change before the edit.
    """

    start: ChangePoint
    before: Float[Array, "prompt d_vocab"]
    others: Bool[Array, " prompt"]
    new: Int[Array, ""]
    keys: Float[Array, "1 d_mlp"]
    unit: Float[Array, ""]
    earlier: LowRankChange


def _one_search(
    model: Transformer,
    params: Params,
    own: FactPrompts,
    layer: int,
    keys: Array,
    unit: Array,
    earlier: LowRankChange,
) -> _OneSearch:
    start = change_point(model, params, own.tokens, layer)
    before = jax.nn.log_softmax(logits_after_change(model, params, start, layer, earlier)[:, 0])
    others = jnp.asarray(own.there).at[0].set(False)
    return _OneSearch(start, before, others, jnp.asarray(own.new), keys, unit, earlier)


def _loss(
    model: Transformer,
    params: Params,
    layer: int,
    search: ValueSearch,
    one: _OneSearch,
    step: Float[Array, " d_model"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss of ROME for a change of the output, and its part -log p(b')."""
    both = zip((one.keys, (one.unit * step)[None]), one.earlier, strict=True)
    change = LowRankChange(*(jnp.concatenate(parts) for parts in both))
    after = jax.nn.log_softmax(logits_after_change(model, params, one.start, layer, change)[:, 0])
    divergence = (jnp.exp(one.before) * (one.before - after)).sum(-1)
    divergence = jnp.where(one.others, divergence, 0).sum() / jnp.maximum(one.others.sum(), 1)
    target = -after[0, one.new]
    penalty = search.decay * (step**2).mean()
    return target + search.divergence * divergence + penalty, target


class RankOneEdits(NamedTuple):
    """Rank-one edits of facts, each for its own model.

    Attributes:
      keys: the key k* of each edit.
      added: v* - W k* of each edit.
      change: the change of each edit.
      unit: the root mean square of the outputs of the MLP.
    """

    keys: Float[Array, "edit d_mlp"]
    added: Float[Array, "edit d_model"]
    change: LowRankChange
    unit: Float[Array, ""]


def rome_edits(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    moment: Mapping[str, Any],
    layer: int,
    search: ValueSearch,
    pos: int = -1,
) -> RankOneEdits:
    """Compute the rank-one edit of each fact.

    Args:
      model: the model.
      params: the parameters of one model.
      prompts: the prompts of the facts.
      moment: the prompts of the second moment, arguments of `second_moment`.
      layer: the unrolled depth of the block.
      search: the settings of the search for v*.
      pos: the position of the key in the prompt; see `exact_keys`.
    """
    second, unit = second_moment(model, params, moment["tokens"], moment["weight"], layer)
    keys = exact_keys(model, params, prompts, layer, pos)
    nothing = jnp.zeros((len(keys), model.spec.d_model))
    directions = rank_one_changes(keys, memory(second).solve(keys), nothing)
    added = search_values(model, params, prompts, layer, directions, unit, search)
    return RankOneEdits(keys, added, directions._replace(values=added[:, None]), unit)


def random_change(key: Array, like: LowRankChange) -> LowRankChange:
    """Return a random change of rank one with the Frobenius norm of another change.

    Args:
      key: the random key.
      like: a change of rank one.
    """
    names = jax.random.split(key)
    keys, values = (
        jax.random.normal(name, part.shape) for name, part in zip(names, like, strict=True)
    )
    drawn = LowRankChange(keys, values)
    return LowRankChange(keys, values * (like.norm() / drawn.norm()))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
