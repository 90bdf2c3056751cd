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
from implicit_reasoning.analysis.editing.descent import descend, descend_many

_AT_ONCE = 25  # maximum number of searches at once; their prompts are one batch
_PREPARED = 500  # maximum number of edits whose activations are in memory


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
        1e-4 fewer first-hop chains follow. `decay` can hold the loss slightly above this number (at
        1e-4 to 4e-4 in a third of the edits of a trained model); such a search takes all steps.
      divergence: weight of the KL divergence of other facts of e1.
      decay: weight of |v* - W k*|^2 / |unit|^2, where |unit| is the typical length of an output.
    """

    steps: int = 200
    rate: float = 0.5
    enough: float = 1e-4
    divergence: float = 0.0625
    decay: float = 1e-3


def search_vector(
    loss: Callable[[Array], tuple[Array, Array]], size: int, search: ValueSearch
) -> Float[Array, " size"]:
    """Return the vector that Adam finds for one edit, in units of the outputs of the MLP.

    Args:
      loss: function of the vector, which starts at 0. It returns the loss to minimize, and the part
        of the loss that decides when the search ends, -log p(b').
      size: the length of the vector.
      search: the settings.
    """
    found: Array = descend(loss, jnp.zeros(size), **_settings(search))
    return found


def search_vectors(
    prepare: Callable[..., Any],
    loss: Callable[[Any, Array], tuple[Array, Array]],
    edits: tuple[Any, ...],
    size: int,
    search: ValueSearch,
) -> Float[Array, "edit size"]:
    """Return the vectors that Adam finds for many edits, in units of the outputs of the MLP.

    Args:
      prepare: function of the arguments of one edit. It returns what the loss needs. It is
        evaluated once for each edit, and the loss once for each step.
      loss: function of what `prepare` returns and of the vector; see `search_vector`.
      edits: the arguments of all edits, pytrees of arrays [edit, ...].
      size: the length of the vectors.
      search: the settings.
    """

    def several(edits: tuple[Any, ...]) -> dict[str, Array]:
        needed = jax.vmap(prepare)(*edits)
        begin = jnp.zeros(size)
        return {
            "vector": descend_many(loss, needed, begin, at_once=_AT_ONCE, **_settings(search)).T
        }

    count = len(jax.tree.leaves(edits)[0])
    # The parts are as equal as possible, because the last one is padded.
    part = -(-count // -(-count // _PREPARED))
    return map_in_chunks(several, edits, at_once=part)["vector"].T


def _settings(search: ValueSearch) -> dict[str, Any]:
    return {"rate": search.rate, "steps": search.steps, "enough": search.enough}
