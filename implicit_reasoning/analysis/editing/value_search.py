"""Search by Adam for the vector that makes a model answer with the new tail.

The vectors of many edits are searched at once. The loss of an edit is evaluated in its own edited
model. A search ends when the new answer is certain enough.

Source: Meng et al. 2022, section 3.1 and appendix E.5 (the value of ROME).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.editing.descent import descend

_AT_ONCE = 25  # maximum number of edits per chunk; their prompts are one batch


class FactPrompts(NamedTuple):
    """Prompts (e1, r1) of edited facts, with prompts of other facts of the same entity.

    Attributes:
      tokens: the prompts. The first prompt of each edit is that of the edited fact. The last
        position predicts the answer, so prompts can also be chains of one length.
      there: whether there is a prompt; false for padding.
      new: the token of the new tail b'.
    """

    tokens: Int[Array | np.ndarray, "edit prompt pos"]
    there: Bool[Array | np.ndarray, "edit prompt"]
    new: Int[Array | np.ndarray, " edit"]


@dataclass(frozen=True)
class ValueSearch:
    """Settings of the search for v*.

    Attributes:
      steps: maximum number of steps of Adam.
      rate: the learning rate, in units of the root mean square of the outputs of the MLP.
      enough: an edit whose loss -log p(b') is below this number is not changed further, in nats. A
        trained model is far more certain of its facts than ROME's 0.05, and with 0.02 instead of
        1e-4 fewer first-hop chains follow.
      divergence: weight of the KL divergence of other facts of e1.
      decay: weight of |v* - W k*|^2 / |unit|^2, where |unit| is the typical length of an output.
    """

    steps: int = 200
    rate: float = 0.5
    enough: float = 1e-4
    divergence: float = 0.0625
    decay: float = 1e-3


def minimize(
    loss: Callable[[Array], tuple[Array, Array]], size: int, search: ValueSearch
) -> Float[Array, " size"]:
    """Return the vector that Adam finds, in units of the outputs of the MLP.

    Args:
      loss: function of the vector, which starts at 0. It returns the loss to minimize, and the part
        of the loss that decides when the search ends, -log p(b').
      size: the length of the vector.
      search: the settings.
    """
    found: Array = descend(
        loss, jnp.zeros(size), rate=search.rate, steps=search.steps, enough=search.enough
    )
    return found


def in_chunks(one: Callable[..., Array], edits: tuple[Any, ...]) -> Float[Array, "edit size"]:
    """Compute `one(*edit)` for all edits, in chunks of edits that are vmapped.

    The chunks are as equal as possible, because the last one is padded.

    Args:
      one: function that returns the vector of one edit.
      edits: arguments of `one`, pytrees of arrays [edit, ...].
    """

    def several(edits: tuple[Any, ...]) -> dict[str, Array]:
        return {"vector": jax.vmap(one)(*edits).T}

    count = len(jax.tree.leaves(edits)[0])
    size = -(-count // -(-count // _AT_ONCE))
    return map_in_chunks(several, edits, at_once=size)["vector"].T
