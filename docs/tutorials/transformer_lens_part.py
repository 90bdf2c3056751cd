"""What tutorial 3 does in TransformerLens; needs PyTorch and TransformerLens 2.

    python docs/tutorials/transformer_lens_part.py OUT.npz

The tutorial writes its model and its prompts to `runs/tutorials/patching/` first. Its page shows
the cells of this file.
"""

# %%
import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching, utils

torch.set_grad_enabled(False)
folder = Path("runs/tutorials/patching")
config = HookedTransformerConfig(**json.loads((folder / "model.json").read_text()))
model = HookedTransformer(config)
model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
prompts = {name: torch.tensor(x).long() for name, x in np.load(folder / "prompts.npz").items()}
clean, corrupt = prompts["clean"], prompts["corrupt"]
answer, corrupt_answer = prompts["answer"], prompts["corrupt_answer"]

# %%
logits, cache = model.run_with_cache(clean)
state = cache["blocks.0.hook_resid_post"]  # or cache["resid_post", 0]
pattern = cache["pattern", 3]

# %%
rows = torch.arange(len(clean))


def logit_difference(logits):
    last = logits[:, -1]
    return (last[rows, answer] - last[rows, corrupt_answer]).mean()


base, full = logit_difference(model(corrupt)), logit_difference(model(clean))


def recovery(logits):
    return (logit_difference(logits) - base) / (full - base)


grid = patching.get_act_patch_resid_pre(model, corrupt, cache, recovery)


# %%
def remove(z, hook, head):
    z[:, :, head] = 0
    return z


def without(layer, head):
    hook = (utils.get_act_name("z", layer), partial(remove, head=head))
    return logit_difference(model.run_with_hooks(clean, fwd_hooks=[hook])) / full


heads = [
    [without(layer, head) for head in range(config.n_heads)] for layer in range(config.n_layers)
]

# %%
arrays = {"logits": logits, "state": state, "pattern": pattern, "grid": grid}
arrays["heads"] = torch.tensor(heads)
found = {name: value.numpy() for name, value in arrays.items()}
np.savez_compressed(sys.argv[1], version=version("transformer-lens"), **found)
