"""Random models of the package of this environment, for this package to read."""

import json

import numpy as np
import torch
from safetensors.torch import save_file


def make_theirs(case, model, tokens):
    """Fill a model at random; save its weights and config as `theirs.*`, and its logits."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    # Users save it like this: the whole state dict, with buffers, and the whole config.
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, case / "theirs.safetensors")
    (case / "theirs.json").write_text(json.dumps(model.cfg.to_dict(), default=str))
    np.save(case / "their_logits.npy", model(tokens).numpy())
