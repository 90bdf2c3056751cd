"""SAELens's outputs for finished dictionaries: each folder's `ours`, on its `x.npy`.

The script writes `acts.npy`, `out.npy`, and the dictionary as saved by SAELens in `theirs`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE

for folder in sorted(Path(sys.argv[1]).iterdir()):
    sae = SAE.load_from_disk(folder / "ours")
    x = torch.tensor(np.load(folder / "x.npy"))
    with torch.no_grad():
        acts = sae.encode(x)
        out = sae(x) if hasattr(sae, "W_skip") else sae.decode(acts)
    np.save(folder / "acts.npy", acts.numpy())
    np.save(folder / "out.npy", out.numpy())
    sae.save_model(folder / "theirs")
