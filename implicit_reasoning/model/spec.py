"""The architecture of a model: all settings that determine the parameters and the forward pass."""

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
    """The architecture of a decoder, in TransformerLens's terms.

    `model/fields.py` defines the bounds and choices of the attributes. The default of an attribute
    reproduces results from before the attribute existed.

    Attributes:
      d_vocab, n_ctx: size of the vocabulary, and maximum number of positions.
      n_layers: number of blocks with parameters.
      d_model, n_heads, d_mlp: width of the residual stream, number of heads, number of neurons.
      n_loops: number of passes through the stack of blocks 0 to `n_layers - 1`.
      head_width: width of a head; 0 means `d_model / n_heads`. Models that are compiled from
        programs, for example by Tracr, may need a different width.
      act_fn: activation function of the MLP, `gelu_new` (GPT-2's tanh approximation) or `relu`.
      normalization: `LN` (before attention, MLP and unembedding) or `none`.
      tied: whether the unembedding is the transposed embedding.
      unembed_bias: whether the logits have a bias. GPT-2 has no such bias, but imported weights may
        have a bias.
      eps: number added to the variance in layer norms.
      init_std: standard deviation of the initial weights. As in GPT-2, weights that write to the
        residual stream have the standard deviation `init_std / sqrt(2 depth)`, and biases are zero.
      dtype: dtype of the activations inside attention and MLP. Parameters and the residual stream
        are float32.
      precision: precision of matrix products; `highest` is true float32 on every device.
      block: `gpt2`, or the import path of a subclass of `blocks.Block`. The subclass defines the
        meaning of `n_heads`, `d_mlp` and `act_fn`.
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
                f"model.d_model is {self.d_model}, which is not a multiple of model.n_heads = "
                f"{self.n_heads}; heads must have equal widths"
            )

    @property
    def d_head(self) -> int:
        """The width of a head."""
        return self.head_width or self.d_model // self.n_heads

    @property
    def depth(self) -> int:
        """The unrolled number of blocks, `n_layers * n_loops`."""
        return self.n_layers * self.n_loops

    @property
    def residual_init_std(self) -> float:
        """The initial standard deviation of weights that write to the residual stream."""
        return self.init_std / (2 * self.depth) ** 0.5

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, d_vocab: int, n_ctx: int) -> Spec:
        """Return the spec for the configuration group `model`.

        Args:
          config: the fields of the group `model`.
          d_vocab: the size of the vocabulary.
          n_ctx: the maximum number of positions.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        chosen = {name: value for name, value in config.items() if name in names}
        return cls(d_vocab=d_vocab, n_ctx=n_ctx, **chosen)

    @staticmethod
    def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a saved spec, with missing attributes filled in.

        An attribute that did not exist when the spec was saved gets its default.
        """
        before = {name: field.before for name, field in FIELDS.items() if not field.required}
        names = {field.name for field in dataclasses.fields(Spec)}
        return {name: value for name, value in before.items() if name in names} | dict(kept)
