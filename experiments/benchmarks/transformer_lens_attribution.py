"""Attribution patching by TransformerLens for attribution.py, in its own Python environment.

    python transformer_lens_attribution.py FOLDER THREADS

FOLDER contains one folder for each checkpoint (`ours.safetensors`, `ours.json`), numbered from 0,
and `inputs.npz` (clean, corrupted, answers). For every input line, the process computes the effects
of all checkpoints and writes the seconds of wall and processor as one line of JSON. If the input
line is "effects", the process also writes `effects.npz` to FOLDER. If it ends with "all gradients",
the backward pass computes the gradients of all weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from transformer_lens import HookedTransformer
from transformer_lens_grid import load

PARTS = ("hook_attn_out", "hook_mlp_out", "attn.hook_z")
PROJECTIONS = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
NEURONS = "mlp.hook_post"
Tensors = dict[str, torch.Tensor]


def main(folder: Path, threads: int) -> None:
    """Answer every line of standard input."""
    # The package's own output must not mix with the answers.
    replies, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    count = sum(path.is_dir() for path in folder.iterdir())
    models = [load(folder / str(number)) for number in range(count)]
    inputs = np.load(folder / "inputs.npz")
    given = [torch.as_tensor(inputs[name]).long() for name in ("clean", "corrupted", "answers")]
    said = {
        "transformer_lens": version("transformer_lens"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(said), file=replies, flush=True)
    for line in sys.stdin:
        of_weights = line.strip().endswith("all gradients")
        for model in models:
            model.requires_grad_(of_weights)
            model.zero_grad(set_to_none=True)
        began, of_cpu = time.perf_counter(), time.process_time()
        found = [effects(model, *given) for model in models]
        took = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - of_cpu,
        }
        if line.strip() == "effects":
            kept = {kind: torch.stack([one[kind] for one in found]).numpy() for kind in found[0]}
            np.savez(folder / "effects.npz", **kept)
        print(json.dumps(took), file=replies, flush=True)


def effects(model: HookedTransformer, clean: Any, corrupted: Any, answers: torch.Tensor) -> Tensors:
    """Return the mean effects of one checkpoint over the prompts, by kind of cells."""
    blocks = range(model.cfg.n_layers)
    states = [f"blocks.{block}.hook_resid_pre" for block in blocks]
    states.append(f"blocks.{blocks[-1]}.hook_resid_post")
    inside = [f"blocks.{n}.{name}" for n in blocks for name in (*PARTS, *PROJECTIONS, NEURONS)]
    sites = [*states, *inside]
    donor: Tensors = {}
    base: Tensors = {}
    gradients: Tensors = {}
    with torch.no_grad(), model.hooks(fwd_hooks=keep(donor, sites)):
        model(corrupted)
    forward = [("hook_embed", needs_gradient), *keep(base, sites)]
    with model.hooks(fwd_hooks=forward, bwd_hooks=keep(gradients, sites)):
        logits = model(clean)[torch.arange(len(clean)), -1]
        picked = logits.gather(1, answers.T)
        (picked[:, 0] - picked[:, 1]).sum().backward()

    def product(site: str) -> torch.Tensor:
        """Return the mean over prompts of the sum over the last axis, [pos, *head]."""
        return ((donor[site] - base[site]) * gradients[site]).sum(-1).mean(0)

    def by_head(site: str) -> torch.Tensor:
        return product(site).T

    found: dict[str, list[torch.Tensor]] = {"parts": [], "projections": [], "neurons": []}
    for block in (f"blocks.{block}." for block in blocks):
        whole = torch.stack([product(f"{block}{name}") for name in PARTS[:2]])
        found["parts"].append(torch.cat([whole, by_head(f"{block}{PARTS[2]}")]))
        of_heads = [by_head(f"{block}{name}") for name in PROJECTIONS]
        found["projections"].append(torch.stack(of_heads))
        site = f"{block}{NEURONS}"
        found["neurons"].append(((donor[site] - base[site]) * gradients[site]).mean(0).T)
    return {
        "states": torch.stack([product(site) for site in states]),
        **{kind: torch.stack(of_blocks) for kind, of_blocks in found.items()},
    }


def keep(found: Tensors, sites: list[str]) -> list[tuple[str, Any]]:
    """Return hooks that store the values at the sites."""
    return [(site, partial(store, found, site)) for site in sites]


def store(found: Tensors, site: str, value: torch.Tensor, hook: Any) -> None:
    """Store a value or a gradient, without a copy."""
    found[site] = value.detach()


def needs_gradient(value: torch.Tensor, hook: Any) -> torch.Tensor:
    """Let the backward pass reach the embeddings also if all parameters are frozen."""
    return value if value.requires_grad else value.requires_grad_()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
