"""A JAX framework to train transformers that reason implicitly, and to analyze them."""

__version__ = "0.1.0"
