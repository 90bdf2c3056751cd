"""Import and export of weights in the formats of TransformerLens and of HuggingFace's GPT-2.

Reading a file never executes code from the file. Both formats lack loops, so the blocks of a looped
model are written once for each pass.
"""

from implicit_reasoning.model.blocks.parameters import unflatten_params
from implicit_reasoning.model.exchange.flat import flatten_params, unroll
from implicit_reasoning.model.exchange.gpt2 import load_gpt2, save_gpt2
from implicit_reasoning.model.exchange.hooked import load_weights, save_weights

__all__ = [
    "flatten_params",
    "load_gpt2",
    "load_weights",
    "save_gpt2",
    "save_weights",
    "unflatten_params",
    "unroll",
]
