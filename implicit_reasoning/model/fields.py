"""Fields of the configuration group `model`, with the bounds and choices that `Spec` checks.

The attribute `before` of a field is the implicit value in versions before the field existed. A
saved configuration without the field gets this value. `before` is also the default in `Spec`.
"""

from __future__ import annotations

from implicit_reasoning.field import Field

FIELDS: dict[str, Field] = {
    # Each block is traced separately, so more blocks take longer to trace and compile.
    "n_layers": Field(int, "number of blocks, each with its own parameters", 2, 1, 1_000),
    "n_loops": Field(int, "number of times that the blocks are applied", 1, 1, 1_000),
    "d_model": Field(int, "width of the residual stream", 256, 1, 2**20),
    "n_heads": Field(int, "number of heads in each block", 4, 1, 2**20),
    "d_mlp": Field(int, "hidden width of each MLP", 1024, 1, 2**20),
    "block": Field(
        str,
        "class of the blocks: 'gpt2', package.module:Class or file.py:Class",
        "gpt2",
        before="gpt2",
    ),
    "head_width": Field(
        int, "width of each head; 0 means d_model / n_heads", 0, 0, 2**20, before=0
    ),
    "act_fn": Field(
        str,
        "activation of the MLP: 'gelu_new' (GPT-2's tanh approximation) or 'relu'",
        "gelu_new",
        choices=("gelu_new", "relu"),
        before="gelu_new",
    ),
    "normalization": Field(
        str,
        "'LN' (layer norm before attention, MLP and unembedding) or 'none'",
        "LN",
        choices=("LN", "none"),
        before="LN",
    ),
    "tied": Field(bool, "whether the unembedding is the transposed embedding", False, before=False),
    "unembed_bias": Field(bool, "whether logits have a bias", False, before=False),
    "eps": Field(float, "constant that layer norms add to the variance", 1e-5, before=1e-5),
    "init_std": Field(
        float,
        "standard deviation of initial weights, before GPT-2's scaling by depth",
        0.02,
        before=0.02,
    ),
    "dropout": Field(float, "fraction of activations dropped in training", 0.0, 0, 0.99),
    "dtype": Field(
        str,
        "type of activations in training: 'float32' or 'bfloat16'",
        "float32",
        choices=("float32", "bfloat16"),
        before="float32",
    ),
    "precision": Field(
        str,
        "precision of matrix products in training: 'default', 'high' or 'highest'",
        "default",
        choices=("default", "high", "highest"),
        before="highest",
    ),
}
"""Fields by name, without the prefix `model.`."""
