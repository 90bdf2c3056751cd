"""The model in our file, as the package's own."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

try:
    from sae_lens import HookedSAETransformer as Model
except ImportError:  # the environment of TransformerLens by itself
    Model = HookedTransformer


def model_of(case):
    """`<case>/ours.safetensors` with its config; nothing may be left over or missing."""
    config = HookedTransformerConfig(**json.loads((case / "ours.json").read_text()))
    model = Model(config)
    told = model.load_state_dict(load_file(case / "ours.safetensors"), strict=False)
    buffers = [name for name, _ in model.named_buffers()]
    assert not told.unexpected_keys and set(told.missing_keys) <= set(buffers), told
    return model


def tokens_in(path):
    """Numpy's tokens as torch's."""
    return torch.as_tensor(np.load(path), dtype=torch.long)
