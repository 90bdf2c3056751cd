"""TransformerLens's decompositions and logit attributions of this package's models.

For every `<case>/ours.safetensors` and `<case>/tokens.npy` under the given folder, the script
writes `<case>/stacks.npz`: `{name: stack}`, and `{name} labels` for the labels. Names that begin
with "folded" are those of the model whose norms are folded into the next weights. The peer is
TransformerLens 2 (HookedTransformer) or 4 (TransformerBridge).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROCESSING = {"center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}


def hooked_transformers(case) -> Any:
    """Return the model, and the model with folded norms, of TransformerLens 2."""
    from our_file import model_of
    from transformer_lens import HookedTransformer

    model = model_of(case)
    folded = HookedTransformer(model.cfg)
    folded.load_and_process_state_dict(model.state_dict(), fold_ln=True, **PROCESSING)
    return model, folded


def bridges(case) -> Any:
    """Return the model, and the model with folded norms, of TransformerLens 4."""
    from bridge_file import bridge_of

    made = []
    for fold in (False, True):
        model = bridge_of(case)
        if fold:
            model.enable_compatibility_mode(disable_warnings=True, fold_ln=True, **PROCESSING)
        else:
            model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        made.append(model)
    return made


@torch.no_grad()
def answer(case, models_of):
    tokens = torch.as_tensor(np.load(case / "tokens.npy"), dtype=torch.long)
    model, folded = models_of(case)
    cache, folded_cache = (each.run_with_cache(tokens)[1] for each in (model, folded))
    last = model.cfg.n_layers
    found = {
        "accumulated": cache.accumulated_resid(
            1, incl_mid=True, mlp_input=True, return_labels=True
        ),
        "lens": cache.accumulated_resid(apply_ln=True, return_labels=True),
        "decomposed": cache.decompose_resid(return_labels=True),
        "of MLPs": cache.decompose_resid(1, True, "mlp", return_labels=True),
        "heads": cache.stack_head_results(last, return_labels=True),
        "heads and rest": cache.stack_head_results(1, True, True, pos_slice=-1),
        "neurons": cache.stack_neuron_results(1, (1, 3), [5, 0], True, incl_remainder=True),
        "all": cache.get_full_resid_decomposition(1, mlp_input=True, return_labels=True),
        "unexpanded": cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True),
    }
    arrays = {}
    for name, (stack, labels) in found.items():
        arrays |= {name: stack.numpy(), f"{name} labels": np.array(labels)}
    # Norms of terms: the weight of the norm is not in them, unless it is folded.
    stack = cache.decompose_resid(1, mlp_input=True)
    arrays["norm without weight"] = cache.apply_ln_to_stack(stack, 1, mlp_input=True).numpy()
    # Attributions at the last position, as most users compute them, and at all positions.
    answer, other = tokens[:, 0], tokens[:, 1]
    stack = folded_cache.decompose_resid()
    pair = [answer, other]
    if models_of is hooked_transformers:  # it takes one token for each prompt at one position only
        pair = [of_prompt[:, None].expand(tokens.shape) for of_prompt in pair]
    arrays["folded, gap"] = folded_cache.logit_attrs(stack, *pair).numpy()
    arrays["folded, of positions"] = folded_cache.logit_attrs(stack, tokens).numpy()
    ending = folded_cache.get_full_resid_decomposition(pos_slice=-1)
    arrays["folded, last"] = folded_cache.logit_attrs(ending, answer, pos_slice=-1).numpy()
    terms, labels = folded_cache.get_full_resid_decomposition(
        expand_neurons=False, pos_slice=-1, return_labels=True
    )
    direct = folded_cache.logit_attrs(terms, answer, other, pos_slice=-1)
    arrays |= {"folded, direct": direct.numpy(), "folded, direct labels": np.array(labels)}
    arrays["folded, constant"] = (folded.b_U[answer] - folded.b_U[other]).numpy()
    heads = folded_cache.stack_head_results(-1, apply_ln=True, pos_slice=-1)
    arrays["folded, heads"] = (heads @ folded.W_U).numpy()
    arrays["OV"], arrays["QK"] = model.OV.AB.numpy(), model.QK.AB.numpy()
    np.savez(case / "stacks.npz", **arrays)


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder, bridges if sys.argv[2] == "transformer_lens_4" else hooked_transformers)
