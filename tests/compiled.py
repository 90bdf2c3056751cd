"""Functions that are compiled whole and return numpy arrays.

Without `jax.jit`, JAX compiles a program for every operation of a function, and again for every
shape. The instruments compile such functions whole too.
"""

from collections.abc import Callable
from typing import Any

import jax


def compiled(function: Callable[..., Any], *static: int) -> Callable[..., Any]:
    """Return the function as one program.

    Args:
      function: a function of pytrees of arrays.
      static: the positions of arguments that are no arrays, such as numbers of classes.
    """
    whole = jax.jit(function, static_argnums=static)
    return lambda *args: jax.device_get(whole(*args))
