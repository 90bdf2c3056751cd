"""TransformerLens's residual stream grid for patch_grid.py, in its own Python environment.

    python transformer_lens_grid.py FOLDER THREADS

FOLDER contains the model (`ours.safetensors`, `ours.json`) and `prompts.npz` (clean, corrupted).
For every input line, the process computes one grid and writes its seconds as one line of JSON. If
the input line is "logits" instead of "time", the process also writes `logits.npy` [layer, pos,
prompt, d_vocab] to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # a progress bar for every grid would add to the measured time

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.patching import get_act_patch_resid_pre


def main(folder: Path, threads: int) -> None:
    """Answer every line of standard input."""
    # The package's own output must not mix with the answers.
    replies, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = load(folder)
    prompts = np.load(folder / "prompts.npz")
    clean, corrupted = (torch.as_tensor(prompts[name]).long() for name in ("clean", "corrupted"))
    said = {
        "transformer_lens": version("transformer_lens"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(said), file=replies, flush=True)
    for line in sys.stdin:
        kept: list[torch.Tensor] | None = [] if line.strip() == "logits" else None
        seconds = grid(model, clean, corrupted, kept)
        if kept is not None:
            shape = (model.cfg.n_layers, clean.shape[1], *kept[0].shape)
            np.save(folder / "logits.npy", torch.stack(kept).reshape(shape).numpy())
        print(json.dumps({"seconds": seconds}), file=replies, flush=True)


def load(folder: Path) -> HookedTransformer:
    """Load our weights into a TransformerLens model."""
    config = json.loads((folder / "ours.json").read_text())
    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu")).eval()
    told = model.load_state_dict(load_file(folder / "ours.safetensors"), strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    assert not told.unexpected_keys and set(told.missing_keys) <= buffers, told
    return model


def grid(
    model: HookedTransformer, clean: Any, corrupted: Any, kept: list[torch.Tensor] | None
) -> float:
    """Compute the grid and return the seconds, including the run that caches the states.

    In TransformerLens, the corrupted prompts are patched with states of the clean prompts. Here,
    the clean prompts are patched, so the roles are exchanged. If `kept` is a list, the logits at
    the last position are appended to it.
    """

    def metric(logits: torch.Tensor) -> torch.Tensor:
        """Return the mean of one logit at the last position, a metric of minimal cost."""
        if kept is not None:
            kept.append(logits[:, -1].clone())
        return logits[:, -1, 0].mean()

    began = time.perf_counter()
    _, donor = model.run_with_cache(
        corrupted, names_filter=lambda name: name.endswith("hook_resid_pre")
    )
    get_act_patch_resid_pre(model, clean, donor, metric)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
