"""What grids of patches cost: FLOPs of their matrix products, from shapes."""

from __future__ import annotations

from implicit_reasoning.model import Spec
from implicit_reasoning.training.cost import block_flops


def run_flops(spec: Spec, prompts: int, n_pos: int, *, logits_at: int) -> float:
    """A forward pass; logits at some positions only (a compiler drops the others)."""
    blocks = spec.depth * block_flops(spec, n_pos, n_pos)
    return float(prompts * (blocks + 2 * logits_at * spec.d_model * spec.d_vocab))


def cone_flops(spec: Spec, prompts: int, n_pos: int) -> float:
    """Both runs, and the cone of every cell."""
    flops = 2 * run_flops(spec, prompts, n_pos, logits_at=0)
    for pos in range(n_pos):
        for layer in range(spec.depth + 1):
            for block in range(layer, spec.depth):
                queries = 1 if block == spec.depth - 1 else n_pos - pos
                flops += prompts * suffix_flops(spec, n_pos - pos, queries, n_pos)
            flops += prompts * 2 * spec.d_model * spec.d_vocab
    return flops


def suffix_flops(spec: Spec, new_keys: int, queries: int, keys: int) -> float:
    """A block with new keys and values at some positions, and queries at some that see all."""
    attended = 2 * 2 * queries * spec.d_model * (keys - new_keys)
    return float(block_flops(spec, new_keys, queries) + attended)
