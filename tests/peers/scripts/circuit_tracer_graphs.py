"""circuit-tracer's attribution graphs of this package's model and transcoders.

The folder has `ours.safetensors` and `ours.json` (the model), `tokens.npy`, and a folder for each
set of transcoders. For every set, the script writes `<set>/graph_<row>.npz` and
`<set>/graph_<row>.json`, and checks that `<set>/ours_<row>.json` is a graph of its front end.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from circuit_tracer.utils.create_graph_files import create_nodes, create_used_nodes_and_edges
from our_file import model_of

CPU = torch.device("cpu")
HOOKS = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}


class Numbers:
    """A tokenizer whose texts are the numbers of tokens."""

    padding_side = "right"
    vocab_size = 37

    def decode(self, tokens, **_):
        """Return the numbers of some tokens."""
        return " ".join(map(str, np.atleast_1d(np.asarray(tokens)).tolist()))


def replacement_of(folder, base):
    """Return the replacement model with the transcoders of a folder."""
    options = {"scan": "ours", **HOOKS, "device": CPU, "dtype": torch.float32}
    if (folder / "W_enc_0.safetensors").exists():
        transcoders = load_clt(str(folder), **options)
    else:
        paths = {n: str(folder / f"layer_{n}.safetensors") for n in range(base.cfg.n_layers)}
        transcoders = load_transcoder_set(paths, **options)
    model = TransformerLensReplacementModel(base.cfg)
    model.load_state_dict(base.state_dict())
    model._configure_replacement_model(transcoders)
    model.zero_positions = slice(0, 0)  # our first position is a token like any other
    model.tokenizer = Numbers()
    model.ensure_tokenized = lambda prompt: prompt  # no token is added
    return model


folder = Path(sys.argv[1])
base = model_of(folder)
for named in sorted(path for path in folder.iterdir() if path.is_dir()):
    model = replacement_of(named, base)
    for row, tokens in enumerate(np.load(folder / "tokens.npy")):
        graph = attribute(torch.as_tensor(tokens, dtype=torch.long), model)
        pruned = prune_graph(graph)
        nodes = create_nodes(graph, pruned.node_mask, model.tokenizer, pruned.cumulative_scores)
        used, links = create_used_nodes_and_edges(graph, nodes, pruned.edge_mask)
        Model(**json.loads((named / f"ours_{row}.json").read_text()))  # our file is a valid one
        written = {"nodes": [node.model_dump() for node in used], "links": links}
        (named / f"graph_{row}.json").write_text(json.dumps(written))
        np.savez(
            named / f"graph_{row}.npz",
            adjacency=graph.adjacency_matrix.detach().numpy(),
            features=graph.active_features.numpy()[graph.selected_features.numpy()],
            activations=graph.activation_values.detach().numpy(),
            tokens=graph.logit_token_ids.numpy(),
            probabilities=graph.logit_probabilities.detach().numpy(),
            node=pruned.node_mask.numpy(),
            edge=pruned.edge_mask.numpy(),
            scores=np.array(compute_graph_scores(graph)),
        )
