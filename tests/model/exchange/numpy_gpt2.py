"""GPT-2 in float64 numpy, with HuggingFace's names and config; shares no code with the package."""

import numpy as np

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def gpt2(state, config, tokens):
    """Return logits [row, pos, vocab], computed row by row and position by position."""
    state = {name: np.asarray(array, np.float64) for name, array in state.items()}
    head = state["transformer.wte.weight"]
    if not config["tie_word_embeddings"]:
        head = state["lm_head.weight"]
    normed = not config.get("no_ln", False)

    def norm(x, name):
        if not normed:
            return x
        x = (x - x.mean()) / np.sqrt(x.var() + config["layer_norm_epsilon"])
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def attend(inputs, name, layer):
        width = len(inputs[0])
        size = width // config["n_head"]
        scale = np.sqrt(size) if config.get("scale_attn_weights", True) else 1.0
        scale *= layer + 1 if config.get("scale_attn_by_inverse_layer_idx") else 1
        qkv = [linear(x, f"{name}.c_attn") for x in inputs]
        mixed = np.zeros((len(inputs), width))
        for query in range(len(inputs)):
            for start in range(0, width, size):
                q = qkv[query][start : start + size]
                keys = [row[width + start :][:size] for row in qkv[: query + 1]]
                values = [row[2 * width + start :][:size] for row in qkv[: query + 1]]
                weights = np.exp([q @ key / scale for key in keys])
                mixed[query, start : start + size] = weights / weights.sum() @ np.array(values)
        return [linear(row, f"{name}.c_proj") for row in mixed]

    def row_logits(row):
        x = [state["transformer.wte.weight"][t] for t in row]
        x = [a + b for a, b in zip(x, state["transformer.wpe.weight"], strict=False)]
        for _ in range(2 if config.get("add_recurrence") else 1):
            for layer in range(config["n_layer"]):
                block = f"transformer.h.{layer}"
                attended = attend([norm(a, f"{block}.ln_1") for a in x], f"{block}.attn", layer)
                x = [a + b for a, b in zip(x, attended, strict=True)]
                hidden = [linear(norm(a, f"{block}.ln_2"), f"{block}.mlp.c_fc") for a in x]
                hidden = [ACTIVATIONS[config["activation_function"]](h) for h in hidden]
                x = [a + linear(h, f"{block}.mlp.c_proj") for a, h in zip(x, hidden, strict=True)]
        return [norm(a, "transformer.ln_f") @ head.T for a in x]

    return np.array([row_logits(row) for row in tokens])
