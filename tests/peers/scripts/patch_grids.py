"""TransformerLens's own patching grids, for this package's models.

For every `<case>/ours.safetensors` under the given folder, with `<case>/tokens.npy` and
`<case>/others.npy`, the script writes `<case>/grids.npz`: `{name: [direction, layer, pos, (head),
example, d_vocab]}`, logits at the last position. Direction 0 puts states of `others` into the run
of `tokens`, and direction 1 does the reverse.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from our_file import model_of, tokens_in
from transformer_lens import patching

GRIDS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    # There is no named grid for this one, which alone has the state after the last block.
    "resid_post": partial(
        patching.generic_activation_patch,
        patch_setter=patching.layer_pos_patch_setter,
        activation_name="resid_post",
        index_axis_names=("layer", "pos"),
    ),
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "head": patching.get_act_patch_attn_head_out_by_pos,
}


def whole(grid, model, base, cache):
    """Return a grid of logit vectors.

    A metric of TransformerLens is one number per cell. Here the number is the index of a saved
    vector, so that TransformerLens's grid determines the place of each vector.
    """
    kept = []

    def metric(logits):
        kept.append(logits[:, -1].clone())
        return torch.tensor(len(kept) - 1.0)

    numbers = grid(model, base, cache, metric)
    assert len(kept) == numbers.numel()
    return torch.stack(kept)[numbers.long()].numpy()


@torch.no_grad()
def answer(case):
    model, one = model_of(case), tokens_in(case / "tokens.npy")
    other = tokens_in(case / "others.npy")
    both = [(base, model.run_with_cache(donor)[1]) for base, donor in ((one, other), (other, one))]
    grids: dict[str, Any] = {
        name: np.stack([whole(grid, model, base, cache) for base, cache in both])
        for name, grid in GRIDS.items()
    }
    np.savez(case / "grids.npz", **grids)


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
