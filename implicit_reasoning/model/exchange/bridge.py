"""Conversion of the state dict of TransformerLens 4's native `TransformerBridge`.

TransformerLens 4 can read HookedTransformer's state dicts (`convert_tl_checkpoint`), but it writes
a different format. In this format, linear layers have PyTorch's layout `[out, in]`, with the heads
concatenated along one axis. This module converts names and layouts to HookedTransformer's format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from implicit_reasoning.errors import InputError

_NAMES = {
    "embed.weight": "embed.W_E",
    "pos_embed.weight": "pos_embed.W_pos",
    "unembed.weight": "unembed.W_U",
    "unembed.bias": "unembed.b_U",
    **{f"attn.{x}.weight": f"attn.W_{x.upper()}" for x in "qkvo"},
    **{f"attn.{x}.bias": f"attn.b_{x.upper()}" for x in "qkvo"},
    **{f"mlp.{x}.weight": f"mlp.W_{x}" for x in ("in", "out")},
    **{f"mlp.{x}.bias": f"mlp.b_{x}" for x in ("in", "out")},
    **{f"{x}.weight": f"{x}.w" for x in ("ln1", "ln2", "ln_final")},
    **{f"{x}.bias": f"{x}.b" for x in ("ln1", "ln2", "ln_final")},
}
_TRANSPOSED = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U")


def is_bridge(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict contains parameter names of TransformerLens 4."""
    return "embed.weight" in state


def check_scale(config: Mapping[str, Any], where: str | os.PathLike[str]) -> None:
    """Check that a native TransformerBridge supports the attention scale in a config.

    A native bridge divides the scores by `attn_scale`. The bridge ignores `use_attn_scale` and
    `scale_attn_by_inverse_layer_idx`. If a config sets one of these two fields, the model of the
    config differs from the model that the bridge computes.

    Raises:
      InputError: `use_attn_scale` or `scale_attn_by_inverse_layer_idx` is not the default.
    """
    asked = [
        f"{name} = {config[name]!r}"
        for name, usual in (("use_attn_scale", True), ("scale_attn_by_inverse_layer_idx", False))
        if config.get(name, usual) != usual
    ]
    if asked:
        raise InputError(
            f"{where} sets {', '.join(asked)}, which TransformerLens 4 ignores in a native model; "
            "set only attn_scale, the divisor of the attention scores"
        )


def hooked_state(
    state: Mapping[str, Any], n_heads: int, where: str | os.PathLike[str]
) -> dict[str, Any]:
    """Convert the state dict of a native TransformerBridge to HookedTransformer's format.

    Arrays with unknown names or shapes are returned unchanged.

    Raises:
      InputError: the state dict mixes names of TransformerLens 4 and of HookedTransformer. The
        layouts of these two formats differ.
    """
    renamed: dict[str, Any] = {}
    for name, array in state.items():
        block = "".join(re.findall(r"^blocks\.\d+\.", name))
        rest = name.removeprefix(block)
        ours = _NAMES.get(rest, rest)
        if rest in _NAMES.values():
            raise InputError(
                f"{where} contains names of TransformerLens 4 (embed.weight) and of "
                f"HookedTransformer ({name}); use the names of only one format, because the "
                "layouts of the formats differ"
            )
        renamed[block + ours] = _relaid(ours.rpartition(".")[2], array, n_heads)
    return renamed


def _relaid(name: str, array: Any, n_heads: int) -> Any:
    if name in _TRANSPOSED:
        array = array.T  # [out, in] -> [in, out]
    heads_in = name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V")
    width = array.shape[-1 if heads_in else 0] if array.ndim else 0
    if not (heads_in or name == "W_O") or n_heads < 1 or width % n_heads:
        return array
    if name == "W_O":
        return array.reshape(n_heads, width // n_heads, -1)
    split = array.reshape(*array.shape[:-1], n_heads, width // n_heads)
    return split.transpose(1, 0, 2) if split.ndim == 3 else split
