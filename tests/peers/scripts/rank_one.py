"""The update of ROME, computed directly in PyTorch from a key, a second moment and a value.

For every file `<case>.npz` in the given folder (keys [edit, d_mlp], moment, W_out [d_mlp, d_model],
values [edit, d_model]), the script writes `<case>.their.npz`. The steps are those of the published
code (kmeng01/rome, rome_main.py and compute_u.py): the left vector is C^-1 k, normalized; the right
vector is the missing output, divided by the product of the key with the left vector.
"""

import sys
from pathlib import Path

import numpy as np
import torch

for file in sorted(Path(sys.argv[1]).glob("*.npz")):
    given = {name: torch.as_tensor(value).double() for name, value in np.load(file).items()}
    matrix, updated, outputs = given["W_out"], [], []
    for key, value in zip(given["keys"], given["values"], strict=True):
        left = torch.linalg.inv(given["moment"]) @ key[:, None]
        left = left.squeeze() / left.norm()
        current = key @ matrix
        right = (value - current) / torch.dot(key, left)
        update = left.unsqueeze(1) @ right.unsqueeze(0)
        updated.append(matrix + update)
        outputs.append(torch.nn.functional.linear(key[None], (matrix + update).T)[0])
    stacked = {"W_out": torch.stack(updated).numpy(), "outputs": torch.stack(outputs).numpy()}
    np.savez(file.with_suffix(".their.npz"), **stacked)
