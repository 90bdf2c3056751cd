"""JAX framework for training and analyzing transformers that reason implicitly; see README.md."""

__version__ = "0.1.0"
