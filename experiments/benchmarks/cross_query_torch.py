"""Published cross-query patching for cross_query.py; runs in the HuggingFace environment.

    python cross_query_torch.py FOLDER THREADS

FOLDER contains the model (`config.json`, `model.safetensors`) and `pairs.npz` (source, target,
expected: token ids of the model). The process reads commands line by line and answers each with one
line of JSON. A number N computes the next N cells (pair, layer, position). `logits N` writes the
logits of all cells of the first N pairs to `logits.npy`, [pair, layer, pos, d_vocab].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GPT2LMHeadModel


def main(folder: Path, threads: int) -> None:
    """Answer every line of standard input."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    pairs = {name: torch.as_tensor(a).long() for name, a in np.load(folder / "pairs.npz").items()}
    sizes = len(pairs["source"]), len(model.transformer.h), pairs["source"].shape[1]
    cells = [(pair, layer, pos) for pair, layer, pos in np.ndindex(*sizes)]
    said = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(said), flush=True)
    done = 0
    for line in sys.stdin:
        word, _, count = line.strip().rpartition(" ")
        if word:
            here = [cell for cell in cells if cell[0] < int(count)]
            found = [patched(model, pairs, *cell) for cell in here]
            logits = torch.stack(found).reshape(int(count), *sizes[1:], -1)
            np.save(folder / "logits.npy", logits.numpy())
            print(json.dumps({"cells": len(here)}), flush=True)
            continue
        began, hits = time.perf_counter(), 0
        for _ in range(int(count)):
            cell = cells[done % len(cells)]
            hits += int(patched(model, pairs, *cell).argmax() == pairs["expected"][cell[0]])
            done += 1
        said = {"seconds": time.perf_counter() - began, "hits": hits}
        print(json.dumps(said), flush=True)


def patched(
    model: GPT2LMHeadModel, pairs: dict[str, torch.Tensor], pair: int, layer: int, pos: int
) -> torch.Tensor:
    """Return the target's last logits with the state after block `layer` from the source.

    The state is patched at `pos`. As published, the source is recomputed for every cell. The state
    is read at the site at which it is replaced. For the last block, this site is before the final
    norm. The published code reads the state of the last block after the final norm, by mistake.
    """
    block = model.transformer.h[layer]
    kept: list[torch.Tensor] = []

    def states_of(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    def keep(_: Any, inputs: Any, output: Any) -> None:
        kept.append(states_of(output)[:, pos].clone())

    def replace(_: Any, inputs: Any, output: Any) -> None:
        # The change is in place, which is possible because gradients are disabled.
        states_of(output)[:, pos] = kept[0]

    for tokens, hook in ((pairs["source"], keep), (pairs["target"], replace)):
        handle = block.register_forward_hook(hook)
        # Without the key-value cache, which would only help to generate further tokens.
        logits = model(input_ids=tokens[pair][None], use_cache=False).logits
        handle.remove()
    return logits[0, -1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
