"""TransformerLens's head detector and factored matrices, on arrays that this package computed.

For every folder under the given folder, the script reads `<case>/heads.npz` (tokens, attention
patterns [row, block, head, query, key], W_Q, W_K, W_V and W_O [block, head, ...]), and writes
`<case>/their_heads.npz`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformer_lens import FactoredMatrix, head_detector

try:
    from transformer_lens.utils import composition_scores
except ImportError:  # the fourth generation
    from transformer_lens.utilities import composition_scores

FORMS = {
    "mul": {"error_measure": "mul"},
    "abs": {"error_measure": "abs"},
    "excluded": {"error_measure": "mul", "exclude_bos": True, "exclude_current_token": True},
}
NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")


def detected(tokens, patterns):
    """Return `{name/form: [row, block, head]}` and `{name: [row, query, key]}`."""
    found, builders = {}, {}
    for name in NAMES:
        build = getattr(head_detector, f"get_{name}_detection_pattern")
        builders[name] = torch.stack([build(row[None]) for row in tokens])
        for form, options in FORMS.items():
            options = {"exclude_bos": False, "exclude_current_token": False} | options
            found[f"{name}/{form}"] = [
                [
                    [
                        head_detector.compute_head_attention_similarity_score(
                            pattern.clone(), detection_pattern=wanted, **options
                        )
                        for pattern in block
                    ]
                    for block in row
                ]
                for row, wanted in zip(patterns, builders[name], strict=True)
            ]
    return found | builders


@torch.no_grad()
def answer(case):
    with np.load(case / "heads.npz") as file:
        given = {name: torch.as_tensor(file[name]) for name in file}
    found = detected(given["tokens"].long(), given["patterns"])
    ov = FactoredMatrix(given["W_V"], given["W_O"])
    qk = FactoredMatrix(given["W_Q"], given["W_K"].transpose(-2, -1))
    for name, matrix in (("ov", ov), ("qk", qk)):
        found[f"{name}/norm"] = matrix.norm()
        found[f"{name}/values"] = matrix.S
        found[f"{name}/eigenvalues"] = matrix.eigenvalues
        found[f"{name}/corner"] = matrix.get_corner(2)
        found[f"{name}/even"] = matrix.make_even().AB
    for kind, right in (("query", qk), ("key", qk.T), ("value", ov)):
        found[f"composition/{kind}"] = composition_scores(ov, right)
    np.savez(case / "their_heads.npz", **{name: np.asarray(value) for name, value in found.items()})


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
