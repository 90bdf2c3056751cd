"""Transformer models: architecture, hook points (sites), edits of activations, and weight files."""

from implicit_reasoning.model.edits import (
    Edit,
    Edits,
    HookContext,
    add,
    drop,
    mask,
    merge_edits,
    scale,
    set_to,
)
from implicit_reasoning.model.embeddings import unembedding_matrix
from implicit_reasoning.model.spec import Spec
from implicit_reasoning.model.tokens import check_tokens
from implicit_reasoning.model.transformer import Network, Params, Transformer

__all__ = [
    "Edit",
    "Edits",
    "HookContext",
    "Network",
    "Params",
    "Spec",
    "Transformer",
    "add",
    "check_tokens",
    "drop",
    "mask",
    "merge_edits",
    "scale",
    "set_to",
    "unembedding_matrix",
]
