"""The shape of a model: everything that its parameters' shapes and its forward pass depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from implicit_reasoning.config import value_faults
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.fields import FIELDS


@dataclass(frozen=True)
class Spec:
    """A decoder's shape, in TransformerLens's words.

    `fields.py` has the bounds and choices of its attributes. The defaults are those of a
    configuration or a result that was kept before the attribute existed.

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
    head_width: int = FIELDS["head_width"].before
    act_fn: str = FIELDS["act_fn"].before
    normalization: str = FIELDS["normalization"].before
    tied: bool = FIELDS["tied"].before
    unembed_bias: bool = FIELDS["unembed_bias"].before
    eps: float = FIELDS["eps"].before
    init_std: float = FIELDS["init_std"].before
    dtype: str = FIELDS["dtype"].before
    precision: str = FIELDS["precision"].before
    block: str = FIELDS["block"].before

    def __post_init__(self) -> None:
        for name in ("d_vocab", "n_ctx"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        values = {name: value for name, value in vars(self).items() if name in FIELDS}
        faults = value_faults(values, FIELDS)
        if faults:
            raise InputError("; ".join(f"model.{fault}" for fault in faults))
        if not self.head_width and self.d_model % self.n_heads:
            raise InputError(
                f"model.d_model is {self.d_model}, which model.n_heads = {self.n_heads} does not "
                "divide; heads need equal widths"
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

    @staticmethod
    def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of a spec that was kept as JSON, with those that were added since."""
        before = {name: field.before for name, field in FIELDS.items() if not field.required}
        names = {field.name for field in dataclasses.fields(Spec)}
        return {name: value for name, value in before.items() if name in names} | dict(kept)
