"""SAELens's training losses: each folder's `case.json` and `params.npz`, on its batch."""

import json
import sys
from pathlib import Path

import numpy as np
import sae_lens
import torch
from sae_lens.saes.sae import TrainStepInput

for folder in sorted(Path(sys.argv[1]).iterdir()):
    case = json.loads((folder / "case.json").read_text())
    config = getattr(sae_lens, case["class"] + "Config")(**case["config"])
    sae = getattr(sae_lens, case["class"])(config)
    params = {name: torch.tensor(value) for name, value in np.load(folder / "params.npz").items()}
    missing = sae.load_state_dict(params, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"topk_threshold"}
    batch = np.load(folder / "batch.npz")
    step = TrainStepInput(
        sae_in=torch.tensor(batch["x"]),
        coefficients=case["coefficients"],
        dead_neuron_mask=torch.tensor(batch["dead"]),
        n_training_steps=1,
        is_logging_step=False,
    )
    done = sae.training_forward_pass(step)
    losses = {name: float(value) for name, value in done.losses.items()}
    losses["loss"] = float(done.loss)
    np.save(folder / "acts.npy", done.feature_acts.detach().numpy())
    (folder / "losses.json").write_text(json.dumps(losses))
