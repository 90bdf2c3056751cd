"""Fine-tuning on one edited fact: of the output matrix of one MLP, or of all weights.

Adam minimizes the cross-entropy of the taught prompts until the model gives every taught answer a
probability above a threshold, or until the maximum number of steps is reached. All edits are one
program.

Oracle fine-tuning also teaches chains that use the edited fact. It shows what the model can
represent if the consequences of an edit are taught. Chains that are not taught show whether the
model generalizes to the other consequences.

Source: Meng et al. 2022, section 4 (fine-tuning as a baseline); Zhong et al. 2023, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.editing.descent import descend
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import output_matrix, with_output_matrix
from implicit_reasoning.model.wirings import forward_at


@dataclass(frozen=True)
class Tuning:
    """Settings of fine-tuning.

    Attributes:
      steps: maximum number of steps of Adam.
      rate: the learning rate.
      enough: the probability of every taught answer at which fine-tuning ends.
    """

    steps: int = 50
    rate: float = 1e-3
    enough: float = 0.95


class Lesson(NamedTuple):
    """Prompts with the answers to teach.

    Attributes:
      tokens: the prompts.
      position: the position that predicts the answer.
      answer: the token of the taught answer.
      taught: whether the prompt is taught.
    """

    tokens: Int[Array, "prompt pos"]
    position: Int[Array, " prompt"]
    answer: Int[Array, " prompt"]
    taught: Bool[Array, " prompt"]


def fine_tune(
    model: Transformer,
    params: Params,
    lesson: Lesson,
    settings: Tuning,
    layer: int | None = None,
) -> Params:
    """Return parameters that are fine-tuned on some prompts.

    Args:
      model: the model.
      params: the parameters of one model, which are not changed.
      lesson: the taught prompts.
      settings: the settings.
      layer: the unrolled depth of the block whose `W_out` is tuned; None to tune all parameters.
    """

    def full(tuned: Any) -> Params:
        return tuned if layer is None else with_output_matrix(model, params, layer, tuned)

    def loss(tuned: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        positions = lesson.position[:, None]
        logits = forward_at(model, full(tuned), lesson.tokens, positions)[0][:, 0]
        answers = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(answers, lesson.answer[:, None], axis=1)[:, 0]
        losses = jnp.where(lesson.taught, losses, 0)
        return losses.sum() / lesson.taught.sum(), losses.max()

    begin = params if layer is None else output_matrix(model, params, layer)
    enough = -float(np.log(settings.enough))
    return full(descend(loss, begin, rate=settings.rate, steps=settings.steps, enough=enough))
