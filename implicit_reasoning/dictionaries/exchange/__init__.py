"""Dictionaries from and for other tools.

saelens.py          SAELens's directories, with saelens_fields.py for the configs of its versions
circuit_tracer.py   circuit-tracer's sets of transcoders and cross-layer transcoders
gemma_scope.py      Gemma Scope's `params.npz`, read only
checks.py           which arrays a dictionary has
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
