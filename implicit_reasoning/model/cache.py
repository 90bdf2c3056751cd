"""The values of sites in one forward pass, and the terms whose sum is the residual stream.

`Cache` has the methods of TransformerLens's `ActivationCache`, with the same names, arguments and
labels. Three things differ:

- A norm that is applied to terms includes its weight (`ln_final.w`). TransformerLens leaves the
  weight out, because its models usually have norms that are folded into the next weights. So the
  logits are `cache.decompose_resid(apply_ln=True) @ hooked.W_U`, summed over the terms, up to
  biases. Where norms are folded, the weight is 1, and both are equal.
- Layers count the unrolled depth of looped models.
- The remainder of no blocks (`layer=0`) is the embedding. TransformerLens takes the final stream.

Source: TransformerLens 4.3 (ActivationCache).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.activations import (
    Activations,
    Selection,
    Stack,
    index_of,
    is_index,
    take,
)
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.edits import expand_to_rank
from implicit_reasoning.model.hook_names import get_act_name


class Cache(Activations):
    """The values of sites (hook points) in one forward pass, and terms of the residual stream.

    The keys are described at `Activations`. Layers are counted from 0 on.
    """

    def remove_batch_dim(self) -> Cache:
        """Remove the batch axis from all values, in place, and return the cache.

        Raises:
          InputError: the batch has more than one prompt.
        """
        sizes = {value.shape[0] for value in self._values.values()} if self.has_batch_dim else {1}
        if not sizes <= {1}:
            raise InputError(
                f"the batch axis has size {max(sizes)}; only an axis of size 1 can be removed. "
                "apply_slice_to_batch_dim selects prompts"
            )
        if self.has_batch_dim:
            self._values = {site: value[0] for site, value in self._values.items()}
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Selection) -> Cache:
        """Return a cache of selected prompts of the batch. One index removes the batch axis.

        Raises:
          InputError: the cache has no batch axis.
        """
        if not self.has_batch_dim:
            raise InputError("the cache has no batch axis, because remove_batch_dim removed it")
        values = {site: take(value, batch_slice, 0) for site, value in self._values.items()}
        return Cache(values, self.model, has_batch_dim=not is_index(batch_slice))

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """Return the residual stream before each block up to `layer`, and at the input of `layer`.

        Labels are `0_pre`, `0_mid`, `1_pre`, ..., `final_post`.

        Args:
          layer: terms are those of the input of this block; `None`, `-1` and the depth of the model
            mean the input of the unembedding.
          incl_mid: whether to include the stream between attention and MLP of the blocks before.
          apply_ln: whether to apply the norm of `layer`. The final norm is applied whole, with the
            scale of each state and with its bias, as for the logit lens. The other norms have the
            scale of the forward pass.
          pos_slice: the positions, a `Selection`.
          mlp_input: whether the input is that of the MLP of the block, not that of its attention.
          return_labels: whether to return `(stack, labels)` instead of `stack`.
        """
        layer = self.layer_of(layer, mlp_input)
        parts = {}
        for n in range(layer + 1):
            if n == self.depth:
                parts["final_post"] = self["resid_post", n - 1]
                continue
            parts[f"{n}_pre"] = self["resid_pre", n]
            if (incl_mid and n < layer) or (mlp_input and n == layer):
                parts[f"{n}_mid"] = self["resid_mid", n]
        stack = jnp.stack([take(part, pos_slice, -2) for part in parts.values()])
        if apply_ln:
            stack = self.apply_ln_to_stack(
                stack, layer, mlp_input, pos_slice, recompute_ln=layer == self.depth
            )
        return (stack, list(parts)) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Selection = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """Return the terms whose sum is the residual stream at the input of `layer`.

        The terms are the token and position embeddings and the outputs of attention and MLP of the
        blocks before, with the labels `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, ...

        Args:
          layer: terms are those of the input of this block; `None`, `-1` and the depth of the model
            mean the input of the unembedding.
          mlp_input: whether the input is that of the MLP of the block, not that of its attention.
          mode: "attn" or "mlp" leaves out the outputs of the other kind; "all" keeps both.
          apply_ln: whether to apply the norm of that input; see `apply_ln_to_stack`.
          pos_slice: the positions, a `Selection`.
          incl_embeds: whether to include the embeddings.
          return_labels: whether to return `(stack, labels)` instead of `stack`.

        Raises:
          InputError: the blocks of the model are not `gpt2`, `mode` is unknown, or no term is left.
        """
        require_gpt2(self.model.cfg, "decompose_resid")
        layer = self.layer_of(layer, mlp_input)
        sites = {"embed": ("embed",), "pos_embed": ("pos_embed",)} if incl_embeds else {}
        if mode not in ("all", "attn", "mlp"):
            raise InputError(f"mode is {mode!r}; it must be 'all', 'attn' or 'mlp'")
        kinds = ("attn", "mlp") if mode == "all" else (mode,)
        at = [(n, kind) for n in range(layer) for kind in kinds]
        at += [(layer, "attn")] if mlp_input and "attn" in kinds else []
        parts: dict[str, Array] = {name: self[key] for name, key in sites.items()}
        parts |= {f"{n}_{kind}_out": self[f"{kind}_out", n] for n, kind in at}
        if not parts:
            raise InputError("there are no terms: layer is 0 and incl_embeds is False; raise layer")
        stack = jnp.stack([take(part, pos_slice, -2) for part in parts.values()])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return (stack, list(parts)) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Selection = None,
        apply_ln: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """Return what every head of the blocks before `layer` adds to the residual stream.

        Labels are `L0H0`, `L0H1`, ... The results are computed from `z` where `hook_result` is not
        in the cache. The bias `b_O` belongs to no head.

        Args:
          layer: terms are those of the input of this block; `None`, `-1` and the depth of the model
            mean the input of the unembedding.
          return_labels: whether to return `(stack, labels)` instead of `stack`.
          incl_remainder: whether to add a last term `remainder`, the rest of the residual stream.
          pos_slice: the positions, a `Selection`.
          apply_ln: whether to apply the norm of that input; see `apply_ln_to_stack`.

        Raises:
          InputError: the blocks of the model are not `gpt2`.
        """
        require_gpt2(self.model.cfg, "stack_head_results")
        layer = self.layer_of(layer)
        found = [take(self._head_results(n), pos_slice, -3) for n in range(layer)]
        labels = [f"L{n}H{head}" for n in range(layer) for head in range(self.model.cfg.n_heads)]
        stack = self._stack_parts(found, pos_slice)
        if incl_remainder:
            stack, labels = self._with_remainder(stack, labels, layer, False, pos_slice, None)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def stack_neuron_results(
        self,
        layer: int | None = None,
        pos_slice: Selection = None,
        neuron_slice: Selection = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: ArrayLike | None = None,
        mlp_input: bool = False,
    ) -> Float[Array, "component ..."] | tuple[Float[Array, "component ..."], list[str]]:
        """Return what every neuron of the blocks before `layer` adds to the residual stream.

        Labels are `L0N0`, `L0N1`, ... The bias `b_out` belongs to no neuron. All neurons together
        take the memory of `d_mlp` residual streams for each block, unless a projection is given.

        Args:
          layer: terms are those of the input of this block; `None`, `-1` and the depth of the model
            mean the input of the unembedding.
          pos_slice: the positions, a `Selection`.
          neuron_slice: the neurons of each block, a `Selection`; an index keeps the axis.
          return_labels: whether to return `(stack, labels)` instead of `stack`.
          incl_remainder: whether to add a last term `remainder`, the rest of the residual stream.
          apply_ln: whether to apply the norm of that input; see `apply_ln_to_stack`.
          project_output_onto: directions [d_model] or [d_model, output], such as columns of `W_U`.
            Then the last axis of the stack is the product with these directions. It is absent for
            one direction.
          mlp_input: whether the input is that of the MLP of the block, not that of its attention.

        Raises:
          InputError: the blocks of the model are not `gpt2`.
        """
        require_gpt2(self.model.cfg, "stack_neuron_results")
        layer = self.layer_of(layer, mlp_input)
        onto, squeeze = self._projection(project_output_onto, apply_ln, layer, mlp_input)
        chosen = np.atleast_1d(np.arange(self.model.cfg.d_mlp)[index_of(neuron_slice)])
        found = [self.get_neuron_results(n, chosen, pos_slice, onto) for n in range(layer)]
        labels = [f"L{n}N{neuron}" for n in range(layer) for neuron in chosen]
        stack = self._stack_parts(found, pos_slice, onto)
        if incl_remainder:
            stack, labels = self._with_remainder(stack, labels, layer, mlp_input, pos_slice, onto)
        if apply_ln:
            stack = self._normalized(stack, layer, mlp_input, pos_slice, onto)
        stack = stack[..., 0] if squeeze else stack
        return (stack, labels) if return_labels else stack

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Selection = None,
        pos_slice: Selection = None,
        project_output_onto: ArrayLike | None = None,
    ) -> Float[Array, "*batch_and_pos neuron output"]:
        """Return what the neurons of one block add to the residual stream.

        Args:
          layer: the index of the block.
          neuron_slice: the neurons.
          pos_slice: the positions.
          project_output_onto: directions [d_model] or [d_model, output]. The last axis of the
            result is the product with these directions, or absent for one direction.
        """
        acts = take(take(self["post", layer], pos_slice, -2), neuron_slice, -1)
        written = take(self.model.W_out[layer], neuron_slice, 0)
        if project_output_onto is not None:
            written = jnp.matmul(written, jnp.asarray(project_output_onto), precision="highest")
        if project_output_onto is None or jnp.ndim(project_output_onto) == 2:
            acts = acts[..., None]
        return acts * expand_to_rank(written, acts)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        return_labels: bool = False,
        project_output_onto: ArrayLike | None = None,
    ) -> Float[Array, "component ..."] | tuple[Float[Array, "component ..."], list[str]]:
        """Return all terms of the residual stream at the input of `layer`.

        The terms are, in this order: every head, every neuron, the token and position embeddings,
        and `bias`, the sum of the output biases.

        Args:
          layer: terms are those of the input of this block; `None`, `-1` and the depth of the model
            mean the input of the unembedding.
          mlp_input: whether the input is that of the MLP of the block, not that of its attention.
          expand_neurons: whether to have a term for every neuron. Otherwise, there is one for the
            output of each MLP, which includes the bias of the MLP.
          apply_ln: whether to apply the norm of that input; see `apply_ln_to_stack`.
          pos_slice: the positions, a `Selection`.
          return_labels: whether to return `(stack, labels)` instead of `stack`.
          project_output_onto: see `stack_neuron_results`.

        Raises:
          InputError: the blocks of the model are not `gpt2`.
        """
        layer = self.layer_of(layer, mlp_input)
        onto, squeeze = self._projection(project_output_onto, apply_ln, layer, mlp_input)
        heads, labels = self.stack_head_results(
            layer + mlp_input, return_labels=True, pos_slice=pos_slice
        )
        bias = self.model.accumulated_bias(layer, mlp_input, include_mlp_biases=expand_neurons)
        embeds = [take(self[name], pos_slice, -2) for name in ("embed", "pos_embed")]
        rest = jnp.stack([*embeds, jnp.broadcast_to(bias, embeds[0].shape)])
        parts = [_onto(heads, onto)]
        if layer and expand_neurons:
            neurons, names = self.stack_neuron_results(
                layer, pos_slice, return_labels=True, project_output_onto=onto
            )
            parts, labels = [*parts, neurons], labels + names
        elif layer:
            mlps, names = self.decompose_resid(
                layer, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True
            )
            parts, labels = [*parts, _onto(mlps, onto)], labels + names
        stack = jnp.concatenate([*parts, _onto(rest, onto)])
        labels = [*labels, "embed", "pos_embed", "bias"]
        if apply_ln:
            stack = self._normalized(stack, layer, mlp_input, pos_slice, onto)
        stack = stack[..., 0] if squeeze else stack
        return (stack, labels) if return_labels else stack

    def logit_attrs(
        self,
        residual_stack: Float[Array | np.ndarray, "component ... d_model"],
        tokens: int | Int[Array | np.ndarray, "..."],
        incorrect_tokens: int | Int[Array | np.ndarray, "..."] | None = None,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool | None = None,
    ) -> Float[Array, "component ..."]:
        """Return what each term of the final residual stream adds to the logits of tokens.

        The sum over all terms is the logit without the part of the biases of `ln_final` and of the
        unembedding.

        Args:
          residual_stack: the terms, for example those of `decompose_resid`.
          tokens: one token; one for each prompt, [batch]; or one for each position, [batch, pos] or
            [1, pos]. A vector whose length is not the size of the batch has one for each position.
          incorrect_tokens: tokens of the same shape, whose logits are subtracted.
          pos_slice: the positions that the terms have.
          batch_slice: the prompts to keep. The tokens are those of these prompts.
          has_batch_dim: whether the terms have a batch axis; by default, whether the cache has one.

        Raises:
          InputError: the shapes of `tokens` and `incorrect_tokens` differ, or the model does not
            have a token.
        """
        has_batch = self.has_batch_dim if has_batch_dim is None else has_batch_dim
        directions = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            if np.shape(tokens) != np.shape(incorrect_tokens):
                raise InputError(
                    "tokens and incorrect_tokens must have the same shape; their shapes are "
                    f"{np.shape(tokens)} and {np.shape(incorrect_tokens)}"
                )
            directions -= self.model.tokens_to_residual_directions(incorrect_tokens)
        stack = self.apply_ln_to_stack(
            residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim=has_batch
        )
        by_prompt = has_batch and not is_index(batch_slice) and stack.ndim == 4
        if by_prompt and directions.ndim == 2 and directions.shape[0] == stack.shape[1]:
            directions = directions[:, None]  # One token for each prompt, at all positions.
        return (stack * expand_to_rank(directions, stack)).sum(-1)

    def _head_results(self, layer: int) -> Float[Array, "*batch pos head d_model"]:
        if get_act_name("result", layer) in self._values:
            return self["result", layer]
        z, out = self["z", layer], self.model.W_O[layer]
        return jnp.einsum("...hd,hdm->...hm", z, out, precision="highest")

    def _stack_parts(
        self, parts: Sequence[Array], pos_slice: Selection, onto: Array | None = None
    ) -> Array:
        """Move the second axis from the end to the front and join blocks along it."""
        if parts:
            return jnp.moveaxis(jnp.concatenate(parts, axis=-2), -2, 0)
        empty = _onto(take(self["embed"], pos_slice, -2), onto)
        return jnp.zeros((0, *empty.shape), empty.dtype)

    def _with_remainder(
        self,
        stack: Array,
        labels: list[str],
        layer: int,
        mlp_input: bool,
        pos_slice: Selection,
        onto: Array | None,
    ) -> tuple[Array, list[str]]:
        if mlp_input:
            whole = self["resid_mid", layer]
        else:
            whole = self["resid_post", layer - 1] if layer else self["resid_pre", 0]
        rest = _onto(take(whole, pos_slice, -2), onto) - stack.sum(0)
        return jnp.concatenate([stack, rest[None]]), [*labels, "remainder"]

    def _projection(
        self, onto: ArrayLike | None, apply_ln: bool, layer: int, mlp_input: bool
    ) -> tuple[Array | None, bool]:
        """Return directions [d_model, output] and whether one direction was given.

        With `apply_ln`, the directions include the linear part of the norm, except for its scale.
        The terms are then never needed one by one in the residual stream.
        """
        if onto is None:
            return None, False
        found, squeeze = jnp.asarray(onto), jnp.ndim(onto) == 1
        found = found[:, None] if squeeze else found
        if apply_ln and self.model.cfg.normalization == "LN":
            found *= self.model.norm_weight(layer, mlp_input=mlp_input)[:, None]
            found -= found.mean(0, keepdims=True)
        return found, squeeze

    def _normalized(
        self, stack: Array, layer: int, mlp_input: bool, pos_slice: Selection, onto: Array | None
    ) -> Array:
        """Apply a norm to terms, or to their products with the directions of `_projection`."""
        if onto is None:
            return self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        if self.model.cfg.normalization != "LN":
            return stack
        return stack / expand_to_rank(self.scale_of(layer, mlp_input, pos_slice, None), stack)


def _onto(stack: Array, onto: Array | None) -> Array:
    return stack if onto is None else jnp.matmul(stack, onto, precision="highest")
