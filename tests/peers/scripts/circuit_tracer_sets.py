"""circuit-tracer's outputs for this package's folders: transcoders, or a cross-layer one."""

import sys
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from circuit_tracer.utils.hf_utils import resolve_transcoder_paths  # noqa: F401

CPU = torch.device("cpu")
HOOKS = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}

for folder in sorted(Path(sys.argv[1]).iterdir()):
    x = torch.tensor(np.load(folder / "x.npy"))  # [layer, batch, d_model]
    with torch.no_grad():
        if (folder / "ours" / "W_enc_0.safetensors").exists():
            clt = load_clt(
                str(folder / "ours"),
                scan="ours",
                **HOOKS,
                device=CPU,
                dtype=torch.float32,
            )
            acts = clt.encode(x)
            out = clt.decode(acts)
        else:
            paths = {n: str(folder / "ours" / f"layer_{n}.safetensors") for n in range(len(x))}
            found = load_transcoder_set(
                paths, scan="ours", **HOOKS, device=CPU, dtype=torch.float32
            )
            acts = torch.stack([found[n].encode(x[n]) for n in range(len(x))])
            out = torch.stack([found[n].decode(acts[n], x[n]) for n in range(len(x))])
    np.save(folder / "acts.npy", acts.numpy())
    np.save(folder / "out.npy", out.numpy())
