"""Names of sites: the full names of TransformerLens, and its short names with a block."""

from __future__ import annotations

# Short names of the hooks in each module of a block.
_IN_ATTENTION = ("q", "k", "v", "z", "attn_scores", "pattern", "result")
_IN_MLP = ("pre", "post")
_IN_NORM = ("scale", "normalized")
_ALIASES = {"attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v"}
_ALIASES |= {"mlp_pre": "pre", "mlp_mid": "post", "mlp_post": "post"}


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """Return the full name of a site, such as `blocks.6.attn.hook_k` for `("k", 6)`.

    Args:
      name: a short name, such as "resid_post", "q", "pattern", "mlp_out" or "normalized". A full
        name is returned unchanged.
      layer: the index of the block; None for a site outside the blocks.
      layer_type: "ln1" or "ln2" for the names "scale" and "normalized"; ignored for all other
        names.
    """
    if "." in name or name.startswith("hook_"):
        return name
    name = _ALIASES.get(name, name)
    if layer is None:
        return f"ln_final.hook_{name}" if name in _IN_NORM else f"hook_{name}"
    place = ""
    if name in _IN_NORM:
        place = f"{layer_type or 'ln1'}."
    elif name in _IN_ATTENTION:
        place = "attn."
    elif name in _IN_MLP:
        place = "mlp."
    return f"blocks.{layer}.{place}hook_{name}"
