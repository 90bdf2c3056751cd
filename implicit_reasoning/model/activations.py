"""The values of sites in one forward pass, by name, and the norms that were applied in it.

`Activations` is the base of `model.cache.Cache`, which adds the terms of the residual stream.

Source: TransformerLens 4.3 (ActivationCache, Slice).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.edits import expand_to_rank
from implicit_reasoning.model.hook_names import get_act_name
from implicit_reasoning.model.weights import Weights

Selection = int | slice | tuple[int | None, ...] | Sequence[int] | Array | np.ndarray | None
"""Which indices of an axis to take: an index, which removes the axis; a slice, or a tuple with its
arguments; several indices; None for all."""

Stack = Float[Array, "component ... d_model"]
"""Terms of a residual stream: [component, *batch_and_pos, d_model]."""


class Activations(Mapping[str, Array]):
    """The values of sites (hook points) in one forward pass, by name.

    A key is the full name of a site or a short name with the index of the block. For example,
    `cache["blocks.1.attn.hook_z"]` equals `cache["z", 1]`, and `cache["z", -1]` is that of the last
    block.

    Attributes:
      has_batch_dim: whether the first axis of the values is the batch.
    """

    def __init__(self, values: Mapping[str, Array], model: Weights, has_batch_dim: bool = True):
        """Store the values.

        Args:
          values: the value of each site.
          model: the model and parameters of the forward pass.
          has_batch_dim: whether the first axis of the values is the batch.
        """
        self._values, self.model, self.has_batch_dim = dict(values), model, has_batch_dim

    def __getitem__(self, key: str | tuple[Any, ...]) -> Array:
        if isinstance(key, tuple):
            if len(key) > 1 and key[1] is not None and key[1] < 0:
                key = (key[0], self.depth + key[1], *key[2:])
            site = get_act_name(*key)
        else:
            site = get_act_name(key)
        if site not in self._values:
            raise InputError(
                f"{site} is not in the cache, which contains {len(self._values)} sites; choose a "
                "site from model.sites, and select the site with names_filter"
            )
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self)} sites: {', '.join(self)}"

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Array, "layer ..."]:
        """Stack the values of one site in all blocks before `layer`.

        Args:
          activation_name: a short name, such as "z" or "pattern".
          layer: an index of a block; `None` and `-1` mean all blocks.
          sublayer_type: "ln1" or "ln2" for the sites of a norm.
        """
        layers = range(self.layer_of(layer))
        return jnp.stack([self[activation_name, n, sublayer_type] for n in layers])

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Array | np.ndarray, "component ... d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool | None = None,
        recompute_ln: bool = False,
    ) -> Float[Array, "component ... d_model"]:
        """Apply the norm of the input of `layer` to terms of this input.

        Each term is centered, divided by the scale of the norm in the forward pass, and multiplied
        by the weight of the norm. The sum over all terms is the normalized input without the bias
        of the norm. A model without norms returns the terms unchanged.

        Args:
          residual_stack: the terms.
          layer: the index of a block, whose input has these terms. `None`, `-1` and the depth of
            the model mean the input of the unembedding.
          mlp_input: whether the input is that of the MLP of the block, instead of its attention.
          pos_slice: the positions that the terms have.
          batch_slice: the prompts to keep.
          has_batch_dim: whether the terms have a batch axis; by default, whether the cache has one.
          recompute_ln: whether to apply the final norm whole instead, with the scale of each term
            and with the bias of the norm; it has no effect before the last block.
        """
        layer, stack = self.layer_of(layer, mlp_input), jnp.asarray(residual_stack)
        if self.has_batch_dim if has_batch_dim is None else has_batch_dim:
            stack = take(stack, batch_slice, 1)
        if self.model.cfg.normalization != "LN":
            return stack
        weight = self.model.norm_weight(layer, mlp_input=mlp_input)
        centred = stack - stack.mean(-1, keepdims=True)
        if recompute_ln and layer == self.depth:
            scale = jnp.sqrt((centred**2).mean(-1, keepdims=True) + self.model.cfg.eps)
            whole = centred / scale * expand_to_rank(weight, centred)
            return whole + expand_to_rank(self.model.params["ln_final"]["b"], centred)
        scale = self.scale_of(layer, mlp_input, pos_slice, batch_slice)
        return centred / expand_to_rank(scale, centred) * expand_to_rank(weight, centred)

    @property
    def depth(self) -> int:
        """The number of blocks in the forward pass."""
        return self.model.cfg.depth

    def layer_of(self, layer: int | None, mlp_input: bool = False) -> int:
        """Return the layer that an argument means: the depth of the model for `None` and `-1`.

        Args:
          layer: the argument.
          mlp_input: whether the MLP of the layer is meant; the unembedding then does not count.

        Raises:
          InputError: there is no such layer.
        """
        depth = self.depth
        found = depth if layer is None or layer == -1 else int(layer)
        if not 0 <= found <= depth - mlp_input:
            raise InputError(
                f"layer is {layer}{' with mlp_input' if mlp_input else ''}; it must be from 0 to "
                f"{depth - mlp_input}, because the model has {depth} blocks"
            )
        return found

    def scale_of(
        self, layer: int, mlp_input: bool, pos_slice: Selection, batch_slice: Selection
    ) -> Float[Array, "... 1"]:
        """Return the scale of a norm in the forward pass.

        Args:
          layer: the index of a block; the depth of the model for the final norm.
          mlp_input: whether the norm is that before the MLP of the block.
          pos_slice: the positions to keep.
          batch_slice: the prompts to keep.
        """
        key = ("scale",) if layer == self.depth else ("scale", layer, f"ln{1 + mlp_input}")
        scale = take(self[key], pos_slice, -2)
        return take(scale, batch_slice, 0) if self.has_batch_dim else scale


def is_index(selection: Selection) -> bool:
    """Return whether a selection is one index, which removes the axis."""
    return not isinstance(selection, slice | tuple | None) and np.ndim(selection) == 0


def index_of(selection: Selection) -> Any:
    """Return a selection as an index of numpy."""
    if selection is None:
        return slice(None)
    if isinstance(selection, slice):
        return selection
    return slice(*selection) if isinstance(selection, tuple) else np.asarray(selection)


def take(value: Array, selection: Selection, axis: int) -> Array:
    """Return the selected part of an array.

    Args:
      value: the array.
      selection: what to take of the axis.
      axis: the axis.
    """
    axes: list[Any] = [slice(None)] * value.ndim
    axes[axis] = index_of(selection)
    return value if selection is None else value[tuple(axes)]
