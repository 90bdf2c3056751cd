"""TransformerBridge, native: logits of this package's models, and models for it to read.

The files are those that HookedTransformer reads; TransformerLens 4 converts their keys itself. The
script reads and writes the same files as `hooked_transformer.py`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from at_random import make_theirs
from safetensors.torch import load_file
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint


@torch.no_grad()
def answer(case):
    tokens = torch.as_tensor(np.load(case / "tokens.npy"), dtype=torch.long)
    config = TransformerBridgeConfig.from_dict(json.loads((case / "ours.json").read_text()))
    model = TransformerBridge.boot_native(config)
    state = convert_tl_checkpoint(load_file(case / "ours.safetensors"), config)
    model.load_state_dict(state, strict=True)
    np.save(case / "logits.npy", model(tokens).numpy())
    _, cache = model.run_with_cache(tokens)
    arrays = {name: value for name, value in cache.items() if isinstance(value, torch.Tensor)}
    np.savez(case / "hooks.npz", **{name: value.numpy() for name, value in arrays.items()})
    make_theirs(case, model, tokens)


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
