"""The flags of XLA with which this package runs. They are set before JAX compiles anything.

On CPUs, XLA hands groups of operations to the library YNNPACK. With jaxlib 0.10.2, a matrix product
that is fused with later operations can read memory that was never written. In a loop over the
targets of attribution graphs, whole gradients were random numbers or nan, in some compilations and
not in others. Without YNNPACK the results are right. A forward pass at `pocket` then takes about
two thirds of the processor time, and a training step about nine tenths.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version

_FLAG = "xla_cpu_experimental_ynn_fusion_type"
_KNOWN = re.compile(r"0\.1[01]\.")  # XLA aborts the process if it does not know a flag


def switch_off_ynnpack() -> None:
    """Switch off YNNPACK on CPUs, unless `XLA_FLAGS` already has a setting of it.

    XLA reads `XLA_FLAGS` when JAX compiles its first program, so call this function before. Child
    processes inherit the setting. The function does nothing for versions of jaxlib that were not
    tested.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags and _KNOWN.match(version("jaxlib")):
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=".strip()
