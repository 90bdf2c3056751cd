"""The interface of a block: what a layer computes, and what the package needs to know of it.

A kind of block is a subclass of `Block` in a module of its own. `model.block` of a configuration
names it: `gpt2`, or an import path (`blocks.find_block`). Training, sharding, weight decay, costs,
sites, edits and patching read this interface only, so that a new kind of block needs no change
elsewhere. A subclass defines `parameters`, `sites`, `flops` and `__call__`. The other methods have
definitions that are right for any causal block; a subclass overrides those that it can do with
less work.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

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
    """A map from the residual stream to the residual stream; causal in the positions.

    The first site of a block is `hook_resid_pre`, its input, and the last is `hook_resid_post`, its
    output: instruments read and edit the residual stream there.

    Attributes:
      dropout_sites: where dropout applies in training, besides the embeddings.
      cone_sites: the sites whose clean values `run_cones` reads, `hook_resid_pre` first.
      part_sites: the sites whose values `exchange_parts` reads.
    """

    dropout_sites: ClassVar[tuple[str, ...]] = ()
    cone_sites: ClassVar[tuple[str, ...]] = ("hook_resid_pre",)
    part_sites: ClassVar[tuple[str, ...]] = ("hook_resid_pre", "hook_resid_post")

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        """Make the parameters of the table, one `nnx.Dict` for each group of names.

        The parameter `mixer.W_in` of the table is `self.mixer.W_in`.
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
        """Every parameter, by name: a group and a name within it, such as `attn.W_Q`."""

    @staticmethod
    @abc.abstractmethod
    def sites(spec: Spec) -> dict[str, Dims]:
        """Every site and the names of its dimensions, in the order of the forward pass."""

    @staticmethod
    @abc.abstractmethod
    def flops(spec: Spec, n_inputs: int, n_outputs: int) -> int:
        """FLOPs of the forward matrix products of one row.

        Args:
          spec: of the model.
          n_inputs: positions of the row.
          n_outputs: positions at which the output is wanted, as in `at`.
        """

    @abc.abstractmethod
    def __call__(
        self, resid: Float[Array, "batch pos d_model"], hooks: HookContext
    ) -> Float[Array, "batch pos d_model"]:
        """The output at every position; passes every site to `hooks`."""

    @staticmethod
    def dims(spec: Spec) -> dict[str, int]:
        """Sizes of the dimensions that the sites of this block have besides `d_model`."""
        return {}

    @staticmethod
    def parts(spec: Spec) -> tuple[str, ...]:
        """Names of what writes to the residual stream, in the order of `exchange_parts`."""
        return ("block",)

    def at(
        self,
        resid: Float[Array, "batch pos d_model"],
        positions: Int[Array, "batch slot"] | None,
        hooks: HookContext,
    ) -> Float[Array, "batch slot d_model"]:
        """The output at some positions, by default at the last; sites may have these only."""
        return position_selector(positions)(self(resid, hooks))

    def run_cones(
        self,
        cones: Cones,
        clean: Mapping[str, Float[Array, "batch _pos ..."]],
        *,
        only_end: bool,
    ) -> Cones:
        """The outputs for many inputs that each differ from those of one clean run.

        Args:
          cones: by start `(layer, pos)`, the states that differ from the clean run: those of `pos`
            and all later positions or, of a cone that starts in this block, of `pos` alone.
          clean: values of `cone_sites` in the clean run.
          only_end: the outputs of the last position are wanted; else those of `pos` and later.
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
        """The output at one position when one part writes what it wrote in another run.

        Args:
          own: values of `part_sites` at the position, `[batch, ...]`.
          other: the same, of the run that the part is taken from.
        """
        written = other["hook_resid_post"] - other["hook_resid_pre"]
        return (own["hook_resid_pre"] + written)[None]


def position_selector(positions: Int[Array, "batch slot"] | None) -> Callable[[Array], Array]:
    """A function that takes some positions of each row, `[batch, pos, ...]`; None: the last."""
    if positions is None:
        return lambda x: x[:, -1:]
    return functools.partial(jnp.take_along_axis, indices=positions[..., None], axis=1)


__getattr__ = renames.old_names(__name__, {"taker": "position_selector"})
