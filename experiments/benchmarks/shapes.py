"""Models with random weights, in the shapes that benchmarks take as flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from implicit_reasoning.model import Params, Spec, Transformer

POCKET = {
    "layers": 2,
    "width": 256,
    "heads": 4,
    "prompts": 64,
    "vocab": 110,
    "positions": 3,
}
"""Flags of the size `pocket`: a model that `random_model` makes, and a number of prompts."""


def random_model(flags: Mapping[str, Any], **more: Any) -> tuple[Transformer, Params]:
    """Return a model with the flags vocab, positions, layers, width and heads, and its parameters.

    Args:
      flags: flags of the benchmark.
      **more: further fields of `Spec`.
    """
    spec = Spec(
        d_vocab=flags["vocab"],
        n_ctx=flags["positions"],
        n_layers=flags["layers"],
        d_model=flags["width"],
        n_heads=flags["heads"],
        d_mlp=4 * flags["width"],
        **more,
    )
    model = Transformer(spec)
    return model, jax.jit(model.init)(jax.random.key(0))
