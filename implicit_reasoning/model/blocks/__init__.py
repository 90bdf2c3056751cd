"""Blocks: what a layer of the model computes, and what the rest of the package must know of it."""
