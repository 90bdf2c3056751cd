"""Edge scores and circuits of AutoCircuit, on TransformerLens 2's model.

For every `<case>/ours.safetensors` under the given folder, the script reads beside it:

- `clean.npy`, `corrupt.npy` [example, pos] and `answers.npy` [2, example]. The metric is the logit
  of the first answer minus that of the second, at the last position.
- `edges.json`: AutoCircuit's names of all edges.
- `orders.npy` [order, edge]: the orders in which ACDC visits the edges.
- `taus.json`: `bases` and `exponents`, whose products `base * 10**exponent` are ACDC's thresholds.

It writes `<case>/scores.npz`. Edges are patched at all positions together. The arrays are in the
order of `edges.json`:

- `exact`: the change of the mean metric if the edge alone is patched.
- `EAP`: `edge_attribution_patching_prune_scores`.
- `mask gradients at 0`: `mask_gradient_prune_scores` with `mask_val=0`.
- `integrated mask gradients`: `mask_gradient_prune_scores` with `integrated_grad_samples=5`.
- `ACDC` [order, edge]: `acdc_prune_scores`, the smallest threshold at which the edge is patched, or
  inf.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.edge_attribution_patching import (
    edge_attribution_patching_prune_scores,
)
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from auto_circuit.utils.tensor_ops import batch_avg_answer_diff
from our_file import model_of, tokens_in

OF_LOGITS = {"grad_function": "logit", "answer_function": "avg_diff"}


def patchable(case):
    """Return the model of a case with a mask for every edge, all positions together."""
    model = model_of(case)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    return patchable_model(
        model, factorized=True, slice_output="last_seq", seq_len=None, separate_qkv=True
    )


def loader_of(case):
    """Return a data loader with all prompts in one batch."""
    clean, corrupt = (tokens_in(case / f"{name}.npy") for name in ("clean", "corrupt"))
    answers, wrong = tokens_in(case / "answers.npy")[..., None]
    data = PromptDataset(clean, corrupt, answers, wrong)
    return PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=len(clean))


def exact_scores(model, batch, edges):
    """Return the change of the mean metric if each edge alone is patched."""

    def metric(patched):
        with patch_mode(model, other, edges=patched), torch.inference_mode():
            return batch_avg_answer_diff(model(batch.clean)[model.out_slice], batch).item()

    other = src_ablations(model, batch.corrupt)
    clean = metric([])
    return [metric([edge]) - clean for edge in edges]


def answer(case):
    model, loader = patchable(case), loader_of(case)
    names = json.loads((case / "edges.json").read_text())
    taus = json.loads((case / "taus.json").read_text())
    by_name = {edge.name: edge for edge in model.edges}
    assert by_name.keys() == set(names)
    edges = [by_name[name] for name in names]

    def array(scores):
        return np.array([edge.prune_score(scores).item() for edge in edges])

    found = {"exact": np.array(exact_scores(model, next(iter(loader)), edges))}
    for name, how in {
        "mask gradients at 0": {"mask_val": 0.0},
        "integrated mask gradients": {"integrated_grad_samples": 5},
    }.items():
        found[name] = array(mask_gradient_prune_scores(model, loader, None, **OF_LOGITS, **how))
    circuits = []
    for order in np.load(case / "orders.npy"):
        # AutoCircuit visits the edges by layer, and those of a layer in the order of this list.
        model.edges = [edges[number] for number in order]
        scores = acdc_prune_scores(
            model, loader, None, tao_exps=taus["exponents"], tao_bases=taus["bases"]
        )
        circuits.append(array(scores))
    # This one is last, because it changes whether parameters have gradients.
    found["EAP"] = array(edge_attribution_patching_prune_scores(model, loader, None))
    np.savez(case / "scores.npz", ACDC=np.stack(circuits), **found)


for case in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    answer(case)
