"""Attribution patching with TransformerLens's hooks and backward pass, and captum's attributions.

For every `<case>/ours.safetensors` under the given folder, the script reads `tokens.npy`,
`others.npy`, `answers.npy` [2, example], `sites.json` and `nodes.json` beside it, and writes:

- `<case>/attributions.npz`: for each site of `sites.json`, the value in the run of `others` minus
  that in the run of `tokens`, times the gradient in the run of `tokens`. The metric is the logit of
  the first answer minus that of the second, at the last position.
- `<case>/integrated.npz`, if captum is installed: captum's `LayerIntegratedGradients` of each site
  of `nodes.json`, with this number of nodes. One site moves on a line from `tokens` to `others`,
  and all other inputs are those of `tokens`.

The peer is TransformerLens 2 (HookedTransformer) or 4 (TransformerBridge).
"""

import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch


def loaded(case, peer):
    """Load `<case>/ours.safetensors`."""
    if peer == "transformer_lens_4":
        from bridge_file import bridge_of

        return bridge_of(case)
    from our_file import model_of

    model = model_of(case)
    model.set_use_attn_result(True)
    return model


def metric_of(logits, answer, other):
    rows = torch.arange(len(logits))
    return logits[rows, -1, answer] - logits[rows, -1, other]


def attributions(model, peer, tokens, others, answers, sites):
    """Return donor minus base, times the gradient at the base, for each site."""
    base, donor, gradients = {}, {}, {}

    def keep(found):
        return [(site, partial(store, found, site)) for site in sites]

    def store(found, site, value, hook):
        found[site] = value.detach().clone()

    with torch.no_grad(), model.hooks(fwd_hooks=keep(donor)):
        model(others)
    with model.hooks(fwd_hooks=keep(base), bwd_hooks=keep(gradients)):
        metric_of(model(tokens), *answers).sum().backward()
    for site in sites if peer == "transformer_lens_4" else ():
        if site.endswith("hook_resid_mid"):
            # This site is on the path through the MLP only. The other path goes to the sum.
            gradients[site] += gradients[site.replace("mid", "post")]
    return {site: ((donor[site] - base[site]) * gradients[site]).numpy() for site in sites}


def integrated(model, tokens, others, answers, nodes):
    """Return captum's integrated gradients of each site.

    In captum, the line ends at the inputs, and all values that the site does not determine are
    those of the inputs. So the inputs are `tokens`, and the sign is reversed.
    """
    from captum.attr import LayerIntegratedGradients

    def run(tokens, *answers):
        return metric_of(model(tokens), *answers)

    found = {}
    for site, count in nodes.items():
        method = LayerIntegratedGradients(run, model.get_submodule(site))
        moved = method.attribute(
            tokens,
            baselines=others,
            additional_forward_args=tuple(answers),
            n_steps=count,
            method="gausslegendre",
        )
        found[site] = -moved.detach().numpy()
    return found


def answer(case, peer):
    sites, nodes = (json.loads((case / f"{name}.json").read_text()) for name in ("sites", "nodes"))
    model = loaded(case, peer)
    tokens, others, answers = (
        torch.as_tensor(np.load(case / f"{name}.npy"), dtype=torch.long)
        for name in ("tokens", "others", "answers")
    )
    found = attributions(model, peer, tokens, others, answers, sites)
    np.savez(case / "attributions.npz", **found)
    if find_spec("captum"):
        found = integrated(model, tokens, others, answers, nodes)
        np.savez(case / "integrated.npz", **found)


folder, peer = Path(sys.argv[1]), sys.argv[2]
for case in sorted(path for path in folder.iterdir() if path.is_dir()):
    answer(case, peer)
