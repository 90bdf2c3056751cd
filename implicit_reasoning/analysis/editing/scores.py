"""Score the answers of an edited model against the edited table of facts.

A prompt counts if the model answers it correctly before the edit. All scores are shares of the
prompts of one edit, so an edit is one observation, however many consequences it has.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.editing.edit_cases import KINDS
from implicit_reasoning.analysis.patching.outcomes import answers_with

SCORES = {
    "efficacy": "the fact has the new answer",
    "first hop": "chains (e1, r1, r2) have the answer of the new tail",
    "second hop": "chains (e0, r0, r1) have the new answer",
    "both": "the first hop and the second hop of the same edit, as the product of the two shares",
    "stale first hop": "chains (e1, r1, r2) have their old answer",
    "stale second hop": "chains (e0, r0, r1) have their old answer",
    "same entity": "other facts of e1 keep their answer",
    "same relation": "facts of other entities with r1 keep their answer",
    "locality": "other prompts keep their answer",
}
"""The scores, with their definitions."""

_FACT, _FIRST, _SECOND, _ENTITY, _RELATION = range(len(KINDS))


class Case(NamedTuple):
    """The consequences of one edit; see `edit_cases.Consequences`.

    Attributes:
      tokens, position, before, after, kind, place: as in `Consequences`.
      counted: whether the prompt counts: it is no padding, and the model answers it correctly
        before the edit.
    """

    tokens: Int[Array, "prompt pos"]
    position: Int[Array, " prompt"]
    before: Int[Array, " prompt"]
    after: Int[Array, " prompt"]
    kind: Int[Array, " prompt"]
    place: Int[Array, " prompt"]
    counted: Bool[Array, " prompt"]


class Scored(NamedTuple):
    """The scores of one edit.

    Attributes:
      share: the share of each score, in the order of `SCORES`; 0 if no prompt counts.
      counted: whether a prompt counts for each score.
    """

    share: Float[Array, " score"]
    counted: Bool[Array, " score"]


def score_edit(
    case: Case,
    logits: Float[Array, "prompt d_vocab"],
    kept: Bool[Array, " other"],
    counted: Bool[Array, " other"],
    *,
    needs_efficacy: Bool[Array, ""] | bool = True,
) -> Scored:
    """Return the scores of one edit.

    Args:
      case: the consequences of the edit.
      logits: the logits of the edited model for the prompts of the case.
      kept: whether each of the other prompts has its right answer after the edit.
      counted: whether each of the other prompts counts for locality.
      needs_efficacy: whether all scores except efficacy count only if the edit succeeded: the fact
        has the new answer. Set it to false for null controls.
    """
    new, old = answers_with(logits, case.after), answers_with(logits, case.before)

    def share(of: Array, kind: int) -> tuple[Array, Array]:
        return _mean(of, case.counted & (case.kind == kind))

    fact, first, second = (share(new, kind) for kind in (_FACT, _FIRST, _SECOND))
    both = first[0] * second[0], first[1] & second[1]
    stale = [share(old, kind) for kind in (_FIRST, _SECOND)]
    near = [share(new, kind) for kind in (_ENTITY, _RELATION)]
    found = [fact, first, second, both, *stale, *near, _mean(kept, counted)]
    shares, there = (jnp.stack(part) for part in zip(*found, strict=True))
    succeeded = (fact[0] == 1) | ~jnp.asarray(needs_efficacy)
    is_efficacy = jnp.arange(len(SCORES)) == 0
    return Scored(shares, there & (succeeded | is_efficacy))


def _mean(of: Bool[Array, " item"], counted: Bool[Array, " item"]) -> tuple[Array, Array]:
    count = counted.sum()
    return (of & counted).sum() / jnp.maximum(count, 1), count > 0
