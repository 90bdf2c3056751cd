"""The interface of a block: the computation, parameters, hook points and costs of one layer.

A block is a subclass of `Block`. The configuration field `model.block` selects the subclass by the
name `gpt2` or by an import path. Training, sharding, weight decay, FLOP counts, sites (hook
points), edits and patching use only this interface, so a new block needs no change in other
modules.

A subclass defines `parameters`, `sites`, `flops` and `__call__`. All other methods have defaults
that are correct for any causal block. A subclass may override a default to save computation.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from implicit_reasoning import renames
from implicit_reasoning.model.blocks.cells import Cones, insert_suffix
from implicit_reasoning.model.blocks.parameters import Parameter, create_parameters
from implicit_reasoning.model.edits import HookContext
from implicit_reasoning.model.sites import Dims
from implicit_reasoning.model.spec import Spec


class Block(nnx.Module):
    """One layer of the model: a causal map from the residual stream to the residual stream.

    A site is a named hook point. The first site of a block is the input, `hook_resid_pre`. The last
    site is the output, `hook_resid_post`. Analyses read and edit the residual stream at these two
    sites.

    Attributes:
      dropout_sites: sites where dropout applies in training, in addition to the embeddings.
      cone_sites: sites that `run_cones` reads in the clean run. The first site is `hook_resid_pre`.
      part_sites: sites that `exchange_parts` reads.
    """

    dropout_sites: ClassVar[tuple[str, ...]] = ()
    cone_sites: ClassVar[tuple[str, ...]] = ("hook_resid_pre",)
    part_sites: ClassVar[tuple[str, ...]] = ("hook_resid_pre", "hook_resid_post")

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        """Create all parameters as attributes of the block.

        For example, the parameter `mixer.W_in` becomes `self.mixer.W_in`, where `self.mixer` is an
        `nnx.Dict` of all parameters whose name starts with `mixer.`.
        """
        groups: dict[str, dict[str, Parameter]] = {}
        for name, parameter in self.parameters(spec).items():
            group, _, last = name.partition(".")
            groups.setdefault(group, {})[last] = parameter
        for group, table in groups.items():
            setattr(self, group, nnx.Dict())
            create_parameters(getattr(self, group), table, rngs)

    @staticmethod
    @abc.abstractmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the descriptions of all parameters by dotted name, such as `attn.W_Q`."""

    @staticmethod
    @abc.abstractmethod
    def sites(spec: Spec) -> dict[str, Dims]:
        """Return the dimension names of each site (hook point), in forward order."""

    @staticmethod
    @abc.abstractmethod
    def flops(spec: Spec, n_inputs: int, n_outputs: int) -> int:
        """Return the FLOPs of the matrix products in the forward pass of one row.

        Args:
          spec: the spec of the model.
          n_inputs: number of positions in the row.
          n_outputs: number of positions at which the output is computed.
        """

    @abc.abstractmethod
    def __call__(
        self, resid: Float[Array, "batch pos d_model"], hooks: HookContext
    ) -> Float[Array, "batch pos d_model"]:
        """Compute the output at every position, and pass the value of every site to `hooks`."""

    @staticmethod
    def dims(spec: Spec) -> dict[str, int]:
        """Return the sizes of all dimensions of this block, such as `head`, except `d_model`."""
        return {}

    @staticmethod
    def parts(spec: Spec) -> tuple[str, ...]:
        """Return the names of the parts that `exchange_parts` can exchange between two runs."""
        return ("block",)

    def at(
        self,
        resid: Float[Array, "batch pos d_model"],
        positions: Int[Array, "batch slot"] | None,
        hooks: HookContext,
    ) -> Float[Array, "batch slot d_model"]:
        """Compute the output only at the given positions; None means the last position.

        The values of sites (hook points) may be limited to these positions.
        """
        return position_selector(positions)(self(resid, hooks))

    def run_cones(
        self,
        cones: Cones,
        clean: Mapping[str, Float[Array, "batch _pos ..."]],
        *,
        only_end: bool,
    ) -> Cones:
        """Compute the block's outputs in many patched runs (cells) of one clean run.

        Args:
          cones: the block's inputs that differ from the clean run. A key `(layer, pos)` is the
            place of the patch. The value is `[cell, batch, own_pos, d_model]`. For a patch of this
            block's input, `own_pos` is only `pos`. For a patch in an earlier layer, `own_pos` is
            `pos` and all later positions.
          clean: the values of the sites `cone_sites` in the clean run.
          only_end: compute the output only at the last position. Otherwise compute the output at
            `pos` and at all later positions.

        Returns:
          The outputs `[cell, batch, pos, d_model]`, with the keys of `cones`.
        """
        resid = clean["hook_resid_pre"]
        n_pos = resid.shape[1]
        whole = [insert_suffix(resid, own, start[1]) for start, own in cones.items()]
        rows = jnp.concatenate([cells.reshape(-1, *resid.shape[1:]) for cells in whole])
        out = self(rows, HookContext()).reshape(-1, *resid.shape)
        after, first_cell = {}, 0
        for start, own in cones.items():
            first = n_pos - 1 if only_end else start[1]
            after[start] = out[first_cell : first_cell + len(own), :, first:]
            first_cell += len(own)
        return after

    def exchange_parts(
        self, own: Mapping[str, Array], other: Mapping[str, Array]
    ) -> Float[Array, "part batch d_model"]:
        """Compute the block's output at one position after exchanging one part between two runs.

        The output of this part (for example, a head) comes from the second run. All other parts
        belong to the first run.

        Args:
          own: the values of the sites `part_sites` at this position in the first run,
            `[batch, ...]`.
          other: the values of the sites `part_sites` at this position in the second run,
            `[batch, ...]`.

        Returns:
          The block's output for each exchanged part, in the order of `parts`.
        """
        written = other["hook_resid_post"] - other["hook_resid_pre"]
        return (own["hook_resid_pre"] + written)[None]


def position_selector(positions: Int[Array, "batch slot"] | None) -> Callable[[Array], Array]:
    """Return a function that selects positions in each row of an array.

    Args:
      positions: the positions to select in each row; None selects the last position.

    Returns:
      A function from `[batch, pos, ...]` to `[batch, slot, ...]`.
    """
    if positions is None:
        return lambda x: x[:, -1:]

    def select(x: Array) -> Array:
        indices = jax.lax.expand_dims(positions, range(2, x.ndim))
        return jnp.take_along_axis(x, indices, axis=1)

    return select


__getattr__ = renames.old_names(__name__, {"taker": "position_selector"})
