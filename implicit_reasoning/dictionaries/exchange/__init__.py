"""Import and export of dictionaries in the formats of other tools.

saelens.py          SAELens directories; saelens_fields.py reads the configs of SAELens 3 to 6
circuit_tracer.py   circuit-tracer's sets of transcoders, and its cross-layer transcoders
gemma_scope.py      Gemma Scope's `params.npz`, import only
checks.py           checks of the names and shapes of arrays
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
