"""Kernels of a training step: from the text of the compiled program, and from a trace.

A kernel is an operation that the device starts by itself, such as a fusion or a matrix product. The
step is the body of the loop with the most operations. Kinds:

- products: matrix products of the forward and backward pass;
- sums: reductions of the forward and backward pass (gradients of biases, norms, softmax);
- elementwise: all other operations of the forward and backward pass;
- gradient norm: reductions outside of them, which clipping needs before the update can begin;
- update: Adam and the new parameters;
- copies: copies that the compiler adds outside of the forward and backward pass.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}
UNSTARTED = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
"""Operations that the device does not start."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", re.M | re.S)
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Kernel(NamedTuple):
    """An operation of a step.

    Attributes:
      name: name in the compiled program.
      kind: one of the kinds in the module docstring.
      bytes: size of all operands and results. It is more than the memory traffic if an operand is
        read in part, such as the table of rows, or if it is still in a cache.
    """

    name: str
    kind: str
    bytes: int


def kernels_of_step(program: str) -> list[Kernel]:
    """Return the kernels of the training step in the text of a compiled program."""
    bodies = dict(_COMPUTATION.findall(re.sub(r"/\*.*?\*/", "", program)))
    loops = [_operations(bodies[name]) for name in re.findall(r"body=%?([\w.-]+)", program)]
    step = max(loops, key=len)
    found = []
    for name, (shape, kind, operands, line) in step.items():
        if kind in UNSTARTED:
            continue
        fused = re.search(r"calls=%?([\w.-]+)", line)
        moved = _size(shape) + sum(_size(step[other][0]) for other in operands if other in step)
        whole = line + (bodies.get(fused[1], "") if fused else "")
        found.append(Kernel(name, _kind(kind, whole), moved))
    return found


def by_kind(kernels: Iterable[Kernel]) -> dict[str, dict[str, int]]:
    """Return the number of kernels and their bytes by kind; the kind with most kernels is first."""
    found: dict[str, dict[str, int]] = {}
    for kernel in kernels:
        entry = found.setdefault(kernel.kind, {"kernels": 0, "bytes": 0})
        entry["kernels"] += 1
        entry["bytes"] += kernel.bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["kernels"]))


def traced(folder: Path, kernels: Iterable[Kernel], steps: int) -> dict[str, float]:
    """Return the milliseconds per step by kind in a trace of `jax.profiler`.

    Only events of devices count; on a CPU, they are those of operations. Kernels of a CUDA graph
    have the names of their functions, in which dots are underscores. Events that are not among the
    kernels of the step have the kind `other`.

    Args:
      folder: folder of the trace.
      kernels: kernels of the step.
      steps: number of steps in the trace.
    """
    kinds = {_plain(kernel.name): kernel.kind for kernel in kernels}
    data = jax.profiler.ProfileData.from_file(str(next(folder.rglob("*.xplane.pb"))))
    device = any(plane.name.startswith("/device:GPU") for plane in data.planes)
    spent: dict[str, float] = collections.defaultdict(float)
    for plane in data.planes:
        if device and not plane.name.startswith("/device:GPU"):
            continue
        for event in (event for line in plane.lines for event in line.events):
            operation = dict(event.stats).get("hlo_op")
            if not device and operation is None:
                continue
            kind = kinds.get(_plain(str(operation or event.name)), "other")
            spent[kind] += event.duration_ns / 1e6 / steps
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _operations(body: str) -> dict[str, tuple[str, str, list[str], str]]:
    """Return shape, kind, names of the operands, and line of the operations of a computation."""
    found = {}
    for line in body.splitlines():
        if match := _OPERATION.match(line):
            name, shape, kind, operands = match.groups()
            found[name] = (shape, kind, re.findall(r"%([\w.-]+)", operands), line)
    return found


def _size(shape: str) -> int:
    total = 0
    for dtype, sizes in _SHAPE.findall(shape):
        total += BYTES.get(dtype, 0) * math.prod(map(int, re.findall(r"\d+", sizes)))
    return total


def _kind(operation: str, whole: str) -> str:
    """Return the kind of an operation; `whole` includes the operations that it fuses."""
    if re.search(r"\bdot\(|__cublas|__triton_gemm", whole):
        return "products"
    # The first name is that of the result, because fused operations follow the fusion in `whole`.
    result = re.search(r'op_name="([^"]*)"', whole)
    reduces = re.search(r"\breduce\(", whole) is not None
    if result and "jvp" in result[1]:
        return "sums" if reduces else "elementwise"
    if operation == "copy":
        return "copies"
    return "gradient norm" if reduces else "update"


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
