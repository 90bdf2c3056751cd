"""The transformer as pure functions of a plain dictionary of parameters.

`Transformer(spec)` holds no weights. Parameters are a nested dict with HookedTransformer's names
and layouts (`params["blocks"]["0"]["attn"]["W_Q"]`, `[head, d_model, d_head]`), so that parameters
can be stacked, sharded, saved and printed like any pytree. `bind` returns Flax NNX modules with the
parameters. Use these modules only within one trace.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import Block, find_block
from implicit_reasoning.model.blocks.norm import norm_class, norm_sites
from implicit_reasoning.model.blocks.parameters import Parameter, with_prefix
from implicit_reasoning.model.edits import Edits, HookContext, added_sites, expand_to_rank
from implicit_reasoning.model.embeddings import Embed, PosEmbed, Unembed
from implicit_reasoning.model.sites import RESID, Dims, check_sites
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.tokens import check_tokens

Params = dict[str, Any]
"""Parameters as a nested dict with the names and layouts of HookedTransformer."""


@dataclass(frozen=True)
class Transformer:
    """A decoder with a given spec. It is hashable, so it can be a static argument of `jax.jit`.

    Raises:
      InputError: `spec.block` is not the name of an existing block.
    """

    spec: Spec

    def __post_init__(self) -> None:
        find_block(self.spec.block)

    @property
    def block(self) -> type[Block]:
        """The class of the blocks, such as `GPT2Block`."""
        return find_block(self.spec.block)

    def init(self, key: Key[Array, ""]) -> Params:
        """Return new parameters with GPT-2's initialization, float32."""
        return _public(nnx.to_pure_dict(nnx.state(Network(self.spec, nnx.Rngs(key)))))

    def bind(self, params: Params) -> Network:
        """Return the NNX modules with these parameters."""
        network: Network = nnx.merge(_graphdef(self.spec), _private(params))
        return network

    def forward(
        self,
        params: Params,
        tokens: Int[Array | np.ndarray, "batch pos"],
        *,
        edits: Edits | None = None,
        sites: Collection[str] = (),
    ) -> tuple[Float[Array, "batch pos d_vocab"], dict[str, Array]]:
        """Return the logits at every position, and the values of the sites in `sites`.

        Args:
          params: the parameters of one model. For several models, use `jax.vmap` over a leading
            axis.
          tokens: integers from 0 to `spec.d_vocab - 1`, at most `spec.n_ctx` in each row. If
            `tokens` is traced, invalid tokens are clamped without an error.
          edits: one or several edits per site (hook point). Several edits are applied in order.
          sites: names of the sites whose (edited) values are returned. `sites_with(edits)` lists
            all names.

        Returns:
          `(logits, {site: value})`, with float32 logits.

        Raises:
          InputError: a token or a site does not exist in the model, there are too many positions,
            an edit changes a shape, or `sites` contains a site of `ln1` in a block where a per-head
            input is edited.
        """
        hooks = self.hook_context(edits, sites)
        if tokens.shape[1] > self.spec.n_ctx:
            raise InputError(
                f"rows have {tokens.shape[1]} tokens; the model reads at most n_ctx = "
                f"{self.spec.n_ctx} tokens"
            )
        network = self.bind(params)
        resid = network.embedding(tokens, hooks)
        for layer in range(self.spec.depth):
            resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
        return network.readout(resid, hooks), hooks.results()

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The description of every parameter, by dotted name (`blocks.0.attn.W_Q`)."""
        return dict(_parameters(self.spec))

    @property
    def sites(self) -> dict[str, Dims]:
        """All sites (hook points): a dict from names of sites to names of dimensions."""
        return dict(_sites(self.spec))

    def sites_with(self, edits: Edits | None) -> dict[str, Dims]:
        """Return `sites`, extended by the sites (hook points) that edits add.

        An added site is listed before the site that is edited.
        """
        added = added_sites(edits)
        table: dict[str, Dims] = {}
        for site, dims in self.sites.items():
            table |= {name: of for name, of in added.items() if name.startswith(f"{site}.")}
            table[site] = dims
        return table

    def hook_context(self, edits: Edits | None, sites: Collection[str]) -> HookContext:
        """Return the context for one trace of a forward pass of this model.

        Raises:
          InputError: the site of an edit, or a name in `sites`, is not in `sites_with(edits)`.
        """
        check_sites({*(edits or ()), *sites}, self.sites_with(edits))
        return HookContext(edits, sites)

    @property
    def resid_sites(self) -> tuple[str, ...]:
        """Names of the sites of the residual stream before the first block and after each block."""
        after = (f"blocks.{layer}.hook_resid_post" for layer in range(self.spec.depth))
        return ("blocks.0.hook_resid_pre", *after)

    @property
    def dims(self) -> dict[str, int]:
        """The sizes of all dimensions that the spec determines, by name."""
        return {"d_model": self.spec.d_model, "one": 1, **self.block.dims(self.spec)}


class Network(nnx.Module):
    """All NNX modules of one model. Attribute paths (`embed.W_E`) are names of parameters."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.embed = Embed(spec, rngs)
        self.pos_embed = PosEmbed(spec, rngs)
        block = find_block(spec.block)
        self.blocks = nnx.List([block(spec, rngs) for _ in range(spec.n_layers)])
        self.ln_final = norm_class(spec)(spec, rngs)
        self.unembed = Unembed(spec, rngs)
        self.spec = spec

    def embedding(
        self, tokens: Int[Array | np.ndarray, "batch pos"], hooks: HookContext
    ) -> Float[Array, "batch pos d_model"]:
        """Return the sum of token and position embeddings.

        Raises:
          InputError: a token does not exist in the model. Traced tokens are not checked.
        """
        check_tokens(tokens, self.spec.d_vocab)
        tokens = jnp.asarray(tokens)
        # A matrix product with one-hot rows gives the same result, but a gather moves far fewer
        # bytes.
        embedded = hooks("hook_embed", self.embed.W_E[...][tokens])
        positions = self.pos_embed.W_pos[...][: tokens.shape[1]]
        positions = jnp.broadcast_to(positions[None], embedded.shape)
        return embedded + hooks("hook_pos_embed", positions)

    def block(self, layer: int) -> Block:
        """Return the block at unrolled depth `layer`."""
        block: Block = self.blocks[layer % self.spec.n_layers]
        return block

    def readout(
        self, resid: Float[Array, "*rest d_model"], hooks: HookContext
    ) -> Float[Array, "*rest d_vocab"]:
        """Apply the final norm and the unembedding; return float32 logits."""
        return self.unembedding(self.ln_final(resid, hooks.within("ln_final.")))

    def unembedding(self, resid: Float[Array, "*rest d_model"]) -> Float[Array, "*rest d_vocab"]:
        """Apply the unembedding without the final norm; return float32 logits."""
        weight = self.embed.W_E[...].T if self.spec.tied else self.unembed.W_U[...]
        logits = jnp.matmul(
            resid,
            weight.astype(resid.dtype),
            precision=self.spec.precision,
            preferred_element_type=jnp.float32,
        )
        if not self.spec.unembed_bias:
            return logits
        return logits + expand_to_rank(self.unembed.b_U[...], logits)


@functools.cache
def _graphdef(spec: Spec) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: Network(spec, nnx.Rngs(0))))


@functools.cache
def _parameters(spec: Spec) -> dict[str, Parameter]:
    table = with_prefix("embed", Embed.parameters(spec))
    table |= with_prefix("pos_embed", PosEmbed.parameters(spec))
    of_block = find_block(spec.block).parameters(spec)
    for layer in range(spec.n_layers):
        table |= with_prefix(f"blocks.{layer}", of_block)
    table |= with_prefix("ln_final", norm_class(spec).parameters(spec))
    return table | with_prefix("unembed", Unembed.parameters(spec))


@functools.cache
def _sites(spec: Spec) -> dict[str, Dims]:
    table: dict[str, Dims] = {"hook_embed": RESID, "hook_pos_embed": RESID}
    of_block = find_block(spec.block).sites(spec)
    for layer in range(spec.depth):
        table |= with_prefix(f"blocks.{layer}", of_block)
    return table | norm_sites("ln_final", spec)


def _public(state: Params) -> Params:
    """Convert an NNX state to public parameters.

    Block numbers become strings, as in HookedTransformer and in files. Empty groups are removed.
    """
    blocks = {str(layer): block for layer, block in state["blocks"].items()}
    return {name: group for name, group in (state | {"blocks": blocks}).items() if group}


def _private(params: Params) -> Params:
    return params | {"blocks": {int(layer): block for layer, block in params["blocks"].items()}}
