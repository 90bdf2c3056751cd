"""Import and export dictionaries in the formats of SAELens, circuit-tracer and Gemma Scope.

saelens.py          imports and exports SAELens directories
saelens_fields.py   reads the configs of SAELens 3 to 6
circuit_tracer.py   imports and exports circuit-tracer's transcoders
gemma_scope.py      imports Gemma Scope's `params.npz`
checks.py           checks the names and shapes of arrays
"""

from implicit_reasoning.dictionaries.exchange.circuit_tracer import (
    load_cross_layer,
    load_transcoder_set,
    save_cross_layer,
    save_transcoder_set,
)
from implicit_reasoning.dictionaries.exchange.gemma_scope import load_gemma_scope
from implicit_reasoning.dictionaries.exchange.saelens import load_saelens, save_saelens

__all__ = [
    "load_cross_layer",
    "load_gemma_scope",
    "load_saelens",
    "load_transcoder_set",
    "save_cross_layer",
    "save_saelens",
    "save_transcoder_set",
]
