"""Sites: the named places of a forward pass, with TransformerLens's names.

Blocks are numbered by *unrolled* depth: a looped model with 1 block and 4 loops has the sites
`blocks.0.*` to `blocks.3.*`, so that every analysis has one layer axis. `blocks.i.hook_resid_post`
is the residual after `i + 1` blocks, before the final norm: `S[i + 1, pos]` in the papers.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from implicit_reasoning.errors import InputError

Dims = tuple[str, ...]

RESID: Dims = ("batch", "pos", "d_model")
PER_HEAD: Dims = ("batch", "pos", "head", "d_model")
HEAD: Dims = ("batch", "pos", "head", "d_head")
ATTENTION: Dims = ("batch", "head", "query_pos", "key_pos")
NEURON: Dims = ("batch", "pos", "d_mlp")
SCALE: Dims = ("batch", "pos", "one")


def site_table(depth: int, normalized: bool) -> dict[str, Dims]:
    """Every site of a model and the names of its dimensions, in the order of the forward pass."""
    table: dict[str, Dims] = {"hook_embed": RESID, "hook_pos_embed": RESID}
    for layer in range(depth):
        table |= {f"blocks.{layer}.{name}": dims for name, dims in _block(normalized).items()}
    return table | _norm("ln_final", normalized)


def _norm(name: str, normalized: bool) -> dict[str, Dims]:
    return {f"{name}.hook_scale": SCALE, f"{name}.hook_normalized": RESID} if normalized else {}


def _block(normalized: bool) -> dict[str, Dims]:
    return {
        "hook_resid_pre": RESID,
        "hook_attn_in": PER_HEAD,
        "hook_q_input": PER_HEAD,
        "hook_k_input": PER_HEAD,
        "hook_v_input": PER_HEAD,
        **_norm("ln1", normalized),
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
        **_norm("ln2", normalized),
        "mlp.hook_pre": NEURON,
        "mlp.hook_post": NEURON,
        "hook_mlp_out": RESID,
        "hook_resid_post": RESID,
    }


def check_sites(names: Collection[str], table: Mapping[str, Dims]) -> None:
    """Raise an `InputError` that names every unknown site, and the nearest one that exists."""
    unknown = [name for name in names if name not in table]
    if unknown:
        near = {name: difflib.get_close_matches(name, table, n=1) for name in unknown}
        faults = [f"{n!r}" + (f" (did you mean {m[0]!r}?)" if m else "") for n, m in near.items()]
        raise InputError(
            f"no such site: {', '.join(faults)}; model.sites lists those of the model, "
            "and model.sites_with(edits) also those that edits add"
        )
