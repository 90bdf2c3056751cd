"""Cross-query patching as published, for cross_query.py; runs in the environment of HuggingFace.

    python cross_query_torch.py FOLDER THREADS

FOLDER has the model (`config.json`, `model.safetensors`) and `pairs.npz` (source, target, expected:
tokens of the model). Then lines come in, and a line of JSON goes out for each: a number asks for so
many cells of (pair, layer, position), from where the last line left off; `logits N` for those of
the first N pairs, in `logits.npy` [pair, layer, pos, d_vocab].
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
    """Logits at the end of the target, if block `layer` wrote at `pos` what it did for the source.

    The source is run anew for every cell, as published; its state is taken where the target's is
    replaced, so that the last one is before the final norm, too (published: after it, by mistake).
    """
    block = model.transformer.h[layer]
    kept: list[torch.Tensor] = []

    def states_of(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    def keep(_: Any, inputs: Any, output: Any) -> None:
        kept.append(states_of(output)[:, pos].clone())

    def replace(_: Any, inputs: Any, output: Any) -> None:
        states_of(output)[:, pos] = kept[0]  # in place: there are no gradients

    for tokens, hook in ((pairs["source"], keep), (pairs["target"], replace)):
        handle = block.register_forward_hook(hook)
        # Without the cache of keys and values that it would fill for a next token.
        logits = model(input_ids=tokens[pair][None], use_cache=False).logits
        handle.remove()
    return logits[0, -1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
