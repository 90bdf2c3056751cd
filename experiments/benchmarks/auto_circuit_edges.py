"""Edge scores and ACDC by AutoCircuit for circuits.py, in its own Python environment.

    python auto_circuit_edges.py FOLDER THREADS

FOLDER contains the model (`ours.safetensors`, `ours.json`), `inputs.npz` (clean, corrupt, answers),
`edges.json` (AutoCircuit's names of the edges, in ACDC's order) and `settings.json` (tau, samples).
An input line is the name of a job. The process does the job and writes its seconds as one line of
JSON. If the line starts with "keep ", the process also counts FLOPs and writes `scores.npy` to
FOLDER, in the order of `edges.json`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.tensor_ops import batch_avg_answer_diff
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens_grid import load


def main(folder: Path, threads: int) -> None:
    """Answer every line of standard input."""
    # The package's own output must not mix with the answers.
    replies, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    peer = AutoCircuit(folder)
    said = {
        "auto_circuit": version("auto-circuit"),
        "transformer_lens": version("transformer_lens"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(said), file=replies, flush=True)
    for line in sys.stdin:
        job = line.strip().removeprefix("keep ")
        answer: dict[str, float] = {}
        if line.startswith("keep "):
            with FlopCounterMode(display=False) as counter:
                np.save(folder / "scores.npy", peer.array(peer.do(job)))
            answer["flops"] = counter.get_total_flops()
        began = time.perf_counter()
        peer.do(job)
        answer["seconds"] = time.perf_counter() - began
        print(json.dumps(answer), file=replies, flush=True)


class AutoCircuit:
    """A model with a mask for every edge, and the jobs."""

    def __init__(self, folder: Path):
        model = load(folder)
        # As in the package's own experiments, parameters are frozen.
        model.requires_grad_(False)
        model.set_use_attn_result(True)
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        self.model = patchable_model(
            model, factorized=True, slice_output="last_seq", seq_len=None, separate_qkv=True
        )
        by_name = {edge.name: edge for edge in self.model.edges}
        names = json.loads((folder / "edges.json").read_text())
        assert by_name.keys() == set(names)
        # ACDC visits the edges by layer, and those of a layer in this order.
        self.edges = self.model.edges = [by_name[name] for name in names]
        inputs = np.load(folder / "inputs.npz")
        given = [torch.as_tensor(inputs[name]).long() for name in ("clean", "corrupt", "answers")]
        clean, corrupt, answers = given
        data = PromptDataset(clean, corrupt, *answers[..., None])
        self.loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=len(clean))
        self.settings = json.loads((folder / "settings.json").read_text())

    def do(self, job: str) -> dict[str, torch.Tensor]:
        """Return the scores of all edges. ACDC's are whether an edge is part of the circuit."""
        if job == "exact":
            return self.exact()
        if job == "ACDC":
            exponent = round(math.log10(self.settings["tau"]))
            found = acdc_prune_scores(
                self.model, self.loader, None, tao_exps=[exponent], tao_bases=[1]
            )
            return {name: torch.isinf(values) for name, values in found.items()}
        assert job == "integrated mask gradients", job
        return mask_gradient_prune_scores(
            self.model,
            self.loader,
            None,
            grad_function="logit",
            answer_function="avg_diff",
            integrated_grad_samples=self.settings["samples"],
        )

    @torch.inference_mode()
    def exact(self) -> dict[str, torch.Tensor]:
        """Patch each edge alone. Every run starts at the block of the receiver, as in ACDC."""
        model, batch = self.model, next(iter(self.loader))
        own, other = (src_ablations(model, tokens) for tokens in (batch.clean, batch.corrupt))
        logits, cache = model.run_with_cache(
            batch.clean, names_filter=lambda name: name.endswith("hook_resid_pre")
        )
        clean = batch_avg_answer_diff(logits[model.out_slice], batch)
        found = model.new_prune_scores()
        set_all_masks(model, val=0.0)
        with patch_mode(model, other, curr_src_outs=own):
            for edge in self.edges:
                mask, at = edge.patch_mask(model).data, edge.patch_idx
                block = int(edge.dest.module_name.split(".")[1])
                mask[at] = 1.0
                resid = cache[f"blocks.{block}.hook_resid_pre"]
                logits = model(resid, start_at_layer=block, tokens=batch.clean)[model.out_slice]
                found[edge.dest.module_name][at] = batch_avg_answer_diff(logits, batch) - clean
                mask[at] = 0.0
        return found

    def array(self, scores: dict[str, torch.Tensor]) -> np.ndarray:
        """Return the scores in the order of the edges."""
        return np.array([edge.prune_score(scores).item() for edge in self.edges])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
