"""Attribution graphs by circuit-tracer for graphs.py, in its own Python environment.

    python circuit_tracer_attribution.py FOLDER THREADS

FOLDER contains the model (`ours.safetensors`, `ours.json`), the transcoders (`transcoders/`) and
`inputs.npz` (tokens). An input line is "time" or "keep" and a batch size. The process makes the
graph of every prompt, and writes its seconds as one line of JSON. With "keep", it also counts
FLOPs, and writes the graph of the first prompt as `graph.npz` to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens_grid import load

OPTIONS = {
    "scan": "ours",
    "feature_input_hook": "ln2.hook_normalized",
    "feature_output_hook": "hook_mlp_out",
    "device": torch.device("cpu"),
    "dtype": torch.float32,
}


def main(folder: Path, threads: int) -> None:
    """Answer every line of standard input."""
    # The package's own output must not mix with the answers.
    replies, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    model = replacement_of(folder)
    prompts = torch.as_tensor(np.load(folder / "inputs.npz")["tokens"]).long()
    said = {
        "circuit_tracer": version("circuit-tracer"),
        "transformer_lens": version("transformer_lens"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(said), file=replies, flush=True)

    def graphs(batch_size: int) -> Any:
        made = [attribute(prompt, model, batch_size=batch_size) for prompt in prompts]
        return made[0]

    for line in sys.stdin:
        what, batch_size = line.split()
        answer: dict[str, float] = {}
        if what == "keep":
            with FlopCounterMode(display=False) as counter:
                keep(folder, graphs(int(batch_size)))
            answer["flops"] = counter.get_total_flops()
        began = time.perf_counter()
        graphs(int(batch_size))
        answer["seconds"] = time.perf_counter() - began
        print(json.dumps(answer), file=replies, flush=True)


def replacement_of(folder: Path) -> Any:
    """Return the model with the transcoders."""
    base = load(folder)
    paths = {
        layer: str(folder / "transcoders" / f"layer_{layer}.safetensors")
        for layer in range(base.cfg.n_layers)
    }
    model = TransformerLensReplacementModel(base.cfg)
    model.load_state_dict(base.state_dict())
    model._configure_replacement_model(load_transcoder_set(paths, **OPTIONS))
    model.zero_positions = slice(0, 0)  # our first position is a token like any other
    model.tokenizer = _Numbers()
    model.ensure_tokenized = lambda prompt: prompt  # no token is added
    return model


class _Numbers:
    """A tokenizer whose texts are the numbers of tokens."""

    padding_side = "right"
    vocab_size = 1 << 30

    def decode(self, tokens: Any, **_: Any) -> str:
        """Return the numbers of some tokens."""
        return " ".join(map(str, np.atleast_1d(np.asarray(tokens)).tolist()))


def keep(folder: Path, graph: Any) -> None:
    """Write the parts of a graph that both sides must agree on."""
    np.savez(
        folder / "graph.npz",
        adjacency=graph.adjacency_matrix.detach().numpy(),
        features=graph.active_features.numpy()[graph.selected_features.numpy()],
        tokens=graph.logit_token_ids.numpy(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
