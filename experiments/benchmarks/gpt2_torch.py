"""Training steps of HuggingFace's GPT-2 for train_step.py; runs in the HuggingFace environment.

    python gpt2_torch.py FOLDER THREADS

FOLDER contains the model (`config.json`, `model.safetensors`), `rows.npz` (tokens, position,
answer) and `settings.json`. The process reads lines from standard input. Each line is a number of
steps, and the answer is one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel


def main(folder: Path, threads: int) -> None:
    """Train for the number of steps in every line of standard input."""
    torch.set_num_threads(threads)
    settings = json.loads((folder / "settings.json").read_text())
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), settings["dropout"])
    model = GPT2LMHeadModel.from_pretrained(folder, **dropout).train()
    rows = np.load(folder / "rows.npz")
    tokens, position, answer = (torch.as_tensor(rows[name]).long() for name in rows.files)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["b1"], settings["b2"]),
        weight_decay=settings["weight_decay"],
        fused=True,  # the fastest option on a CPU
    )
    batch, place = settings["batch_size"], 0
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        losses, began = [], time.perf_counter()
        for _ in range(int(line)):
            here = (torch.arange(batch) + place) % len(tokens)
            place += batch
            optimizer.zero_grad()
            logits = model(input_ids=tokens[here], use_cache=False).logits
            logits = logits[torch.arange(batch), position[here]]
            loss = torch.nn.functional.cross_entropy(logits, answer[here])
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
            optimizer.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - began
        said = {"seconds": seconds, "loss": float(losses[0]), "grad_norm": float(norm)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
