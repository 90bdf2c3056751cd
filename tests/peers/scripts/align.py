"""Alignment search by pyvene, on this package's model as HuggingFace's GPT-2, with its pairs.

The given folder has the model in `ours`, `pairs.npz` (tokens of pairs for learning, with expected
answers, and of pairs for scoring), `settings.json`, and a subspace of this package in `ours.npy`.
The script writes `<folder>/logits.npz`: `[start, pair, d_vocab]` at the last position, for every
pair for scoring, with the subspace `learnt`, with its `random` start, and with `ours`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyvene
import torch
from transformers import GPT2LMHeadModel

folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
with np.load(folder / "pairs.npz") as file:
    pairs = {name: torch.as_tensor(file[name], dtype=torch.long) for name in file}


def intervenable():
    """Return a model with one subspace at the output of a block; its weights are frozen."""
    # pyvene needs an attention that returns its pattern; the values are the same.
    gpt2 = GPT2LMHeadModel.from_pretrained(folder / "ours", attn_implementation="eager")
    site = pyvene.RepresentationConfig(
        settings["block"], "block_output", "pos", 1, low_rank_dimension=settings["rank"]
    )
    config = pyvene.IntervenableConfig([site], pyvene.LowRankRotatedSpaceIntervention)
    model = pyvene.IntervenableModel(config, gpt2.eval())
    model.disable_model_gradients()
    return model


def patched(model, base, source):
    """Return logits at the last position of `base`, with its subspace taken from `source`."""
    where = {"sources->base": settings["pos"]}
    _, outputs = model({"input_ids": base}, [{"input_ids": source}], where)
    return outputs.logits[:, -1]


def learn(model):
    """Minimize the mean of -log p(expected answer) by Adam; the rate decays to 0 in the second
    half.
    """
    steps = settings["steps"]
    optimizer = torch.optim.Adam(model.get_trainable_parameters(), lr=settings["learning_rate"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 2 * (1 - step / steps))
    )
    for _ in range(steps):
        rows = torch.randint(len(pairs["expected"]), (settings["batch"],))
        logits = patched(model, pairs["base"][rows], pairs["source"][rows])
        loss = torch.nn.functional.cross_entropy(logits, pairs["expected"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def scored(model):
    return patched(model, pairs["held_out_base"], pairs["held_out_source"]).numpy()


logits: dict[str, Any] = {"random": [], "learnt": []}
for number in range(settings["starts"]):
    torch.manual_seed(number)
    model = intervenable()
    logits["random"].append(scored(model))
    learn(model)
    logits["learnt"].append(scored(model))
model = intervenable()
(intervention,) = model.interventions.values()
with torch.no_grad():
    intervention.rotate_layer.weight = torch.as_tensor(np.load(folder / "ours.npy"))
logits["ours"] = [scored(model)]
stacked: dict[str, Any] = {name: np.stack(found) for name, found in logits.items()}
np.savez(folder / "logits.npz", **stacked)
