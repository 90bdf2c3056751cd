"""Blocks: what a layer of the model computes, and what the rest of the package must know of it.

base.py         the interface, with definitions that are right for any causal block
parameters.py   what each parameter is: shape, initialisation, decay, mesh axes
gpt2.py         attention and MLP, each behind a norm (attention.py, mlp.py, norm.py)
cells.py        many patched inputs of a block at once
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
"""Blocks that come with the package; others are found by import path."""


@functools.cache
def find_block(name: str) -> type[Block]:
    """The class of a `model.block`.

    Args:
      name: a key of `BLOCKS`, or `package.module:Class`, or `path/to/file.py:Class`. It is imported
        once in a process.

    Raises:
      InputError: there is no such name, module or class, or the class is not a complete `Block`.
    """
    found: type[Block] = imports.find(name, BLOCKS, "block", Block)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(f"model.block {name!r} does not define {missing}")
    return found


def require_gpt2(spec: Spec, what: str, error: type[InputError] = InputError) -> None:
    """Raise an error if a model has other blocks than GPT-2's.

    Args:
      spec: of the model.
      what: needs attention and MLP; the subject of the message.
      error: its type.
    """
    if find_block(spec.block) is not GPT2Block:
        raise error(
            f"{what} needs the attention and MLP of model.block 'gpt2'; this model has "
            f"{spec.block!r}"
        )
