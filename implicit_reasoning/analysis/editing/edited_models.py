"""Evaluate many edited models in one program, one model for each edit.

The models are never copied: a change of `W_out` is a pair of vectors, and the changes of all edits
are mapped over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.editing.edit_cases import KINDS, POSITIONS
from implicit_reasoning.analysis.editing.scores import Case, score_edit
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.model import Edits, Params, Transformer
from implicit_reasoning.model.surgery import (
    ChangePoint,
    LowRankChange,
    change_edits,
    change_point,
    logits_after_change,
    output_matrix,
)
from implicit_reasoning.model.wirings import forward_at


class Rest(NamedTuple):
    """Other prompts, which no edit should change; see `edit_cases.Others`.

    Attributes:
      tokens, position, answer: as in `Others`.
      counted: whether each prompt counts for the locality of each edit: it is not related to the
        edit, and the model answers it correctly before the edit.
      start: the activations from which `logits_after_change` continues.
    """

    tokens: Int[Array, "prompt pos"]
    position: Int[Array, " prompt"]
    answer: Int[Array, " prompt"]
    counted: Bool[Array, "edit prompt"]
    start: ChangePoint


class ScoredEdits(NamedTuple):
    """The scores of all edits; see `scores.Scored`.

    Attributes:
      share, counted: the scores.
      size: the Frobenius norm of the change of `W_out`, as a share of the norm of `W_out`; 0 if
        `W_out` is 0.
    """

    share: Float[Array, "*editor edit score"]
    counted: Bool[Array, "*editor edit score"]
    size: Float[Array, "*editor edit"]


def prepare(
    model: Transformer,
    params: Params,
    case: Mapping[str, Any],
    others: Mapping[str, Any],
    layer: int,
) -> tuple[Case, Rest]:
    """Find the prompts that the model answers correctly before any edit.

    Args:
      model: the model.
      params: the parameters of one model.
      case: the fields of `edit_cases.Consequences`.
      others: the fields of `edit_cases.Others`.
      layer: the unrolled depth of the block that is edited.
    """
    fields = {name: case[name] for name in Case._fields if name != "counted"}
    cases = Case(**fields, counted=jnp.asarray(case["kind"] >= 0))

    def right(one: Case) -> Array:
        return one.counted & answers_with(consequence_logits(model, params, one), one.before)

    cases = cases._replace(counted=jax.lax.map(right, cases))
    tokens, position, answer = (others[name] for name in ("tokens", "position", "answer"))
    logits = answer_logits(model, params, tokens, position)
    counted = answers_with(logits, answer)[None] & ~others["related"]
    return cases, Rest(
        tokens, position, answer, counted, change_point(model, params, tokens, layer)
    )


def consequence_logits(
    model: Transformer, params: Params, case: Case, edits: Edits | None = None
) -> Float[Array, "prompt d_vocab"]:
    """Return the logits of the answers to the prompts of one edit.

    Args:
      model: the model.
      params: the parameters of the edited model.
      case: the consequences of the edit.
      edits: edits of activations; see `answer_logits`.
    """
    return answer_logits(model, params, case.tokens, case.position, edits)


def answer_logits(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    position: Int[Array, " prompt"],
    edits: Edits | None = None,
    *,
    whole: bool = False,
) -> Float[Array, "prompt d_vocab"]:
    """Return the logits of the answers to prompts.

    Prompts with a token after r2 are those of a chain of thought. The model then outputs the bridge
    (greedy decoding), and reads it before it answers. Prompts of one fact end before this token.

    Args:
      model: the model.
      params: the parameters of the edited model.
      tokens: the prompts.
      position: the position that predicts the answer.
      edits: edits of activations.
      whole: whether the last block is computed at all positions. Edits of the last block that
        depend on the position need it.
    """
    tokens = with_bridge(model, params, tokens, edits, whole=whole)
    return _logits_at(model, params, tokens, position, edits, whole)


def with_bridge(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    edits: Edits | None = None,
    *,
    whole: bool = False,
) -> Int[Array, "prompt pos"]:
    """Return prompts with the bridge that the model outputs in the place of a chain of thought.

    Prompts without such a place are returned unchanged.

    Args:
      model: the model.
      params: the parameters of the model that outputs the bridge.
      tokens: the prompts.
      edits: edits of activations.
      whole: as in `answer_logits`.
    """
    if not has_thought(tokens):
        return tokens
    position = jnp.full(len(tokens), len(POSITIONS) - 1)
    bridge = _logits_at(model, params, tokens, position, edits, whole).argmax(-1)
    return jnp.asarray(tokens).at[:, len(POSITIONS)].set(bridge.astype(tokens.dtype))


def _logits_at(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "prompt pos"],
    position: Int[Array, " prompt"],
    edits: Edits | None,
    whole: bool,
) -> Float[Array, "prompt d_vocab"]:
    """Return the logits at one position of each prompt."""
    if not whole:
        return forward_at(model, params, tokens, position[:, None], edits=edits)[0][:, 0]
    logits = model.forward(params, tokens, edits=edits)[0]
    return jnp.take_along_axis(logits, position[:, None, None], axis=1)[:, 0]


def has_thought(tokens: Int[Array | np.ndarray, "*prompt pos"]) -> bool:
    """Return whether prompts have a place for a chain of thought."""
    return tokens.shape[-1] > len(POSITIONS)


def score_unchanged(model: Transformer, params: Params, cases: Case, rest: Rest) -> ScoredEdits:
    """Score the model without any edit, as a null control.

    Args:
      model: the model.
      params: the parameters of the model.
      cases: the consequences of all edits, from `prepare`.
      rest: the other prompts, from `prepare`.
    """

    def one(item: tuple[Case, Array]) -> ScoredEdits:
        case, counted = item
        logits = consequence_logits(model, params, case)
        scored = score_edit(case, logits, counted, counted, needs_efficacy=False)
        return ScoredEdits(*scored, jnp.float32(0))

    found: ScoredEdits = jax.lax.map(one, (cases, rest.counted))
    return found


def score_changes(
    model: Transformer,
    params: Params,
    cases: Case,
    rest: Rest,
    layer: int,
    changes: LowRankChange,
    is_null: Bool[Array, " editor"],
) -> ScoredEdits:
    """Score models in which the `W_out` of one block is changed.

    Args:
      model: the model.
      params: the parameters without the changes.
      cases: the consequences of all edits, from `prepare`.
      rest: the other prompts, from `prepare`.
      layer: the unrolled depth of the block.
      changes: the change of each editor and edit, [editor, edit, ...].
      is_null: whether each editor is a null control, whose edits count even if they fail.

    Returns:
      The scores [editor, edit, ...].
    """
    norm = jnp.linalg.norm(output_matrix(model, params, layer))
    n_editors, n_edits = changes.keys.shape[:2]

    def one(item: tuple[Array, Array, LowRankChange]) -> ScoredEdits:
        edit, is_null, change = item
        case = jax.tree.map(lambda leaf: leaf[edit], cases)
        logits = consequence_logits(model, params, case, change_edits(model, layer, change))
        if has_thought(rest.tokens):  # what the changed model outputs is not known before
            edits = change_edits(model, layer, change)
            after = answer_logits(model, params, rest.tokens, rest.position, edits)
        else:
            after = logits_after_change(
                model, params, rest.start, layer, change, rest.position[:, None]
            )[:, 0]
        kept = answers_with(after, rest.answer)
        scored = score_edit(case, logits, kept, rest.counted[edit], needs_efficacy=~is_null)
        return ScoredEdits(*scored, share_of(change.norm(), norm))

    edit = jnp.tile(jnp.arange(n_edits), n_editors)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), changes)
    found = jax.lax.map(one, (edit, jnp.repeat(is_null, n_edits), flat))
    scored: ScoredEdits = jax.tree.map(
        lambda leaf: leaf.reshape(n_editors, n_edits, *leaf.shape[1:]), found
    )
    return scored


def score_parameters(
    model: Transformer,
    params: Params,
    cases: Case,
    rest: Rest,
    layer: int,
    make: Callable[[Array], Params],
    taught: Bool[Array, "edit prompt"] | None = None,
) -> ScoredEdits:
    """Score models whose parameters differ, one set of parameters for each edit.

    One edit is made and scored at a time, so only one set of parameters is in memory.

    Args:
      model: the model.
      params: the parameters without any edit.
      cases: the consequences of all edits, from `prepare`.
      rest: the other prompts, from `prepare`.
      layer: the unrolled depth of the block whose change of `W_out` is reported.
      make: function from the number of an edit to the parameters of the edited model.
      taught: prompts whose answers the editor has seen. They do not count, except for the fact.
    """
    old = output_matrix(model, params, layer)
    norm = jnp.linalg.norm(old)

    def one(edit: Array) -> ScoredEdits:
        edited = make(edit)
        case = jax.tree.map(lambda leaf: leaf[edit], cases)
        if taught is not None:
            unseen = ~taught[edit] | (case.kind == KINDS.index("fact"))
            case = case._replace(counted=case.counted & unseen)
        logits = consequence_logits(model, edited, case)
        after = answer_logits(model, edited, rest.tokens, rest.position)
        scored = score_edit(case, logits, answers_with(after, rest.answer), rest.counted[edit])
        size = share_of(jnp.linalg.norm(output_matrix(model, edited, layer) - old), norm)
        return ScoredEdits(*scored, size)

    found: ScoredEdits = jax.lax.map(one, jnp.arange(len(cases.kind)))
    return found


class Kept(NamedTuple):
    """The other prompts in one model with all edits.

    Attributes:
      right: whether each prompt has its right answer.
      counted: whether each prompt counts: it is not related to any edit, and the model answers it
        correctly before the edits.
    """

    right: Bool[Array, " prompt"]
    counted: Bool[Array, " prompt"]


def kept_together(model: Transformer, edited: Params, rest: Rest) -> Kept:
    """Return which other prompts keep their answers in one model with all edits.

    There is one model, so these outcomes are those of prompts, and not of edits.

    Args:
      model: the model.
      edited: the parameters with all edits.
      rest: the other prompts, from `prepare`.
    """
    after = answer_logits(model, edited, rest.tokens, rest.position)
    return Kept(answers_with(after, rest.answer), rest.counted.all(0))


def score_together(
    model: Transformer,
    params: Params,
    edited: Params,
    cases: Case,
    kept: Kept,
    layer: int,
    shared: Bool[Array, "edit prompt"],
) -> ScoredEdits:
    """Score one model with all edits. Its locality is the same for every edit.

    Args:
      model: the model.
      params: the parameters without any edit.
      edited: the parameters with all edits.
      cases: the consequences of all edits, from `prepare`.
      kept: the other prompts, from `kept_together`.
      layer: the unrolled depth of the block whose change of `W_out` is reported.
      shared: prompts that use a fact of another edit (`Consequences.shared`). They do not count.
    """
    old, new = (output_matrix(model, one, layer) for one in (params, edited))
    size = share_of(jnp.linalg.norm(new - old), jnp.linalg.norm(old))

    def one(item: tuple[Case, Array]) -> ScoredEdits:
        case, shared = item
        case = case._replace(counted=case.counted & ~shared)
        logits = consequence_logits(model, edited, case)
        return ScoredEdits(*score_edit(case, logits, *kept), size)

    found: ScoredEdits = jax.lax.map(one, (cases, shared))
    return found


def share_of(size: Float[Array, ""], norm: Float[Array, ""]) -> Float[Array, ""]:
    """Return a norm as a share of another one; 0 if the other one is 0, as in an empty MLP."""
    return jnp.where(norm > 0, size / jnp.where(norm > 0, norm, 1), 0)
