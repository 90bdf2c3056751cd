"""Division of the CPU cores and devices of this machine among trials that run in parallel."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from implicit_reasoning.errors import InputError
from implicit_reasoning.runtime.machine import available_cores

_MEMORY = 0.9  # fraction of a GPU's memory that all trials on this GPU reserve together


class DeviceShare(NamedTuple):
    """CPU cores and device for the process of one trial.

    Attributes:
      cores: numbers of the CPU cores that the process may use.
      environment: additional environment variables that select the device of the process.
    """

    cores: tuple[int, ...]
    environment: Mapping[str, str]


def device_shares(workers: int | None) -> list[DeviceShare]:
    """Divide the cores and the devices of this machine into shares, one for each parallel trial.

    Args:
      workers: number of shares. The default is one share per GPU or TPU chip. Without such devices,
        the default is one share per core.

    Raises:
      InputError: `workers` is negative, or greater than the number of TPU chips.
    """
    own = available_cores()
    gpus, chips = _gpus(), _tpu_chips()
    devices = gpus or chips
    count = workers or len(devices) or len(own)
    if count < 1:
        raise InputError(f"--workers is {count}; it must be at least 1")
    # If there are more workers than cores, some workers share a core.
    dealt = [tuple(own[n::count]) or (own[n % len(own)],) for n in range(count)]
    if not devices:
        return [DeviceShare(each, {}) for each in dealt]
    on_one = -(-count // len(devices))
    show = _show_gpu if gpus else _show_chip
    return [
        DeviceShare(each, show(devices[number % len(devices)], on_one))
        for number, each in enumerate(dealt)
    ]


def _gpus() -> list[str]:
    """Return the identifiers of the GPUs that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA ignores all entries after the first invalid one; -1 hides all GPUs.
        return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    if said.returncode:  # the driver does not work
        return []
    return [str(number) for number in range(len(said.stdout.splitlines()))]


def _show_gpu(name: str, on_one: int) -> dict[str, str]:
    # JAX reserves 75% of a GPU's memory by default, so processes on the same GPU must reserve less.
    return {
        "CUDA_VISIBLE_DEVICES": name,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY / on_one:.3f}",
    }


def _tpu_chips() -> Sequence[str]:
    """Return the numbers of this host's TPU chips."""
    found = [name.removeprefix("accel") for name in os.listdir("/dev") if name.startswith("accel")]
    return sorted((name for name in found if name.isdecimal()), key=int)


def _show_chip(name: str, on_one: int) -> dict[str, str]:
    if on_one > 1:
        raise InputError(
            "every TPU chip can be used by only one process: choose a smaller --workers"
        )
    return {
        "TPU_VISIBLE_CHIPS": name,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
