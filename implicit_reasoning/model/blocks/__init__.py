"""Blocks: what one layer of the model computes, and the interface that the package uses.

base.py         the interface, with default methods that are correct for any causal block
parameters.py   description of each parameter: shape, initialization, weight decay, mesh axes
gpt2.py         GPT-2's block: attention and MLP, each after a norm (attention.py, mlp.py, norm.py)
cells.py        data structures that run many patched inputs through a block at once
"""

from __future__ import annotations

import functools
import inspect

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks.base import Block
from implicit_reasoning.model.blocks.gpt2 import GPT2Block
from implicit_reasoning.model.blocks.parameters import Parameter
from implicit_reasoning.model.spec import Spec

__all__ = ["BLOCKS", "Block", "GPT2Block", "Parameter", "find_block", "require_gpt2"]

BLOCKS: dict[str, type[Block]] = {"gpt2": GPT2Block}
"""Blocks that come with the package, by name. Other blocks are found by import path."""


@functools.cache
def find_block(name: str) -> type[Block]:
    """Return the class that `model.block` names.

    Args:
      name: a key of `BLOCKS`, or `package.module:Class`, or `path/to/file.py:Class`. A module is
        imported once per process.

    Raises:
      InputError: the name, module or class does not exist, or the class does not define all
        abstract methods of `Block`.
    """
    found: type[Block] = imports.find(name, BLOCKS, "block", Block)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(f"model.block {name!r} does not define {missing}")
    return found


def require_gpt2(spec: Spec, what: str, error: type[InputError] = InputError) -> None:
    """Raise an error if a model does not use GPT-2's blocks.

    Args:
      spec: the spec of the model.
      what: the operation that needs attention and MLP; the subject of the error message.
      error: the type of the error.
    """
    if find_block(spec.block) is not GPT2Block:
        raise error(
            f"{what} needs the attention and MLP of model.block 'gpt2'; this model has "
            f"{spec.block!r}"
        )
