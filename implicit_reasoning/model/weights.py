"""The weights of one checkpoint, stacked over blocks, with HookedTransformer's names.

Source of the names: TransformerLens (HookedTransformer's properties `W_Q`, `W_E`, `OV`, ...).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.embeddings import unembedding_matrix
from implicit_reasoning.model.factored import FactoredMatrix, ov_matrices, qk_matrices
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.tokens import check_tokens
from implicit_reasoning.model.transformer import Params, Transformer


class Weights:
    """A model together with the parameters of one checkpoint.

    Weights of blocks are stacked along a first axis, the unrolled depth: a looped model has the
    same weights in every loop. The properties need blocks of the kind `gpt2`, except for those of
    the embeddings and the unembedding, and raise an `InputError` for other blocks.
    """

    def __init__(self, model: Transformer, params: Params):
        self.model, self.params = model, params

    @property
    def cfg(self) -> Spec:
        """The spec of the model. The number of blocks in a forward pass is `cfg.depth`."""
        return self.model.spec

    @property
    def W_E(self) -> Float[Array, "d_vocab d_model"]:
        """The token embeddings."""
        return jnp.asarray(self.params["embed"]["W_E"])

    @property
    def W_pos(self) -> Float[Array, "n_ctx d_model"]:
        """The position embeddings."""
        return jnp.asarray(self.params["pos_embed"]["W_pos"])

    @property
    def W_E_pos(self) -> Float[Array, "rows d_model"]:
        """The token embeddings, followed by the position embeddings."""
        return jnp.concatenate([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Array, "d_model d_vocab"]:
        """The unembedding; the transposed embedding if the model is tied."""
        return unembedding_matrix(self.params)

    @property
    def b_U(self) -> Float[Array, " d_vocab"]:
        """The bias of the logits; zeros if the model has none."""
        if not self.cfg.unembed_bias:
            return jnp.zeros(self.cfg.d_vocab)
        return jnp.asarray(self.params["unembed"]["b_U"])

    @property
    def W_Q(self) -> Float[Array, "layer head d_model d_head"]:
        """The weights of queries."""
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Float[Array, "layer head d_model d_head"]:
        """The weights of keys."""
        return self._stack("attn", "W_K")

    @property
    def W_V(self) -> Float[Array, "layer head d_model d_head"]:
        """The weights of values."""
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Float[Array, "layer head d_head d_model"]:
        """The weights of the outputs of heads."""
        return self._stack("attn", "W_O")

    @property
    def b_Q(self) -> Float[Array, "layer head d_head"]:
        """The biases of queries."""
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Float[Array, "layer head d_head"]:
        """The biases of keys."""
        return self._stack("attn", "b_K")

    @property
    def b_V(self) -> Float[Array, "layer head d_head"]:
        """The biases of values."""
        return self._stack("attn", "b_V")

    @property
    def b_O(self) -> Float[Array, "layer d_model"]:
        """The biases of the output of attention."""
        return self._stack("attn", "b_O")

    @property
    def W_in(self) -> Float[Array, "layer d_model d_mlp"]:
        """The input weights of neurons."""
        return self._stack("mlp", "W_in")

    @property
    def W_out(self) -> Float[Array, "layer d_mlp d_model"]:
        """The output weights of neurons."""
        return self._stack("mlp", "W_out")

    @property
    def b_in(self) -> Float[Array, "layer d_mlp"]:
        """The biases of neurons."""
        return self._stack("mlp", "b_in")

    @property
    def b_out(self) -> Float[Array, "layer d_model"]:
        """The biases of the output of the MLP."""
        return self._stack("mlp", "b_out")

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of every head as factors, [layer, head, d_model, d_model]."""
        return ov_matrices(self.model, self.params)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of every head as factors, [layer, head, d_model, d_model]."""
        return qk_matrices(self.model, self.params)

    def norm_weight(self, layer: int, *, mlp_input: bool = False) -> Float[Array, " d_model"]:
        """Return the weight of the norm before attention or the MLP of a block, or of `ln_final`.

        Args:
          layer: the index of the block; `cfg.depth` for the final norm.
          mlp_input: whether to return the norm before the MLP instead of that before attention.
        """
        if self.cfg.normalization != "LN":
            return jnp.ones(self.cfg.d_model)
        if layer == self.cfg.depth:
            return jnp.asarray(self.params["ln_final"]["w"])
        block = self.params["blocks"][str(layer % self.cfg.n_layers)]
        return jnp.asarray(block["ln2" if mlp_input else "ln1"]["w"])

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Array, " d_model"]:
        """Return the sum of the output biases of all blocks before a block.

        Args:
          layer: the index of the block; `cfg.depth` for the input of the unembedding.
          mlp_input: whether to include the bias of the attention of this block too.
          include_mlp_biases: whether to include the biases of MLPs.
        """
        found = self.b_O[: layer + mlp_input].sum(0)
        return found + self.b_out[:layer].sum(0) if include_mlp_biases else found

    def tokens_to_residual_directions(
        self, tokens: int | Int[Array | np.ndarray, "..."]
    ) -> Float[Array, "... d_model"]:
        """Return the columns of `W_U` that belong to tokens.

        Raises:
          InputError: the model does not have a token.
        """
        check_tokens(np.atleast_1d(tokens), self.cfg.d_vocab)
        return self.W_U.T[jnp.asarray(tokens)]

    def _stack(self, part: str, name: str) -> Array:
        require_gpt2(self.cfg, name)
        blocks = self.params["blocks"]
        of_depth = [blocks[str(n % self.cfg.n_layers)][part][name] for n in range(self.cfg.depth)]
        return jnp.stack(of_depth)
