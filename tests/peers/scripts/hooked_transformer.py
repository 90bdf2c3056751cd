"""HookedTransformer, or SAELens's: logits of this package's models, and models for it to read.

For every `<case>/ours.safetensors` under the given folder, the script writes `<case>/logits.npy`,
and in `<case>/hooks.npz` the value at every hook. It then fills a model of the same config at
random and saves its state dict and config as `<case>/theirs.*`, and its logits as
`<case>/their_logits.npy`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from at_random import make_theirs
from our_file import model_of, tokens_in

PER_HEAD = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_result")


def hook_values(model, tokens):
    """Return the value at every hook; a second run has hooks that are costly or change shapes."""
    _, usual = model.run_with_cache(tokens)
    model.set_use_attn_result(True)
    model.set_use_attn_in(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    _, costly = model.run_with_cache(tokens)
    rare = {name: value for name, value in costly.items() if name.endswith((*PER_HEAD, "mlp_in"))}
    return {name: value.numpy() for name, value in {**usual, **rare}.items()}


@torch.no_grad()
def answer(case):
    tokens, model = tokens_in(case / "tokens.npy"), model_of(case)
    np.save(case / "logits.npy", model(tokens).numpy())
    np.savez(case / "hooks.npz", **hook_values(model, tokens))
    make_theirs(case, model, tokens)


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
