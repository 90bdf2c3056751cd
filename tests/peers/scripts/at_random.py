"""A model of the package itself, for us to read."""

import json

import numpy as np
import torch
from safetensors.torch import save_file


def make_theirs(case, model, tokens):
    """Fill a model at random; leave its weights and config as `theirs.*`, and its logits."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    # As people save it: the whole state dict, buffers too, and the whole config.
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, case / "theirs.safetensors")
    (case / "theirs.json").write_text(json.dumps(model.cfg.to_dict(), default=str))
    np.save(case / "their_logits.npy", model(tokens).numpy())
