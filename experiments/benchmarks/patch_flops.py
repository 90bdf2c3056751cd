"""FLOPs of patching grids and of gradients, computed from shapes; only matrix products count."""

from __future__ import annotations

from implicit_reasoning.model import Spec
from implicit_reasoning.model.blocks import GPT2Block


def run_flops(spec: Spec, prompts: int, n_pos: int, *, logits_at: int) -> float:
    """Return the FLOPs of a forward pass with logits at `logits_at` positions."""
    blocks = spec.depth * GPT2Block.flops(spec, n_pos, n_pos)
    return float(prompts * (blocks + logits_at * readout_flops(spec)))


def trimmed_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Return the FLOPs of a forward pass with a last block and logits at the last position only."""
    blocks = (spec.depth - 1) * GPT2Block.flops(spec, n_pos, n_pos) + GPT2Block.flops(
        spec, n_pos, 1
    )
    return float(prompts * (blocks + readout_flops(spec)))


def gradient_flops(spec: Spec, prompts: int, n_pos: int, *, logits_at: int) -> float:
    """Return the FLOPs of the gradients at all sites, after a forward pass; see `run_flops`.

    Gradients of weights are not among them. A product with a weight has one product for the
    gradient of its input. A product of two activations, in attention, has two.
    """
    blocks = spec.depth * attention_flops(spec, n_pos, n_pos)
    return run_flops(spec, prompts, n_pos, logits_at=logits_at) + prompts * blocks


def trimmed_gradient_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Return the FLOPs of the gradients at all sites, after a pass as in `trimmed_flops`."""
    blocks = (spec.depth - 1) * attention_flops(spec, n_pos, n_pos)
    blocks += attention_flops(spec, n_pos, 1)
    return trimmed_flops(spec, prompts, n_pos) + prompts * blocks


def attention_flops(spec: Spec, n_inputs: int, n_outputs: int) -> int:
    """Return the FLOPs of the products of activations in one block, for one row."""
    return 4 * n_outputs * n_inputs * spec.n_heads * spec.d_head


def cone_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Return the FLOPs of both runs and of the cones of all cells below the last layer.

    Cells at the last layer need no further computation.
    """
    flops = 2 * trimmed_flops(spec, prompts, n_pos)
    for pos in range(n_pos):
        for layer in range(spec.depth):
            for block in range(layer, spec.depth):
                flops += prompts * cone_block_flops(spec, block, layer, pos, n_pos)
            flops += prompts * readout_flops(spec)
    return float(flops)


def cone_block_flops(spec: Spec, block: int, layer: int, pos: int, n_pos: int) -> int:
    """Return the FLOPs of one block of a cone, for one row.

    In its first block, a cone recomputes the projections of a single position. The first position
    attends to itself only, so its states are known from the donor's run. Cones contain all
    positions except the first.
    """
    last, pos = block == spec.depth - 1, max(pos, min(1, n_pos - 1))
    written = 1 if last else n_pos - pos
    keys = 1 if block == layer else n_pos - pos
    queries = min(keys, written)
    if last and block == layer and pos < n_pos - 1:
        queries = 0  # the last position has the query of the clean run
    mixed = 2 * written * n_pos * spec.d_model
    projected = spec.d_model**2 * (2 * keys + queries + written)
    return 2 * (projected + mixed + 2 * written * spec.d_model * spec.d_mlp)


def readout_flops(spec: Spec) -> int:
    """Return the FLOPs of the logits at one position."""
    return 2 * spec.d_model * spec.d_vocab
