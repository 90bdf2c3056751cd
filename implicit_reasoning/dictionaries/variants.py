"""The old name of the module `activations`, for user code that imports the old name."""

from implicit_reasoning import renames
from implicit_reasoning.dictionaries.activations import (
    ACTIVATIONS as VARIANTS,
)
from implicit_reasoning.dictionaries.activations import (
    ActivationFn as Variant,
)
from implicit_reasoning.dictionaries.activations import (
    BatchTopK,
    Encoded,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
)
from implicit_reasoning.dictionaries.activations import (
    ForwardPass as Pass,
)

__all__ = [
    "VARIANTS",
    "BatchTopK",
    "Encoded",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "Pass",
    "ReLU",
    "TopK",
    "Variant",
]

renames.note("module", __name__, __name__.replace("variants", "activations"))
