"""GPT2LMHeadModel: logits of this package's models, and models for it to read.

For every `<case>/ours` under the given folder, the script writes `<case>/logits.npy`. It then fills
a model of the same config at random and saves it as `<case>/theirs`, and as a PyTorch file in
`<case>/pickled`. Its logits are in `<case>/their_logits.npy`.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

ROOT = Path(__file__).parents[3]


def read_arrays(path):
    """Return this package's reader of weight files; PyTorch files need torch, but not JAX."""
    sys.path.insert(0, str(ROOT))
    source = ROOT / "implicit_reasoning" / "model" / "exchange" / "arrays.py"
    spec = importlib.util.spec_from_file_location("arrays", source)
    assert spec and spec.loader
    arrays = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arrays)
    return arrays.read_arrays(path)


@torch.no_grad()
def answer(case):
    tokens = torch.as_tensor(np.load(case / "tokens.npy"), dtype=torch.long)
    model, told = GPT2LMHeadModel.from_pretrained(case / "ours", output_loading_info=True)
    faults = {kind: found for kind, found in told.items() if found}
    assert not faults, faults
    np.save(case / "logits.npy", model.eval()(tokens).logits.numpy())

    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    model.save_pretrained(case / "theirs")
    np.save(case / "their_logits.npy", model(tokens).logits.numpy())

    (case / "pickled").mkdir()
    torch.save(model.state_dict(), case / "pickled" / "pytorch_model.bin")
    shutil.copy(case / "theirs" / "config.json", case / "pickled")
    # This package reads the file here and passes the arrays on in a format that needs no torch.
    np.savez(case / "pickled.npz", **read_arrays(case / "pickled" / "pytorch_model.bin"))


for folder in sorted(Path(sys.argv[1]).iterdir()):
    answer(folder)
