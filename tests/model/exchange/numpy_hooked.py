"""HookedTransformer in float64 numpy, with its names and config; shares no code with the package.

It supports the options that change how attention scores are scaled.
"""

import numpy as np

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def hooked(state, config, tokens):
    """Return logits [row, pos, vocab] of an untied model with layer norms."""
    state = {name: np.asarray(array, np.float64) for name, array in state.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["eps"])
        return x * state[f"{name}.w"] + state[f"{name}.b"]

    def divisor(layer):
        scale = config.get("attn_scale", -1.0)
        scale = np.sqrt(config["d_head"]) if scale == -1.0 else scale
        scale = scale if config.get("use_attn_scale", True) else 1.0
        return scale * (layer + 1 if config.get("scale_attn_by_inverse_layer_idx") else 1)

    def attend(x, layer):
        at, n = f"blocks.{layer}.attn.", len(x)
        out = np.tile(state[f"{at}b_O"], (n, 1))
        for head in range(config["n_heads"]):
            q, k, v = (x @ state[f"{at}W_{c}"][head] + state[f"{at}b_{c}"][head] for c in "QKV")
            scores = np.where(np.tri(n, dtype=bool), q @ k.T / divisor(layer), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            pattern = weights / weights.sum(-1, keepdims=True)
            out += pattern @ v @ state[f"{at}W_O"][head]
        return out

    def row_logits(row):
        x = state["embed.W_E"][row] + state["pos_embed.W_pos"][: len(row)]
        for layer in range(config["n_layers"]):
            block = f"blocks.{layer}."
            x = x + attend(norm(x, f"{block}ln1"), layer)
            hidden = norm(x, f"{block}ln2") @ state[f"{block}mlp.W_in"] + state[f"{block}mlp.b_in"]
            hidden = ACTIVATIONS[config["act_fn"]](hidden)
            x = x + hidden @ state[f"{block}mlp.W_out"] + state[f"{block}mlp.b_out"]
        return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]

    return np.array([row_logits(row) for row in np.asarray(tokens)])
