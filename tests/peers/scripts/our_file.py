"""A model in a file of this package, loaded by the package of this environment."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

try:
    from sae_lens import HookedSAETransformer as Model
except ImportError:  # the environment has only TransformerLens
    Model = HookedTransformer


def model_of(case):
    """Load `<case>/ours.safetensors` with its config; no parameter may be extra or missing."""
    config = HookedTransformerConfig(**json.loads((case / "ours.json").read_text()))
    model = Model(config)
    told = model.load_state_dict(load_file(case / "ours.safetensors"), strict=False)
    buffers = [name for name, _ in model.named_buffers()]
    assert not told.unexpected_keys and set(told.missing_keys) <= set(buffers), told
    return model


def tokens_in(path):
    """Return numpy's tokens as torch tensors."""
    return torch.as_tensor(np.load(path), dtype=torch.long)
