"""The shape of a model: everything that its parameters' shapes and its forward pass depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from implicit_reasoning.errors import InputError

CHOICES: dict[str, tuple[Any, ...]] = {
    "act_fn": ("gelu_new", "relu"),
    "normalization": ("LN", "none"),
    "dtype": ("float32", "bfloat16"),
    "precision": ("default", "high", "highest"),
}


@dataclass(frozen=True)
class Spec:
    """A decoder's shape, in TransformerLens's words.

    Attributes:
      d_vocab, n_ctx: tokens and positions.
      n_layers: blocks that have parameters; each runs `n_loops` times, in the order
        0..n_layers-1, 0..n_layers-1, ...; `depth` is their product.
      d_model, n_heads, d_mlp: widths; a head has `d_model / n_heads` dimensions, or
      head_width: so many, where that is not 0 (compiled models may have heads of any width).
      act_fn: `gelu_new` (GPT-2's tanh approximation) or `relu`.
      normalization: `LN` (before attention, MLP and unembedding) or `none`.
      tied: the unembedding is the transposed embedding.
      unembed_bias: whether logits have a bias (GPT-2 has none; imported weights may).
      eps: added to the variance by layer norms.
      init_std: of all weights; those that write to the residual are divided by
        sqrt(2 depth), biases are zero (GPT-2).
      dtype: of activations inside attention and MLP; parameters and the residual are float32.
      precision: of matrix products (`highest` is true float32 on every device).
      block: `gpt2`, or the import path of a subclass of `blocks.Block`, which is free in its use of
        `n_heads`, `d_mlp` and `act_fn`.
    """

    d_vocab: int
    n_ctx: int
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    n_loops: int = 1
    head_width: int = 0
    act_fn: str = "gelu_new"
    normalization: str = "LN"
    tied: bool = False
    unembed_bias: bool = False
    eps: float = 1e-5
    init_std: float = 0.02
    dtype: str = "float32"
    precision: str = "highest"
    block: str = "gpt2"

    def __post_init__(self) -> None:
        for name in ("d_vocab", "n_ctx", "n_layers", "d_model", "n_heads", "d_mlp", "n_loops"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.head_width < 0:
            raise InputError(f"model.head_width is {self.head_width}; it must be at least 0")
        if not self.head_width and self.d_model % self.n_heads:
            raise InputError(
                f"model.d_model is {self.d_model}, which model.n_heads = {self.n_heads} does not "
                "divide; heads need equal widths"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"model.{name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(map(repr, allowed))}"
                )

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.head_width or self.d_model // self.n_heads

    @property
    def depth(self) -> int:
        """Unrolled number of blocks."""
        return self.n_layers * self.n_loops

    @property
    def residual_init_std(self) -> float:
        """Initial scale of the weights that write to the residual."""
        return self.init_std / (2 * self.depth) ** 0.5

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, d_vocab: int, n_ctx: int) -> Spec:
        """The spec of a config's `model` group, for the vocabulary and context of its data."""
        names = {field.name for field in dataclasses.fields(cls)}
        chosen = {name: value for name, value in config.items() if name in names}
        return cls(d_vocab=d_vocab, n_ctx=n_ctx, **chosen)
