"""A JAX framework to train transformers that reason implicitly, and to analyze them."""

from implicit_reasoning.runtime.xla_flags import switch_off_ynnpack

__version__ = "0.1.0"

switch_off_ynnpack()
