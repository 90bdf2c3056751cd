"""Measure what the edit of one fact changes in one model, beside controls.

Four kinds of models answer the same prompts: the model before the edit, the edited model, models
with random changes of equal norm, and the model before the edit whose state is overwritten wherever
a prompt uses the fact. All prompts are the consequences of the edit (`edit_cases.py`), with a
sample of other prompts for locality.

Two readings show why a consequence follows or not:

- The logit lens reads the states S[layer, r1] of the prompt of the fact. A chain that uses the fact
  at the first hop has the same states there, so the lens shows which bridge is decodable in it.
- `written` compares the change of the state where a prompt uses the fact with the change at r1 of
  the fact. It is 1 if the edit writes there what it writes at the fact, and 0 if it writes nothing.

With a chain of thought, each model outputs the bridge of a chain and reads it, before it answers.
In a looped model, an edited block changes in every loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.editing.edit_cases import (
    KINDS,
    Consequences,
    consequences,
    other_prompts,
)
from implicit_reasoning.analysis.editing.edited_models import (
    answer_logits,
    has_thought,
    with_bridge,
)
from implicit_reasoning.analysis.editing.fact_edit import N_PROMPTS, EditMethod, FactEdit
from implicit_reasoning.analysis.editing.state_edits import overwrite
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.model.surgery import changed_depths
from implicit_reasoning.runtime.machine import highest_precision
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.world import NONE

N_RANDOM = 10
"""The number of random changes."""

_OTHERS = 500  # prompts for locality
_TOKEN = re.compile(r"<([er])_(\d+)>")


class Answered(NamedTuple):
    """What one model answers. With several models, all arrays have a leading axis `model`.

    Attributes:
      bridge: the bridge that the model outputs before it answers a chain; -1 without a chain of
        thought.
      token: the answer: the token with the highest logit.
      probability: the probability of the answer.
      is_old: whether the answer is right before the edit. A tie counts as wrong.
      is_new: whether the answer is right after the edit.
      kept: whether each of the other prompts has its right answer.
    """

    bridge: Int[Array, "*model prompt"]
    token: Int[Array, "*model prompt"]
    probability: Float[Array, "*model prompt"]
    is_old: Bool[Array, "*model prompt"]
    is_new: Bool[Array, "*model prompt"]
    kept: Bool[Array, "*model other"]


class BridgeReading(NamedTuple):
    """What the logit lens with the final norm reads at r1 of the fact, for each S[layer].

    Attributes:
      token: the token with the highest logit.
      probability: its probability.
      old: the rank of the old tail among all tokens, from 0.
      new: the rank of the new tail.
    """

    token: Int[Array, "*model layer"]
    probability: Float[Array, "*model layer"]
    old: Int[Array, "*model layer"]
    new: Int[Array, "*model layer"]


class EditEffects(NamedTuple):
    """What an edit changes.

    Attributes:
      edit: the fact and its new tail.
      method: the method of the edit.
      read: the numbers of the states S[layer] whose change `written` compares, in ascending order:
        the states after the last edited block, one for each loop.
      changed: the unrolled depths of the blocks that change; empty if all weights change.
      depth: the number of blocks of the model; blocks of looped models count once for each loop.
      names: the name of each token, such as "e12".
      prompts: the prompts, without padding, as the only edit of `Consequences`.
      before, after: the answers before and after the edit.
      random: the answers of models with random changes of equal norm.
      state: the answers of the model before the edit, with the change of S[read[0]] at r1 of the
        fact added wherever a prompt uses the fact.
      lens_before, lens_after, lens_random: the readings of the bridge.
      written: for each prompt, the part of the change of S[read[0]] at r1 of the fact that a state
        has where the prompt uses the fact, or else where the prompt is answered. It is the largest
        part over `read`.
      size: the Frobenius norm of the change, as a share of the norm of the arrays that change.
    """

    edit: FactEdit
    method: EditMethod
    read: tuple[int, ...]
    changed: tuple[int, ...]
    depth: int
    names: tuple[str, ...]
    prompts: Consequences
    before: Answered
    after: Answered
    random: Answered
    state: Answered
    lens_before: BridgeReading
    lens_after: BridgeReading
    lens_random: BridgeReading
    written: Float[np.ndarray, " prompt"]
    size: float

    def of_kind(self, kind: str) -> Int[np.ndarray, " prompt"]:
        """Return the indices of the prompts of a kind."""
        return np.flatnonzero(self.prompts.kind == KINDS.index(kind))

    def known(self, kind: str) -> Int[np.ndarray, " prompt"]:
        """Return the indices of the prompts of a kind that are answered right before the edit."""
        of = self.of_kind(kind)
        return of[np.asarray(self.before.is_old)[of]]


def measure_effects(
    model: Transformer,
    before: Params,
    after: Params,
    dataset: Dataset,
    edit: FactEdit,
    method: EditMethod,
    seed: int = 0,
) -> EditEffects:
    """Measure what an edit changes.

    Args:
      model: the model.
      before: the parameters before the edit.
      after: the parameters after the edit, from `edit_fact`.
      dataset: the dataset of the model.
      edit: the fact and its new tail.
      method: the method of the edit.
      seed: the seed of the choice of prompts and of the random changes.
    """
    edits, read = edit.as_edits(), read_layers(model, method)
    prompts = Consequences(*(column[0] for column in consequences(dataset, edits, seed)))
    others = other_prompts(dataset, edits, _OTHERS, seed)
    inputs = {
        "prompts": _padded(prompts),
        "others": {name: getattr(others, name) for name in ("tokens", "position", "answer")},
        "tails": np.array([edit.old, edit.new], np.int32),
    }
    arguments = before, after, jax.tree.map(jnp.asarray, inputs), jax.random.key(seed)
    found = jax.device_get(_program(model, read, _changed(before, after))(*arguments))

    def answers(model: Answered) -> Answered:
        columns = {
            name: column[..., : len(prompts.kind)] for name, column in model._asdict().items()
        }
        counts = ~others.related[0] & found.answered.kept[0]
        return Answered(**columns | {"kept": model.kept[..., counts]})

    before_edit, after_edit, random = (
        jax.tree.map(lambda leaf, at=at: leaf[at], (found.answered, found.lens))
        for at in (0, 1, slice(2, None))
    )
    return EditEffects(
        edit,
        method,
        read,
        tuple(sorted({depth for layer in method.layers for depth in changed_depths(model, layer)})),
        model.spec.depth,
        tuple(_TOKEN.sub(r"\1\2", name) for name in dataset.vocab),
        prompts,
        before=answers(before_edit[0]),
        after=answers(after_edit[0]),
        random=answers(random[0]),
        state=answers(found.overwritten),
        lens_before=before_edit[1],
        lens_after=after_edit[1],
        lens_random=random[1],
        written=found.written[: len(prompts.kind)],
        size=float(found.size),
    )


def _padded(prompts: Consequences) -> dict[str, np.ndarray]:
    """Return the columns of prompts, padded so that all edits of a model share programs."""
    padding = N_PROMPTS - len(prompts.kind)
    return {
        name: np.pad(column, [(0, padding)] + [(0, 0)] * (column.ndim - 1))
        for name, column in prompts._asdict().items()
    }


def _changed(before: Params, after: Params) -> tuple[bool, ...]:
    """Return which arrays differ. The others need no random numbers."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return tuple(bool((np.asarray(old) != np.asarray(new)).any()) for old, new in pairs)


class _Found(NamedTuple):
    """What the program returns. The models are those before and after the edit, and random ones."""

    answered: Answered
    lens: BridgeReading
    overwritten: Answered
    written: Float[Array, " prompt"]
    size: Float[Array, ""]


def _program(
    model: Transformer, read: tuple[int, ...], changed: Sequence[bool]
) -> Callable[..., _Found]:
    """Return the compiled function that asks all models."""

    @jax.jit
    @highest_precision
    def compute(before: Params, after: Params, inputs: Any, key: Array) -> _Found:
        def ask_model(item: tuple[Array, Array]) -> tuple[Answered, BridgeReading, Array]:
            number, key = item
            drawn = random_like(key, before, after, changed)
            params = jax.tree.map(
                lambda *leaves: jnp.select([number == 0, number == 1], leaves[:2], leaves[2]),
                *(before, after, drawn),
            )
            return _ask(model, params, inputs, read)

        # The number of a model is 0 before the edit and 1 after it.
        models = jnp.arange(2 + N_RANDOM), jax.random.split(key, 2 + N_RANDOM)
        answered, lens, states = jax.lax.map(ask_model, models)
        change = states[1] - states[0]  # of every state that is read, at every prompt
        at_fact = change[0, 0]
        place = jnp.where(inputs["prompts"]["kind"] < 3, inputs["prompts"]["place"], NONE)
        edits = overwrite((read[0] - 1,), "hook_resid_post", place, at_fact)
        overwritten = _ask(model, before, inputs, read, edits)[0]
        length = (at_fact**2).sum()
        written = (change * at_fact[None, None]).sum(-1).max(0) / jnp.where(length > 0, length, 1)
        return _Found(answered, lens, overwritten, written, change_size(before, after))

    return compute


def read_layers(model: Transformer, method: EditMethod) -> tuple[int, ...]:
    """Return the numbers of the states S[layer] in which an edit is looked for.

    They are the states after the last edited block, one for each loop. If all weights change, it is
    the last state that a later block reads.
    """
    if method.layers:
        return tuple(depth + 1 for depth in changed_depths(model, method.layers[-1]))
    return (max(model.spec.depth - 1, 1),)


def random_like(
    key: Key[Array, ""], before: Params, after: Params, changed: Sequence[bool]
) -> Params:
    """Return parameters with a random change of each array, of equal norm as that of an edit.

    Changes of matrices have rank one.

    Args:
      key: the random key.
      before: the parameters before the edit, to which the random change is added.
      after: the parameters after the edit.
      changed: whether the edit changes each array, in the order of the leaves of `before`.
    """
    leaves, structure = jax.tree.flatten(before)

    def draw(key: Array, old: Array, new: Array) -> Array:
        if old.ndim == 2:
            sides = zip(jax.random.split(key), old.shape, strict=True)
            one, other = (jax.random.normal(part, (size,)) for part, size in sides)
            drawn = one[:, None] * other[None]
        else:
            drawn = jax.random.normal(key, old.shape)
        return old + drawn * (jnp.linalg.norm(new - old) / jnp.linalg.norm(drawn))

    return jax.tree.unflatten(
        structure,
        [
            draw(jax.random.fold_in(key, number), old, new) if differs else old
            for number, (old, new, differs) in enumerate(
                zip(leaves, jax.tree.leaves(after), changed, strict=True)
            )
        ],
    )


def change_size(before: Params, after: Params) -> Float[Array, ""]:
    """Return the norm of a change, as a share of the norm of all arrays that it changes."""
    old, new = jax.tree.leaves(before), jax.tree.leaves(after)
    changes = jnp.stack([((b - a) ** 2).sum() for a, b in zip(old, new, strict=True)])
    sizes = jnp.stack([(a**2).sum() for a in old])
    total = jnp.where(changes > 0, sizes, 0).sum()
    return jnp.sqrt(changes.sum() / jnp.where(total > 0, total, 1))


def _ask(
    model: Transformer, params: Params, inputs: Any, read: tuple[int, ...], edits: Any = None
) -> tuple[Answered, BridgeReading, Float[Array, "read prompt d_model"]]:
    """Return the answers of one model, the readings of the bridge, and the states that are read."""
    prompts, others, sites = inputs["prompts"], inputs["others"], model.resid_sites
    tokens = with_bridge(model, params, prompts["tokens"], edits, whole=edits is not None)
    bridge = tokens[:, -1] if has_thought(tokens) else jnp.full(len(tokens), NONE)
    logits, found = model.forward(params, tokens, edits=edits, sites=sites)
    at_answer = _at(logits, prompts["position"])
    shares = jax.nn.softmax(at_answer)
    # States are not edited in other prompts, because no fact of theirs is edited.
    rest = answer_logits(model, params, others["tokens"], others["position"])
    answered = Answered(
        bridge,
        at_answer.argmax(-1),
        shares.max(-1),
        answers_with(at_answer, prompts["before"]),
        answers_with(at_answer, prompts["after"]),
        answers_with(rest, others["answer"]),
    )
    states = jnp.stack([found[site][0, 1] for site in sites])
    logits_of_bridge = model.bind(params).readout(states, HookContext())
    tails = jnp.broadcast_to(inputs["tails"][:, None], (2, len(sites)))
    old, new = ranks(logits_of_bridge, tails[None])[0]
    shares_of_bridge = jax.nn.softmax(logits_of_bridge)
    lens = BridgeReading(logits_of_bridge.argmax(-1), shares_of_bridge.max(-1), old, new)
    place = jnp.where(prompts["place"] >= 0, prompts["place"], prompts["position"])
    return answered, lens, jnp.stack([_at(found[sites[layer]], place) for layer in read])


def _at(
    values: Float[Array, "prompt pos size"], position: Int[Array, " prompt"]
) -> Float[Array, "prompt size"]:
    return jnp.take_along_axis(values, position[:, None, None], axis=1)[:, 0]
