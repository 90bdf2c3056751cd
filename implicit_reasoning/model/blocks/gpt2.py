"""GPT-2's block: attention and an MLP, which read the normalized residual stream.

Sources: Radford et al. 2019; TransformerLens's HookedTransformer (names of sites and parameters).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.blocks.attention import Attention
from implicit_reasoning.model.blocks.base import Block, position_selector
from implicit_reasoning.model.blocks.cells import (
    Cones,
    flatten_cells,
    insert_suffix,
    unflatten_cells,
)
from implicit_reasoning.model.blocks.mlp import MLP
from implicit_reasoning.model.blocks.norm import norm_class, norm_sites
from implicit_reasoning.model.blocks.parameters import Parameter, with_prefix
from implicit_reasoning.model.edits import HookContext
from implicit_reasoning.model.sites import ATTENTION, HEAD, NEURON, PER_HEAD, RESID, Dims
from implicit_reasoning.model.spec import Spec


class GPT2Block(Block):
    """GPT-2's pre-norm block, whose attention and MLP add to the residual stream."""

    dropout_sites: ClassVar = ("attn.hook_pattern", "hook_attn_out", "hook_mlp_out")
    cone_sites: ClassVar = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v")
    part_sites: ClassVar = (
        *("hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out"),
    )

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.ln1 = norm_class(spec)(spec, rngs)
        self.attn = Attention(spec, rngs)
        self.ln2 = norm_class(spec)(spec, rngs)
        self.mlp = MLP(spec, rngs)
        self.n_heads = spec.n_heads

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the descriptions of the parameters of norms, attention and MLP."""
        norm = norm_class(spec).parameters(spec)
        return {
            **with_prefix("ln1", norm),
            **with_prefix("attn", Attention.parameters(spec)),
            **with_prefix("ln2", norm),
            **with_prefix("mlp", MLP.parameters(spec)),
        }

    @staticmethod
    def sites(spec: Spec) -> dict[str, Dims]:
        """Return the sites (hook points) of a block, with TransformerLens's names."""
        return {
            "hook_resid_pre": RESID,
            "hook_attn_in": PER_HEAD,
            "hook_q_input": PER_HEAD,
            "hook_k_input": PER_HEAD,
            "hook_v_input": PER_HEAD,
            **norm_sites("ln1", spec),
            "attn.hook_q": HEAD,
            "attn.hook_k": HEAD,
            "attn.hook_v": HEAD,
            "attn.hook_attn_scores": ATTENTION,
            "attn.hook_pattern": ATTENTION,
            "attn.hook_z": HEAD,
            "attn.hook_result": PER_HEAD,
            "hook_attn_out": RESID,
            "hook_resid_mid": RESID,
            "hook_mlp_in": RESID,
            **norm_sites("ln2", spec),
            "mlp.hook_pre": NEURON,
            "mlp.hook_post": NEURON,
            "hook_mlp_out": RESID,
            "hook_resid_post": RESID,
        }

    @staticmethod
    def dims(spec: Spec) -> dict[str, int]:
        """Return the number of heads, the width of a head and the number of neurons."""
        return {"head": spec.n_heads, "d_head": spec.d_head, "d_mlp": spec.d_mlp}

    @staticmethod
    def parts(spec: Spec) -> tuple[str, ...]:
        """Return `attention`, `MLP`, and the name of every head."""
        return ("attention", "MLP", *(f"head {head}" for head in range(spec.n_heads)))

    @staticmethod
    def flops(spec: Spec, n_inputs: int, n_outputs: int) -> int:
        """Return the FLOPs of the matrix products in the forward pass of one row.

        Keys and values are computed at all `n_inputs` positions. Queries, attention and the MLP are
        computed at the `n_outputs` positions only.
        """
        heads = spec.n_heads * spec.d_head
        square, mlp = spec.d_model * heads, spec.d_model * spec.d_mlp
        projections = 2 * square * n_inputs + 2 * square * n_outputs
        attention = 2 * n_outputs * n_inputs * heads  # scores and mixing
        return 2 * (projections + attention + 2 * mlp * n_outputs)

    def __call__(
        self, resid: Float[Array, "batch pos d_model"], hooks: HookContext
    ) -> Float[Array, "batch pos d_model"]:
        """Compute the output at every position, and pass the values of the sites to `hooks`."""
        resid = hooks("hook_resid_pre", resid)
        query_in, key_in, value_in = self.attention_inputs(resid, hooks)
        attn_out = self.attn(query_in, key_in, value_in, hooks.within("attn."))
        return self.after_attention(resid, attn_out, hooks)

    def at(
        self,
        resid: Float[Array, "batch pos d_model"],
        positions: Int[Array, "batch slot"] | None,
        hooks: HookContext,
    ) -> Float[Array, "batch slot d_model"]:
        """Compute the output only at the given positions; None means the last position.

        Keys and values are computed at all positions.
        """
        resid = hooks("hook_resid_pre", resid)
        query_in, key_in, value_in = self.attention_inputs(resid, hooks)
        here = position_selector(positions)
        if positions is None:
            positions = jnp.full((1, 1), resid.shape[1] - 1)
        attn_out = self.attn(
            here(query_in), key_in, value_in, hooks.within("attn."), query_positions=positions
        )
        return self.after_attention(here(resid), attn_out, hooks)

    def after_attention(
        self,
        resid: Float[Array, "batch pos d_model"],
        attn_out: Float[Array, "batch pos d_model"],
        hooks: HookContext,
    ) -> Float[Array, "batch pos d_model"]:
        """Add the output of attention to the residual stream, then run the MLP."""
        resid = hooks("hook_resid_mid", resid + hooks("hook_attn_out", attn_out))
        mlp_in = self.ln2(hooks("hook_mlp_in", resid), hooks.within("ln2."))
        mlp_out = hooks("hook_mlp_out", self.mlp(mlp_in, hooks.within("mlp.")))
        return hooks("hook_resid_post", resid + mlp_out)

    def attention_inputs(
        self, resid: Float[Array, "batch pos d_model"], hooks: HookContext
    ) -> tuple[Array, Array, Array]:
        """Return the normalized inputs of queries, keys and values.

        The per-head sites (`hook_attn_in`, `hook_q_input`, ...) are *before* the norm, as in
        TransformerLens. If one of these sites is edited, every head gets separate inputs. The norm
        then runs once per head, and edits of `ln1` apply to every one of these runs. For example,
        an edit that sets `ln1.hook_scale` to the value of a clean run freezes the scale for all
        heads. In this case, the sites of `ln1` have one value per head, so these sites cannot be
        returned or read.
        """
        edited = any(map(hooks.edited, _PER_HEAD_INPUTS))
        if edited or any(map(hooks.asked, _PER_HEAD_INPUTS)):
            copies = resid[:, :, None].repeat(self.n_heads, axis=2)
            if hooks.asked("hook_attn_in"):
                copies = hooks("hook_attn_in", copies)
            split = [hooks(site, copies) for site in _PER_HEAD_INPUTS[1:]]
        norm_hooks = hooks.within("ln1.")
        if not edited:
            normalized = self.ln1(resid, norm_hooks)
            return normalized, normalized, normalized
        query_in, key_in, value_in = (self.ln1(x, norm_hooks.per_head(axis=2)) for x in split)
        return query_in, key_in, value_in

    def run_cones(
        self,
        cones: Cones,
        clean: Mapping[str, Float[Array, "batch _pos ..."]],
        *,
        only_end: bool,
    ) -> Cones:
        """Compute the block's outputs in many patched runs of one clean run.

        `Block.run_cones` describes the arguments. At positions that the patch cannot change,
        attention uses the queries, keys and values of the clean run. Projections, norms and the MLP
        treat every position separately, so they run once for all patched runs. Only `Attention.mix`
        runs once for each patched position.
        """
        n_pos = clean["hook_resid_pre"].shape[1]
        first = {at: n_pos - 1 if only_end else at[1] for at in cones}
        wanted = {at: own[:, :, first[at] - at[1] :] for at, own in cones.items()}

        read = self.ln1(flatten_cells(cones), HookContext())
        asking = self.ln1(flatten_cells(wanted), HookContext()) if only_end else read
        projected = self.attn.project(asking, read, read, HookContext())
        q, k, v = map(unflatten_cells, projected, (wanted, cones, cones))
        for at in cones:
            rest = slice(first[at] - n_pos, None)
            q[at] = insert_suffix(clean["attn.hook_q"][:, rest], q[at], 0)
            k[at] = insert_suffix(clean["attn.hook_k"], k[at], at[1])
            v[at] = insert_suffix(clean["attn.hook_v"], v[at], at[1])
            wanted[at] = insert_suffix(clean["hook_resid_pre"][:, rest], wanted[at], 0)
        attn_out = self.attn.output(flatten_cells(self._mixed(q, k, v)), HookContext())
        return unflatten_cells(
            self.after_attention(flatten_cells(wanted), attn_out, HookContext()), wanted
        )

    def _mixed(self, q: Cones, k: Cones, v: Cones) -> Cones:
        """Return `Attention.mix` for all cells; the queries are at the last key positions."""
        z: Cones = {}
        for pos in dict.fromkeys(pos for _, pos in q):
            here = [at for at in q if at[1] == pos]
            cells = [jnp.concatenate([x[at] for at in here]) for x in (q, k, v)]
            asked, seen = (x.shape[2] for x in cells[:2])
            queries, keys, values = (x.reshape(-1, *x.shape[2:]) for x in cells)
            positions = jnp.arange(seen - asked, seen)[None]
            mixed = self.attn.mix(queries, keys, values, HookContext(), query_positions=positions)
            sizes = np.cumsum([len(q[at]) for at in here])[:-1]
            parts = jnp.split(mixed.reshape(cells[0].shape), sizes)
            z |= dict(zip(here, parts, strict=True))
        return {at: z[at] for at in q}

    def exchange_parts(
        self, own: Mapping[str, Array], other: Mapping[str, Array]
    ) -> Float[Array, "part batch d_model"]:
        """Compute the block's output after exchanging one part between two runs, for each part.

        `Block.exchange_parts` describes the arguments. A head is exchanged at `attn.hook_z`, which
        determines the output of the head. If attention or a head is exchanged, the MLP runs again
        on the new residual stream.
        """
        whole = self._with_attn_out(own, other["hook_attn_out"][None])
        mlp = own["hook_resid_mid"][None] + other["hook_mlp_out"][None]
        z = own["attn.hook_z"]
        one_head = jnp.eye(z.shape[1], dtype=bool)[:, None, :, None]
        mixed = jnp.where(one_head, other["attn.hook_z"][None], z[None])
        by_head = self.attn.output(mixed.reshape(-1, 1, *z.shape[1:]), HookContext())
        by_head = by_head.reshape(*mixed.shape[:2], -1)
        return jnp.concatenate([whole, mlp, self._with_attn_out(own, by_head)])

    def _with_attn_out(
        self, own: Mapping[str, Array], attn_out: Float[Array, "cell batch d_model"]
    ) -> Float[Array, "cell batch d_model"]:
        resid = jnp.broadcast_to(own["hook_resid_pre"], attn_out.shape)
        resid, written = (x.reshape(-1, 1, x.shape[-1]) for x in (resid, attn_out))
        return self.after_attention(resid, written, HookContext()).reshape(attn_out.shape)


_PER_HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
