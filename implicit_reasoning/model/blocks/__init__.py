"""Blocks: the computation of one layer of a model. `Block` is the interface of all blocks.

base.py         the interface, with default methods that are correct for any causal block
parameters.py   the description of a parameter: shape, initialization, weight decay, mesh axes
gpt2.py         GPT-2's block: attention and MLP, each after a norm (attention.py, mlp.py, norm.py)
cells.py        data structures for running many patched inputs through a block at once
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
"""Block classes that come with the package, by name. All other blocks are found by import path."""


@functools.cache
def find_block(name: str) -> type[Block]:
    """Return the block class for a value of the configuration field `model.block`.

    Args:
      name: a key of `BLOCKS`, or `package.module:Class`, or `path/to/file.py:Class`. A module is
        imported only once per process.

    Raises:
      InputError: the name, module or class does not exist, or the class does not define all
        abstract methods of `Block`.
    """
    found: type[Block] = imports.find(name, BLOCKS, "block", Block)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(
            f"model.block {name!r} does not define {missing}, which every Block must define"
        )
    return found


def require_gpt2(spec: Spec, what: str, error: type[InputError] = InputError) -> None:
    """Raise an error if a model does not use GPT-2's blocks.

    Args:
      spec: the spec of the model.
      what: the operation that needs GPT-2's attention and MLP. The error message begins with this
        text.
      error: the type of the error to raise.
    """
    if find_block(spec.block) is not GPT2Block:
        raise error(
            f"{what} needs the attention and MLP of model.block 'gpt2'; the model.block of this "
            f"model is {spec.block!r}"
        )
