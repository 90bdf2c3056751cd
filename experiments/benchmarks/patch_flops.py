"""What grids of patches cost: FLOPs of their matrix products, from shapes."""

from __future__ import annotations

from implicit_reasoning.model import Spec
from implicit_reasoning.model.blocks import GPT2Block


def run_flops(spec: Spec, prompts: int, n_pos: int, *, logits_at: int) -> float:
    """A forward pass; logits at some positions only (a compiler drops the others)."""
    blocks = spec.depth * GPT2Block.flops(spec, n_pos, n_pos)
    return float(prompts * (blocks + logits_at * readout_flops(spec)))


def trimmed_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """A forward pass whose last block is at the last position only, and logits there."""
    blocks = (spec.depth - 1) * GPT2Block.flops(spec, n_pos, n_pos) + GPT2Block.flops(
        spec, n_pos, 1
    )
    return float(prompts * (blocks + readout_flops(spec)))


def cone_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Both runs, and the cone of every cell below the last layer, which needs none."""
    flops = 2 * trimmed_flops(spec, prompts, n_pos)
    for pos in range(n_pos):
        for layer in range(spec.depth):
            for block in range(layer, spec.depth):
                flops += prompts * cone_block_flops(spec, block, layer, pos, n_pos)
            flops += prompts * readout_flops(spec)
    return float(flops)


def cone_block_flops(spec: Spec, block: int, layer: int, pos: int, n_pos: int) -> int:
    """One block of a cone, one row: where it starts, one position alone is projected anew.

    The first position, which sees no other, is known from the donor's run; a cone is of the rest.
    """
    last, pos = block == spec.depth - 1, max(pos, min(1, n_pos - 1))
    written = 1 if last else n_pos - pos
    keys = 1 if block == layer else n_pos - pos
    queries = min(keys, written)
    if last and block == layer and pos < n_pos - 1:
        queries = 0  # at the end still the clean run's
    mixed = 2 * written * n_pos * spec.d_model
    projected = spec.d_model**2 * (2 * keys + queries + written)
    return 2 * (projected + mixed + 2 * written * spec.d_model * spec.d_mlp)


def readout_flops(spec: Spec) -> int:
    """Logits at one position."""
    return 2 * spec.d_model * spec.d_vocab
