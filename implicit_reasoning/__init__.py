"""A laboratory for how transformers learn to reason in their heads; see README.md."""

__version__ = "0.1.0"
