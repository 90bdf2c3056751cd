"""Cost of a training step, computed from shapes: matrix-product FLOPs, bytes and parameters.

FLOPs are the multiplications and additions of the matrix products in `wirings.forward_at`. Norms,
activations and the optimizer are not counted. The quotient of a run's FLOP/s and the machine's peak
FLOP/s is therefore the utilization of the machine by matrix products. Attention over a few
positions is computed as sums but counted as matrix products; it has 0.2% of the FLOPs of a step at
the scale `pocket`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import Dataset


class StepCost(NamedTuple):
    """Cost of one training step.

    Attributes:
      forward: FLOPs of the forward pass.
      step: FLOPs of the forward and backward passes. The backward pass computes two matrix products
        for each matrix product of the forward pass.
      parameters: number of model parameters.
      state_bytes: size of the parameters and Adam's two moments in float32.
      traffic_bytes: minimum memory traffic of an update in bytes. An update reads and writes all
        parameters, moments and gradients once.
    """

    forward: int
    step: int
    parameters: int
    state_bytes: int
    traffic_bytes: int


def step_cost(
    spec: Spec, *, batch_size: int, n_pos: int, n_slots: int, n_early: int = 0
) -> StepCost:
    """Compute the cost of one training step.

    Args:
      spec: the spec of the model.
      batch_size: the number of rows in a batch.
      n_pos: the number of input positions per row.
      n_slots: the number of supervised positions per row.
      n_early: the number of states per row that early supervision adds, summed over layers.
    """
    model = Transformer(spec)
    forward = batch_size * (
        (spec.depth - 1) * model.block.flops(spec, n_pos, n_pos)
        + model.block.flops(spec, n_pos, n_slots)
        + 2 * (n_slots + n_early) * spec.d_model * spec.d_vocab
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return StepCost(forward, 3 * forward, parameters, 3 * 4 * parameters, 8 * 4 * parameters)


def row_shape(dataset: Dataset) -> dict[str, int]:
    """Return the number of input positions and of supervised positions per training row.

    `step_cost` needs these numbers as `n_pos` and `n_slots`.

    Raises:
      InputError: the dataset has no training rows.
    """
    if not dataset.n_train:
        raise InputError(
            "the task has no training rows; increase task.phi, or the field of this task that "
            "sets the number of training rows"
        )
    trained = dataset.targets[: dataset.n_train]
    return {"n_pos": dataset.n_ctx, "n_slots": max(int((trained >= 0).sum(1).max()), 1)}
