"""What a training step costs: matrix-product FLOPs, bytes, parameters, from shapes alone.

Counted are the products that `wirings.forward_at` executes, a multiplication and an addition each;
nothing else a step does (norms, activations, the optimiser) is a FLOP here, so that a share of a
machine's peak says how much of its time went into products. Attention counts as products also over
the few positions where it is written out as sums (.2% of a `pocket` step).
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import Dataset


class StepCost(NamedTuple):
    """One step.

    Attributes:
      forward: FLOPs of the forward products.
      step: FLOPs of forward and backward; the backward pass has two products for each forward one.
      parameters: numbers in the model.
      state_bytes: parameters and Adam's two moments, float32.
      traffic_bytes: the least that an update moves: parameters, moments and gradients read, and
        parameters, moments and gradients written, once each.
    """

    forward: int
    step: int
    parameters: int
    state_bytes: int
    traffic_bytes: int


def step_cost(spec: Spec, *, batch_size: int, n_pos: int, n_slots: int) -> StepCost:
    """The cost of one step.

    Args:
      spec: of the model.
      batch_size: rows a step.
      n_pos: positions of a row that the model sees.
      n_slots: supervised positions of a row.
    """
    model = Transformer(spec)
    forward = batch_size * (
        (spec.depth - 1) * model.block.flops(spec, n_pos, n_pos)
        + model.block.flops(spec, n_pos, n_slots)
        + 2 * n_slots * spec.d_model * spec.d_vocab
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return StepCost(forward, 3 * forward, parameters, 3 * 4 * parameters, 8 * 4 * parameters)


def row_shape(dataset: Dataset) -> dict[str, int]:
    """The `n_pos` and `n_slots` of a dataset; an `InputError` if it has nothing to train on."""
    if not dataset.n_train:
        raise InputError(
            "the task makes no rows to train on; raise phi, or whatever decides how many there are"
        )
    trained = dataset.targets[: dataset.n_train]
    return {"n_pos": dataset.n_ctx, "n_slots": max(int((trained >= 0).sum(1).max()), 1)}
