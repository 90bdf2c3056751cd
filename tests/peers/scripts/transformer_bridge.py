"""TransformerBridge, native: logits of this package's models, and models for it to read.

The script reads and writes the same files as `hooked_transformer.py`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from at_random import make_theirs
from bridge_file import bridge_of


@torch.no_grad()
def answer(case):
    tokens = torch.as_tensor(np.load(case / "tokens.npy"), dtype=torch.long)
    model = bridge_of(case)
    np.save(case / "logits.npy", model(tokens).numpy())
    _, cache = model.run_with_cache(tokens)
    arrays = {name: value for name, value in cache.items() if isinstance(value, torch.Tensor)}
    np.savez(case / "hooks.npz", **{name: value.numpy() for name, value in arrays.items()})
    make_theirs(case, model, tokens)


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
